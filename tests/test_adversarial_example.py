"""`adversarial_example` follows the formulas of its recipe, keeps to the ball, and leaves the model unchanged."""

from __future__ import annotations

import copy

import pytest
import torch
from step_cases import EPSILON, batch, recipe
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from rmcla_fast import adversarial_example, models, random_start, recipes
from rmcla_fast.adversarial_example import standard_normal

RNG = torch.tensor([7, 3])


class WithDropout(nn.Module):
    """A network with dropout and two linear layers, and without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5))
        self.classifier = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.body(images))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = models.WideResNet(10, channels=1, depth=10, width=1)
    model(torch.rand(64, 1, 8, 8))  # so that the running statistics are not the initial ones
    return model


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_gives_images_in_the_ball_and_labels_that_sum_to_one(name: str) -> None:
    images, labels = batch()
    result = adversarial_example(network(), images, labels, recipe(name), rng=RNG)
    clean = images.float() / 255
    assert result.images.shape == images.shape
    assert result.images.dtype == torch.float32
    assert float(result.images.min()) >= 0
    assert float(result.images.max()) <= 1
    reach = EPSILON if recipe(name).project else 3 * EPSILON
    assert float((result.images - clean).abs().max()) <= reach + 1e-6
    if name == "standard":
        assert torch.equal(result.images, clean)
    elif recipe(name).target in ("untargeted",):
        assert torch.equal(result.targets, labels)
    else:
        assert bool((result.targets != labels).all())
    if recipe(name).label_scheme == "none":
        assert result.soft_labels is None
    else:
        assert result.soft_labels is not None
        torch.testing.assert_close(result.soft_labels.sum(1), torch.ones(len(labels)))
        assert torch.equal(result.soft_labels.argmax(1), labels)
    assert not result.images.requires_grad


@pytest.mark.parametrize("source", ["start", "clean"])
def test_the_example_agrees_with_the_paper_in_plain_torch(source: str) -> None:
    """The recipes are R-MC-LA and R-MC-LA+, computed by the paper's formulas with logarithms."""
    model, (images, labels) = network().eval(), batch(seed=1)
    clean = images.float() / 255
    start = random_start(clean, EPSILON, rng=RNG).requires_grad_()
    logits = model(start)
    said = (logits if source == "start" else model(clean)).detach()
    v = -said.log_softmax(1)
    others = functional.one_hot(labels, 10) == 0
    v_mc, target = v.masked_fill(~others, torch.inf).min(1)
    (grad,) = torch.autograd.grad(functional.cross_entropy(logits, target, reduction="sum"), start)
    moved = (start - EPSILON * grad.sign()).detach()
    expected = torch.minimum(torch.maximum(moved, clean - EPSILON), clean + EPSILON).clamp(0, 1)
    share = (v - v_mc[:, None] + 0.01) * others
    eps_y = 1 / (1 + 9 * share.amax(1) / share.sum(1))
    soft = eps_y[:, None] * share / share.sum(1, keepdim=True)
    soft = torch.where(others, soft, 1 - eps_y[:, None])

    name = "r-mc-la" if source == "start" else "r-mc-la+"
    result = adversarial_example(model, images, labels, recipe(name), rng=RNG)
    assert torch.equal(result.targets, target)
    assert result.soft_labels is not None
    torch.testing.assert_close(result.soft_labels, soft, atol=1e-6, rtol=0)
    # Where a gradient is only a rounding error, its sign may differ.
    assert float(((result.images - expected).abs() > 1e-6).float().mean()) < 1e-3


def test_the_pgd_recipe_agrees_with_a_plain_loop() -> None:
    model, (images, labels) = network().eval(), batch(seed=2)
    clean = images.float() / 255
    moved = random_start(clean, EPSILON, rng=RNG)
    for _ in range(7):
        moved.requires_grad_()
        (grad,) = torch.autograd.grad(functional.cross_entropy(model(moved), labels, reduction="sum"), moved)
        moved = (moved + EPSILON / 4 * grad.sign()).detach()
        moved = torch.minimum(torch.maximum(moved, clean - EPSILON), clean + EPSILON).clamp(0, 1)
    result = adversarial_example(model, images, labels, recipe("madry-pgd7-2"), rng=RNG)
    assert float(((result.images - moved).abs() > 1e-6).float().mean()) < 2e-3


def test_the_attack_of_trades_increases_the_divergence() -> None:
    model, (images, labels) = network().eval(), batch(seed=3)
    clean = images.float() / 255
    p = model(clean).softmax(1)

    def divergence(moved: Tensor) -> float:
        return float(functional.kl_div(model(moved).log_softmax(1), p, reduction="batchmean"))

    result = adversarial_example(model, images, labels, recipe("trades"), rng=RNG)
    uniform = random_start(clean, EPSILON, rng=RNG, clip=True)
    assert divergence(result.images) > 3 * divergence(uniform)


def test_unprojected_step_leaves_the_ball() -> None:
    images, labels = batch(seed=4)
    clean = images.float() / 255
    outside = (adversarial_example(network(), images, labels, recipe("n-fgsm"), rng=RNG).images - clean).abs() > EPSILON
    assert 0.1 < float(outside.float().mean()) < 0.9


@pytest.mark.parametrize("name", ["r-mc-la", "r-mc-la+", "trades", "madry-pgd7-2"])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["batch norm", "dropout"])
def test_the_model_is_unchanged_after_the_attack(name: str, mode: str, training: bool, kind: str) -> None:
    model = network() if kind == "batch norm" else WithDropout()
    model.train(training)
    next(model.children()).train(not training)  # this part has another mode than the whole
    first = next(model.parameters())
    first.requires_grad_(False)
    first.grad = None
    for parameter in list(model.parameters())[1:]:
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model)
    grads = [parameter.grad for parameter in model.parameters()]
    images, labels = batch()
    kept = images.clone()
    with torch.no_grad():  # the attack works inside no_grad, too
        adversarial_example(model, images, labels, recipe(name).replace(attack_mode=mode), rng=RNG)
    assert torch.equal(images, kept)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    for ours, theirs in zip(model.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert parameter.grad is grad
        assert grad is None or bool((grad == 1).all())


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_model_is_unchanged_after_an_exception(mode: str) -> None:
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    images, labels = batch()
    labels[3] = 10  # an error that the kernels raise after the forward pass
    with pytest.raises(ValueError, match="labels must lie in"):
        adversarial_example(model, images, labels, recipe("r-mc-la").replace(attack_mode=mode), rng=RNG)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_training_mode_uses_the_batch_statistics() -> None:
    model, (images, labels) = network().train(), batch()
    in_eval = adversarial_example(model, images, labels, recipe("r-mc-la"), rng=RNG)
    in_train = adversarial_example(model, images, labels, recipe("r-mc-la").replace(attack_mode="train"), rng=RNG)
    assert not torch.equal(in_eval.images, in_train.images)


def test_float_and_uint8_images_give_the_same_example_and_are_not_changed() -> None:
    model, (images, labels) = network(), batch()
    clean = images.float() / 255
    kept = clean.clone()
    for name in recipes.names():
        from_bytes = adversarial_example(model, images, labels, recipe(name), rng=RNG)
        from_floats = adversarial_example(model, clean, labels, recipe(name), rng=RNG)
        assert torch.equal(from_bytes.images, from_floats.images), name
        without = recipe(name).replace(start="none")
        adversarial_example(model, clean, labels, without, rng=RNG)
        assert torch.equal(clean, kept), name


def test_noise_depends_only_on_the_seed_and_the_step() -> None:
    model, (images, labels) = network(), batch()
    for name in ("r-mc-la", "r-rand", "trades"):
        results = [
            adversarial_example(model, images, labels, recipe(name), rng=torch.tensor(rng)).images
            for rng in ([7, 3], [7, 3], [7, 4], [8, 3])
        ]
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])
        assert not torch.equal(results[0], results[3])


def test_the_attack_computes_no_weight_gradient() -> None:
    model, (images, labels) = network(), batch()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(images.float() / 255)
    for name, cost in (("r-mc-la", 2), ("r-mc-la+", 3), ("madry-pgd7-2", 14), ("trades", 21)):
        with FlopCounterMode(display=False) as counted:
            adversarial_example(model, images, labels, recipe(name), rng=RNG)
        assert counted.get_total_flops() == cost * forward.get_total_flops(), name


def test_normal_noise_has_a_standard_normal_distribution() -> None:
    noise = standard_normal(torch.Size([100_000]), RNG)
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert abs(float((noise.abs() < 1).float().mean()) - 0.6827) < 0.01
    assert bool(noise.isfinite().all())


def test_a_diverged_network_gives_nan_and_not_a_label() -> None:
    model, (images, labels) = network().eval(), batch()
    nn.init.constant_(model.classifier.bias, torch.nan)
    for name in recipes.names()[1:]:
        result = adversarial_example(model, images, labels, recipe(name), rng=RNG)
        assert bool(result.images.isnan().all()), name
        assert result.soft_labels is None or bool(result.soft_labels.isnan().all()), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "resnet"}, "model must be a torch.nn.Module; got str"),
        ({"recipe": "r-mc-la"}, "recipe must be a Recipe, as rmcla_fast.recipes.get(name) gives it; got str"),
        ({"images": torch.zeros(16, 64)}, "images must have shape (B, C, H, W); got (16, 64)"),
        ({"images": torch.zeros(16, 1, 8, 8, dtype=torch.int32)}, "images must be uint8, float32"),
        ({"labels": torch.zeros(15, dtype=torch.int64)}, "labels must have shape (16,), one per image; got (15,)"),
        ({"labels": torch.zeros(16)}, "labels must be an int64 tensor of shape (16,); got torch.float32"),
        ({"labels": [0] * 16}, "labels must be an int64 tensor of shape (16,); got list"),
        ({"rng": torch.zeros(2)}, "rng must be an int64 tensor (seed, step); got torch.float32"),
        ({"rng": torch.zeros(3, dtype=torch.int64)}, "rng must have shape (2,)"),
        ({"rng": torch.zeros(16, 2, dtype=torch.int64)}, "rng must have shape (2,), seed and step; got (16, 2)"),
    ],
)
def test_a_bad_argument_raises_one_sentence(changes: dict[str, object], words: str) -> None:
    images, labels = batch()
    given: dict[str, object] = {"model": network(), "images": images, "labels": labels, "recipe": recipe("r-mc-la")}
    rng = changes.pop("rng", RNG)
    given |= changes
    with pytest.raises((ValueError, TypeError)) as raised:
        adversarial_example(*given.values(), rng=rng)  # type: ignore[arg-type]
    assert str(raised.value).startswith(words)
