"""The terms of a recipe that cost no pass: consistency, label smoothing, and labels mixed with the own prediction."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from step_cases import EPSILON, RefuseHostReads, batch, network, sgd
from torch import Tensor, nn
from torch.nn import functional

from rmcla_fast import adversarial_example, models, random_start, recipes
from rmcla_fast.training import TrainStep
from rmcla_fast.training.consistency import disagreement

FORMS = [
    "consistency=squared,consistency_weight=10",
    "consistency=js,consistency_weight=4",
    "consistency=squared,consistency_weight=10,consistency_gradient=both",
    "consistency=js,consistency_weight=4,consistency_gradient=both,label_smoothing=0.4",
    "consistency=squared,attack_mode=train,prediction_share=0.3",
    "label_smoothing=0.4",
    "prediction_share=0.5,label_scheme=main,label_smoothing=0.1",
]


def recipe(form: str) -> recipes.Recipe:
    return recipes.get(f"n-fgsm,{form}").replace(epsilon=EPSILON)


def squared_in_plain_torch(z: Tensor, start: Tensor) -> Tensor:
    return functional.mse_loss(z, start, reduction="none").mean(1)


def jensen_shannon_in_plain_torch(z: Tensor, start: Tensor) -> Tensor:
    p, q = z.softmax(1), start.softmax(1)
    m = (p + q) / 2
    return ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)) / 2


PLAIN = {"squared": squared_in_plain_torch, "js": jensen_shannon_in_plain_torch}


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_disagreement_is_its_formula(kind: str, dtype: torch.dtype) -> None:
    z, start = (torch.randn(7, 10, dtype=torch.float64).to(dtype) * 3 for _ in range(2))
    expected = PLAIN[kind](z.double(), start.double())
    found = disagreement(z, start, kind)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(disagreement(start, z, kind), found)  # it is symmetric
    assert disagreement(z, z, kind).abs().max() < 1e-6


@pytest.mark.parametrize("kind", PLAIN)
def test_the_gradient_of_the_disagreement(kind: str) -> None:
    z, start = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: disagreement(a, b, kind), (z, start))


@pytest.mark.parametrize("kind", PLAIN)
def test_extreme_logits_stay_finite_and_nan_stays_nan(kind: str) -> None:
    z = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4], [0.0, math.nan, 1.0]], requires_grad=True)
    found = disagreement(z, z.detach().flip(1), kind)
    found.sum().backward()
    assert found[:2].isfinite().all()
    assert found[2].isnan()
    assert z.grad is not None
    assert z.grad[:2].isfinite().all()
    if kind == "js":
        torch.testing.assert_close(found[:2], torch.full((2,), math.log(2)))


def update_in_plain_torch(model: nn.Module, images: Tensor, labels: Tensor, form: str) -> Tensor:
    """Compute loss and gradients of one update of N-FGSM with `form` in float64, without this library's loss."""
    chosen = recipe(form)
    y = functional.one_hot(labels, 10).double()
    clean = images.double() / 255
    start = random_start(images, 2 * EPSILON, rng=torch.tensor([3, 0])).double().requires_grad_()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    model.train(chosen.attack_mode == "train")
    at_start = model(start)
    (grad,) = torch.autograd.grad(functional.cross_entropy(at_start, labels, reduction="sum"), start)
    moved = (start.detach() + EPSILON * grad.sign()).clamp(0, 1)
    assert moved.shape == clean.shape
    at_start = at_start.detach()
    if chosen.label_scheme == "main":
        y = recipes_labels(at_start, labels)
    if chosen.prediction_share:
        y = (1 - chosen.prediction_share) * y + chosen.prediction_share * at_start.softmax(1)
    y = (1 - chosen.label_smoothing) * y + chosen.label_smoothing / 10
    model.load_state_dict(buffers, strict=False)
    model.train()
    z = model(moved)
    loss = -(y * z.log_softmax(1)).sum(1).mean()
    if chosen.consistency != "none":
        other = model(start.detach()) if chosen.two_branches else at_start
        loss = loss + chosen.consistency_weight * PLAIN[chosen.consistency](z, other).mean()
    loss.backward()
    return loss.detach()


def recipes_labels(z: Tensor, labels: Tensor, beta: float = 9.0, gamma: float = 0.01) -> Tensor:
    """Return the paper's labels: the others get M - z_k + gamma, the true class beta times the largest of these."""
    true = functional.one_hot(labels, z.shape[1]).bool()
    share = (z.masked_fill(true, -math.inf).amax(1, keepdim=True) - z + gamma).masked_fill(true, 0)
    kept = beta * share.amax(1, keepdim=True)
    return torch.where(true, kept, share) / (share.sum(1, keepdim=True) + kept)


@pytest.mark.parametrize("form", FORMS)
def test_an_update_is_its_formula_in_plain_torch(form: str) -> None:
    images, labels = batch()
    ours, theirs = network().double(), network().double()
    step = TrainStep(ours, sgd(ours), recipe(form), seed=3)
    loss = step(images, labels)
    expected = update_in_plain_torch(theirs, images, labels, form)
    # The images of an update are float32, so that signs near zero may differ.
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    for mine, plain in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None
        assert plain.grad is not None
        torch.testing.assert_close(mine.grad, plain.grad, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("form", FORMS)
def test_no_form_reads_a_tensor_on_the_host(form: str) -> None:
    model = network()
    step = TrainStep(model, sgd(model, fused=True), recipe(form))
    with RefuseHostReads():
        step(*batch())


@pytest.mark.parametrize("form", FORMS)
def test_a_form_costs_the_passes_that_its_recipe_says(form: str) -> None:
    model, seen = network(), []
    model.register_forward_hook(lambda module, given, result: seen.append(module.training))
    step = TrainStep(model, sgd(model), recipe(form))
    step(*batch())
    assert len(seen) == (3 if recipe(form).two_branches else 2)
    assert recipe(form).cost == (8 if recipe(form).two_branches else 5)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("form", [FORMS[0], FORMS[3]])
def test_pieces_and_compiled_passes_give_the_same_update(form: str, fresh_compiler: None) -> None:
    images, labels = batch(16)
    losses = {}
    for capture in ("eager", "compile"):
        model = network()
        step = TrainStep(model, sgd(model), recipe(form), capture=capture, accumulate=2)
        losses[capture] = [float(step(images, labels)) for _ in range(2)]
    assert losses["compile"] == pytest.approx(losses["eager"], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic_convolutions")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("form", FORMS)
def test_the_graph_gives_the_results_of_the_eager_step_and_reads_the_weight(form: str) -> None:
    losses: dict[str, list[float]] = {}
    for capture in ("eager", "cuda-graph"):
        torch.manual_seed(0)
        model = models.WideResNet(10, depth=10, width=1).cuda().double()
        step = TrainStep(model, sgd(model, fused=True), recipe(form), capture=capture)
        losses[capture] = []
        for number in range(8):
            generator = torch.Generator().manual_seed(number)
            images = torch.rand(16, 3, 16, 16, generator=generator, dtype=torch.float64).cuda()
            labels = torch.randint(0, 10, (16,), generator=generator).cuda()
            step.consistency_weight = 1.0 + number
            losses[capture].append(float(step(images, labels)))
    assert losses["cuda-graph"] == pytest.approx(losses["eager"], rel=1e-6)


def test_the_weight_can_change_between_updates_and_is_part_of_the_state() -> None:
    images, labels = batch()
    losses = []
    for weight in (0.0, 5.0, 10.0):
        model = network()
        step = TrainStep(model, sgd(model), recipe(FORMS[0]))
        step.consistency_weight = weight
        losses.append(float(step(images, labels)))
        other = TrainStep(model, sgd(model), recipe(FORMS[0]))
        other.load_state_dict(step.state_dict())
        assert other.consistency_weight == weight
    assert losses[1] - losses[0] == pytest.approx(losses[2] - losses[1], rel=1e-3)
    assert losses[1] > losses[0]
    older = {name: value for name, value in step.state_dict().items() if name != "consistency_weight"}
    other.load_state_dict(older)
    with pytest.raises(ValueError, match="consistency_weight"):
        step.consistency_weight = -1.0


def test_the_example_has_the_logits_at_the_start() -> None:
    model, rng = network().eval(), torch.tensor([5, 0])
    images, labels = batch()
    chosen = recipe("label_smoothing=0.1")
    example = adversarial_example(model, images, labels, chosen, rng=rng)
    expected = model(random_start(images, 2 * EPSILON, rng=rng))
    assert example.logits is not None
    assert not example.logits.requires_grad
    torch.testing.assert_close(example.logits, expected.detach())
    none = adversarial_example(model, images, labels, recipes.get("standard"), rng=rng)
    assert none.logits is None


def test_a_class_that_does_not_exist_gets_no_plausible_label() -> None:
    from rmcla_fast.adversarial_example import mixed_with_prediction

    mixed = mixed_with_prediction(None, torch.tensor([1, 7]), torch.zeros(2, 4), 0.5)
    torch.testing.assert_close(mixed, torch.tensor([[0.125, 0.625, 0.125, 0.125], [0.125] * 4]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n-fgsm,consistncy=js", "FIELD=VALUE; got 'consistncy=js'; did you mean 'consistency'"),
        ("n-fgsm,consistency", "FIELD=VALUE; got 'consistency'"),
        ("n-fgsm,", "FIELD=VALUE; got ''"),
        ("n-fgsm,consistency=jsd", "consistency must be one of 'none', 'squared', 'js'; got 'jsd'"),
        ("n-fgsm,consistency_weight=-1", "consistency_weight must be finite and not negative; got -1"),
        ("n-fgsm,consistency_weight=nan", "consistency_weight must be finite"),
        ("n-fgsm,consistency_weight=much", "consistency_weight must be a number, true, false or none; got 'much'"),
        ("n-fgsm,consistency_ramp=1", "consistency_ramp must be a bool; got int"),
        ("n-fgsm,label_smoothing=1", r"label_smoothing must lie in \[0, 1\); got 1"),
        ("n-fgsm,prediction_share=1.5", r"prediction_share must lie in \[0, 1\]; got 1.5"),
        ("n-fgsm,steps=1.0", "steps must be an int; got float"),
        ("n-fgsm,name=mine", "FIELD=VALUE; got 'name=mine'"),
        ("standard,consistency=js", "prediction_share and consistency need an attack"),
        ("trades,prediction_share=0.1", "prediction_share and consistency need an attack"),
        ("nfgsm,steps=2", "no recipe is called 'nfgsm'; did you mean"),
    ],
)
def test_a_bad_change_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        recipes.get(text)


def test_a_name_with_changes_gives_the_changed_recipe() -> None:
    changed: Any = recipes.get("r-mc-la,top_k=9,project=false,start_ratio=2,label_source=clean")
    expected = recipes.get("r-mc-la9+").replace(project=False, start_ratio=2)
    assert changed == expected
    assert changed.name == "r-mc-la,top_k=9,project=false,start_ratio=2,label_source=clean"
    assert recipes.get("r-mc-la9,top_k=none") == recipes.get("r-mc-la")
