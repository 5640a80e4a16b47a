"""Models that nobody had in mind: what they answer, what they do to their input and buffers, and how they were made.

Each kind goes through every door by which a model comes in: the training step, `adversarial_example`, and the attacks.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rmcla_fast import adversarial_example, recipes
from rmcla_fast.any_model import check_pixels_once
from rmcla_fast.attacks import evaluate, gradient_norm, pgd
from rmcla_fast.training import ExponentialAverage, TrainStep

RECIPE = recipes.get("r-mc-la").replace(epsilon=0.1)
RNG = torch.tensor([0, 0])
Door = Callable[[nn.Module, Tensor, Tensor], Any]


def images_and_labels(count: int = 8) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(count) % 10


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


class After(nn.Module):
    """A model whose answer, or whose input, is changed by a function of (module, tensor)."""

    def __init__(self, answer: Callable[..., Any] | None = None, before: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.model, self.answer, self.before = linear(), answer, before

    def forward(self, images: Tensor) -> Any:
        logits = self.model(images if self.before is None else self.before(self, images))
        return logits if self.answer is None else self.answer(self, logits)


def one_update(model: nn.Module, images: Tensor, labels: Tensor, recipe: str = "r-mc-la") -> Tensor:
    chosen = recipes.get(recipe)
    chosen = chosen.replace(epsilon=0.1) if chosen.steps else chosen
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return TrainStep(model, optimizer, chosen)(images, labels)


def example(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return adversarial_example(model, images, labels, RECIPE, rng=RNG).images


def accuracies(attacks: str) -> Door:
    def door(model: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
        return [one.accuracy for one in evaluate(model, images, labels, attacks=attacks, epsilon=0.1).values()]

    return door


def pgd_images(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return pgd(model, images, labels, epsilon=0.1, step_size=0.05, steps=3)


ATTACKS: dict[str, Door] = {name: accuracies(name) for name in ("fgsm", "ce20", "cw100", "apgd-ce", "apgd-t")}
DOORS: dict[str, Door] = {
    "standard": lambda *given: one_update(*given, recipe="standard"),
    "r-mc-la": one_update,
    "trades": lambda *given: one_update(*given, recipe="trades"),
    "adversarial_example": example,
    "clean": accuracies("clean"),
    **ATTACKS,
    "pgd": pgd_images,
    "gradient_norm": lambda *given: gradient_norm(*given).squared,
}
needs_gradients = pytest.mark.parametrize("door", [name for name in DOORS if name not in ("standard", "clean")])
every_door = pytest.mark.parametrize("door", DOORS)


@every_door
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda _, z: {"logits": z, "features": z}, "a dict with 'logits', 'features' in it"),
        (lambda _, z: OrderedDict(out=z), "an? OrderedDict with 'out' in it"),
        (lambda _, z: (z, z), "a tuple of 2"),
        (lambda _, z: [z], "a list of 1"),
        (lambda _, z: SimpleNamespace(logits=z), "a SimpleNamespace, which has logits"),
        (lambda _, z: None, "NoneType"),
        (lambda _, z: z.argmax(1), "torch.int64"),
        (lambda _, z: z[:, :, None, None], r"\(8, 10, 1, 1\)"),
        (lambda _, z: z[:4], r"\(4, 10\)"),
        (lambda _, z: z[:, :1], "at least 2 classes"),
        (lambda _, z: z.to_sparse(), "torch.sparse_coo"),
    ],
)
def test_an_answer_that_is_no_logits_is_said(door: str, answer: Callable[..., Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^model must .*{words}[^\n]*$"):
        DOORS[door](After(answer), *images_and_labels())


def test_an_answer_that_is_wrong_in_training_mode_alone_is_said() -> None:
    model = After(lambda module, z: (z, z) if module.training else z)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match="a tuple of 2"):
        one_update(model, *images_and_labels())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


class Blind(nn.Module):
    """A model that runs without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.model = linear()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


class Inferring(Blind):
    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


@needs_gradients
@pytest.mark.parametrize(
    "model",
    [
        lambda: After(lambda _, z: z.detach()),
        lambda: After(before=lambda _, x: x.detach()),
        lambda: After(before=lambda _, x: torch.from_numpy(x.detach().numpy())),
        Blind,
        Inferring,
        lambda: After(lambda module, z: module.model[1].bias.expand_as(z)),
    ],
    ids=["answer detached", "input detached", "through numpy", "no_grad", "inference_mode", "constant"],
)
def test_a_model_without_a_way_to_the_images_is_refused(door: str, model: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"^the gradient of the logits cannot reach the images: [^\n]*$"):
        DOORS[door](model(), *images_and_labels())


@pytest.mark.parametrize("model", [Blind, Inferring, lambda: After(lambda _, z: z.detach())])
def test_a_model_without_a_way_to_the_weights_is_refused(model: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="cannot reach the weights"):
        DOORS["standard"](model(), *images_and_labels())


def test_a_quantised_model_is_judged_and_its_gradient_attacks_are_refused() -> None:
    from torch.ao.quantization import quantize_dynamic

    model = quantize_dynamic(linear().eval(), {nn.Linear})
    images, labels = images_and_labels()
    assert evaluate(model, images, model(images).argmax(1), attacks="clean", epsilon=0.1)["clean"].accuracy == 100
    with pytest.raises(ValueError, match="a quantised layer is not"):
        evaluate(model, images, labels, attacks="fgsm", epsilon=0.1)


@every_door
@pytest.mark.parametrize("kind", ["subtracts in place", "fills", "resizes"])
def test_a_model_that_writes_into_its_input_does_not_reach_the_callers_images(door: str, kind: str) -> None:
    def write(_: nn.Module, images: Tensor) -> Tensor:
        if kind == "subtracts in place":
            return images.sub_(0.5).div_(0.5)
        copied = images * 2
        with torch.no_grad():
            images.zero_()
            if kind == "resizes":
                images.data = images.data.new_empty(0)
        return copied

    images, labels = images_and_labels()
    before = images.clone()
    first = DOORS[door](After(before=write), images, labels)
    assert torch.equal(images, before)
    plain = After(before=lambda _, x: (x - 0.5) / 0.5 if kind == "subtracts in place" else x * 2)
    expected = DOORS[door](plain, images, labels)
    torch.testing.assert_close(torch.as_tensor(first), torch.as_tensor(expected))


class Observer(nn.Module):
    """Counts its calls in every mode: in a buffer, through `data`, in a new tensor, and in a buffer made late."""

    count: Tensor
    hidden: Tensor
    replaced: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.model = linear()
        for name in ("count", "hidden", "replaced"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.count += 1
        self.hidden.data += 1
        self.replaced = self.replaced + 1
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.ones(()))
        return self.model(images)


@pytest.mark.parametrize("door", [name for name in DOORS if name not in ("standard", "r-mc-la", "trades")])
def test_buffers_that_move_in_evaluation_mode_are_given_back(door: str) -> None:
    model = Observer().eval()
    buffers = dict(model._buffers)
    DOORS[door](model, *images_and_labels())
    assert model._buffers.keys() == buffers.keys()
    for name, buffer in model._buffers.items():
        assert buffer is buffers[name]
        assert float(buffer) == 0, name


def test_the_attack_of_an_update_does_not_count_for_an_observer() -> None:
    model = Observer()
    one_update(model, *images_and_labels())
    assert (float(model.count), float(model.hidden), float(model.replaced)) == (1, 1, 1)


def test_a_graph_that_the_caller_built_before_can_still_be_differentiated() -> None:
    model, (images, labels) = convolutional().eval(), images_and_labels()
    loss = model(images).sum()  # saves the statistics of batch norm for its backward pass
    example(model, images, labels)
    loss.backward()


@every_door
@pytest.mark.parametrize("model_dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("image_dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_network_of_any_type_takes_images_of_any_type(
    door: str, model_dtype: torch.dtype, image_dtype: torch.dtype
) -> None:
    images, labels = images_and_labels()
    images = (images * 255).to(torch.uint8) if image_dtype == torch.uint8 else images.to(image_dtype)
    found = torch.as_tensor(DOORS[door](linear().to(model_dtype), images, labels))
    assert found.isfinite().all()
    if door in ("adversarial_example", "pgd"):
        assert found.dtype == (torch.float32 if image_dtype == torch.uint8 else image_dtype)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("door", [*DOORS, "skip_nonfinite"])
def test_torchs_default_type_does_not_matter(door: str, default: torch.dtype) -> None:
    def skips(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
        return TrainStep(model, optimizer, RECIPE, skip_nonfinite=True)(images, labels)

    run = DOORS.get(door, skips)
    model, (images, labels) = linear(), images_and_labels()
    expected = run(copy.deepcopy(model), images, labels)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = run(copy.deepcopy(model), images, labels)
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=0, atol=0, check_dtype=False)


def exported(model: nn.Module) -> nn.Module:
    batch = torch.export.Dim("batch")
    return torch.export.export(model, (torch.rand(8, 1, 8, 8),), dynamic_shapes=({0: batch},)).module()


@every_door
@pytest.mark.parametrize(
    "made",
    [
        torch.jit.script,
        lambda model: torch.jit.trace(model, torch.rand(8, 1, 8, 8)),
        lambda model: torch.jit.freeze(torch.jit.script(model)),
        exported,
        lambda model: nn.Sequential(exported(model), nn.Identity()),
        torch.fx.symbolic_trace,
        nn.DataParallel,
        lambda model: torch.compile(model, backend="eager"),
    ],
    ids=["script", "trace", "freeze", "export", "export inside", "fx", "DataParallel", "compile"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_module_made_from_another_one_is_attacked_like_it(door: str, made: Callable[..., nn.Module]) -> None:
    model, (images, labels) = convolutional().eval(), images_and_labels(16)
    one = made(model)
    if door in ("standard", "r-mc-la", "trades"):
        if next(one.parameters(), None) is None:  # the weights of a frozen module are constants
            with pytest.raises(ValueError, match="empty parameter list"):  # by torch's optimizer
                DOORS[door](one, images, labels)
            return
        assert float(DOORS[door](one, images, labels)) > 0
        return
    torch.testing.assert_close(
        torch.as_tensor(DOORS[door](one, images, labels)), torch.as_tensor(DOORS[door](model, images, labels))
    )


@every_door
@pytest.mark.parametrize("made", ["lazy", "meta"])
def test_a_model_without_numbers_in_its_weights_is_refused(door: str, made: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(10)) if made == "lazy" else linear().to("meta")
    with pytest.raises(ValueError, match=r"^model must have weights; 1\.weight is "):
        DOORS[door](model, *images_and_labels())


@pytest.mark.parametrize("door", [name for name in DOORS if name not in ("standard", "r-mc-la", "trades")])
@pytest.mark.parametrize("inside", [True, False], ids=["weights made inside", "weights made outside"])
def test_inference_mode_changes_nothing(door: str, inside: bool) -> None:
    model = convolutional().eval()
    expected = DOORS[door](model, *images_and_labels())
    with torch.inference_mode():
        model = convolutional().eval() if inside else model
        found = DOORS[door](model, *images_and_labels())
        assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected))
    torch.testing.assert_close(torch.as_tensor(DOORS[door](model, *images_and_labels())), torch.as_tensor(expected))


@pytest.mark.parametrize("door", ["standard", "r-mc-la", "trades"])
def test_an_update_in_inference_mode_is_refused(door: str) -> None:
    model, recipe = linear(), recipes.get(door)
    step = TrainStep(model, torch.optim.SGD(model.parameters(), lr=0.1), recipe)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"cannot be trained inside torch\.inference_mode"):
        step(*images_and_labels())


@every_door
@pytest.mark.parametrize(
    "change",
    [lambda x: (x - 0.45) / 0.22, lambda x: x * 255, lambda x: x * 2 - 1, lambda x: x + 1e-3, lambda x: x - 1e-3],
    ids=["normalised", "0 to 255", "-1 to 1", "above 1", "below 0"],
)
def test_images_in_other_units_are_refused(door: str, change: Callable[[Tensor], Tensor]) -> None:
    images, labels = images_and_labels()
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match=r"^images must lie in \[0, 1\]; got values from [^\n]*$"):
        DOORS[door](linear(), change(images), labels)


@every_door
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_images_that_are_off_by_rounding_are_taken(door: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 2, (8, 1, 8, 8), generator=generator).to(dtype)
    units = 8 if dtype in (torch.float32, torch.float64) else 2
    images += torch.where(images == 0, -units, units) * torch.finfo(dtype).eps  # as if normalised and put back
    assert images.min() < 0
    assert images.max() > 1
    found = torch.as_tensor(DOORS[door](linear(), images, images_and_labels()[1]))
    assert found.isfinite().all()
    if door in ("adversarial_example", "pgd"):
        assert 0 <= float(found.min()) <= float(found.max()) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_images_beyond_rounding_are_refused(dtype: torch.dtype) -> None:
    units = 10 if dtype in (torch.float32, torch.float64) else 4
    images = torch.ones(2, 1, 8, 8, dtype=dtype) + units * torch.finfo(dtype).eps
    with pytest.raises(ValueError, match="images must lie in"):
        example(linear(), images, torch.arange(2))


@pytest.mark.parametrize("recipe", ["standard", "n-fgsm", "trades", "r-mc-la+"])
def test_adversarial_images_are_pixels_and_new_memory(recipe: str) -> None:
    images, labels = images_and_labels()
    images[0, 0, 0, :2] = torch.tensor([-3e-8, 1 + 2.4e-7])
    found = adversarial_example(linear(), images, labels, recipes.get(recipe), rng=RNG).images
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert found.data_ptr() != images.data_ptr()


def test_images_of_a_gpu_are_looked_at_once_for_each_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading values makes the host wait for the GPU. The tensors here only say that they are on one."""

    class OnGPU(Tensor):
        is_cuda = True

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    wrong, right = (torch.full((2, 1, 4, 4), value).as_subclass(OnGPU) for value in (3.0, 0.5))
    first, second = linear(), linear()
    with pytest.raises(ValueError, match="images must lie in"):
        check_pixels_once(wrong, first)
    check_pixels_once(wrong, first)  # not looked at again
    check_pixels_once(right, second)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    check_pixels_once(wrong, linear())


def test_an_optimizer_over_the_head_alone_moves_it_as_if_the_rest_were_frozen() -> None:
    moved = []
    for frozen in (False, True):
        model, (images, labels) = convolutional(), images_and_labels(16)
        head = model[-1]
        model.requires_grad_(not frozen)
        head.requires_grad_(True)
        kept = [parameter for parameter in model.parameters() if not any(parameter is one for one in head.parameters())]
        for parameter in kept:
            parameter.grad = None if frozen else torch.ones_like(parameter)  # the caller's own
        before = head.weight.detach().clone()
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        step = TrainStep(model, optimizer, RECIPE, clip_norm=1e-2, accumulate=2)
        for _ in range(3):
            step(images, labels)
        moved.append((head.weight - before).detach())
        for parameter in kept:
            assert parameter.grad is None if frozen else torch.equal(parameter.grad, torch.ones_like(parameter))
    torch.testing.assert_close(*moved, rtol=1e-5, atol=0)


def test_weights_that_the_optimizer_gets_later_are_trained() -> None:
    model, (images, labels) = convolutional(), images_and_labels(16)
    optimizer = torch.optim.SGD(model[-1].parameters(), lr=0.1)
    step = TrainStep(model, optimizer, RECIPE)
    step(images, labels)
    before = model[0].weight.detach().clone()
    optimizer.add_param_group({"params": model[0].parameters()})
    step(images, labels)
    assert not torch.equal(model[0].weight, before)


def test_a_step_with_nothing_to_train_is_refused() -> None:
    model = linear().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing can be trained"):
        TrainStep(model, torch.optim.SGD(model.parameters(), lr=0.1), RECIPE)
    with pytest.raises(ValueError, match="optimizer must hold parameters of model"):
        TrainStep(linear(), torch.optim.SGD(linear().parameters(), lr=0.1), RECIPE)
    unused = After()
    unused.add_module("unused", nn.Linear(2, 2))
    with pytest.raises(ValueError, match="the loss depends on none of the weights that the optimizer holds"):
        TrainStep(unused, torch.optim.SGD(unused.unused.parameters(), lr=0.1), RECIPE)(*images_and_labels())


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.float64), ("bf16", torch.float16), ("fp16", torch.bfloat16)]
)
def test_weights_of_a_third_type_are_refused_in_16_bits(precision: str, dtype: torch.dtype) -> None:
    model = linear().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    with pytest.raises(ValueError, match=f"^precision '{precision}' needs .*; the model's are {dtype}"):
        TrainStep(model, optimizer, RECIPE, precision=precision)


def test_a_model_that_was_made_in_inference_mode_cannot_be_trained() -> None:
    with torch.inference_mode():
        model = convolutional()
    with torch.inference_mode(), pytest.raises(ValueError, match=r"made outside of torch\.inference_mode"):
        TrainStep(linear(), torch.optim.SGD(linear().parameters(), lr=0.1), RECIPE)
    for make in (one_update, lambda model, *_: ExponentialAverage(model, 0.9)):
        with pytest.raises(ValueError, match=r"model must be made outside of torch\.inference_mode to be trained"):
            make(model, *images_and_labels())


def test_an_average_follows_buffers_that_the_first_forward_pass_makes() -> None:
    model, (images, labels) = Observer(), images_and_labels()
    model.register_buffer("filled", None)
    model.register_forward_pre_hook(lambda module, inputs: setattr(module, "filled", inputs[0].detach().mean()))
    ema = ExponentialAverage(model, 0.5)
    step = TrainStep(model, torch.optim.SGD(model.parameters(), lr=0.1), RECIPE, ema=ema)
    for _ in range(2):
        step(images, labels)
    average = dict(ema.module.named_buffers())
    assert set(average) == set(dict(model.named_buffers())) == {"count", "hidden", "replaced", "filled", "late"}
    assert average["filled"].isfinite()


def test_an_average_of_16_bit_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="model must have float32 weights for an average"):
        ExponentialAverage(linear().bfloat16(), 0.999)


def test_an_average_does_not_lend_the_callers_images() -> None:
    images, _ = images_and_labels()
    before = images.clone()
    ExponentialAverage(After(before=lambda _, x: x.sub_(0.5)), 0.9)(images)
    assert torch.equal(images, before)


class Folded(nn.Linear):
    """A linear layer with an adapter, which `train` folds into the weight and out of it, as loralib's layers do."""

    def __init__(self) -> None:
        super().__init__(64, 10)
        self.weight.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, 64) / 8), nn.Parameter(torch.randn(10, 2) / 8)
        self.folded = False

    def train(self, mode: bool = True) -> Folded:
        super().train(mode)
        if self.folded == mode:
            self.weight.data += (1 if not mode else -1) * (self.up.data @ self.down.data)
            self.folded = not mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images.flatten(1))
        return logits if self.folded else logits + images.flatten(1) @ self.down.T @ self.up.T


@pytest.mark.parametrize("inside", [False, True], ids=["itself", "inside another module"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("door", [name for name in DOORS if name not in ("standard", "r-mc-la", "trades")])
def test_a_module_that_works_when_its_mode_changes_is_left_as_it_was(door: str, training: bool, inside: bool) -> None:
    torch.manual_seed(0)
    layer = Folded()
    model = (nn.Sequential(layer, nn.Identity()) if inside else layer).train(training)
    before = copy.deepcopy(model.state_dict())
    DOORS[door](model, *images_and_labels())
    assert (layer.training, layer.folded) == (training, not training)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("recipe", ["standard", "r-mc-la", "trades"])
def test_an_adapter_that_is_folded_for_the_attack_is_trained(recipe: str) -> None:
    torch.manual_seed(0)
    model, (images, labels) = nn.Sequential(Folded(), nn.Identity()), images_and_labels()
    before = copy.deepcopy(model.state_dict())
    one_update(model, images, labels, recipe)
    assert not model[0].folded
    for name in ("0.down", "0.up"):
        assert not torch.equal(model.state_dict()[name], before[name])
    assert torch.equal(model.state_dict()["0.weight"], before["0.weight"])


def test_modes_are_restored_if_a_part_refuses_its_mode() -> None:
    class Refuses(nn.Module):
        def train(self, mode: bool = True) -> nn.Module:
            if not mode:
                raise RuntimeError("cannot be evaluated")
            return super().train(mode)

        def forward(self, images: Tensor) -> Tensor:
            return images

    model = nn.Sequential(nn.Dropout(), Refuses(), linear())
    with pytest.raises(RuntimeError, match="cannot be evaluated"):
        example(model, *images_and_labels())
    assert all(module.training for module in model.modules())


def test_a_model_that_uses_the_memory_of_its_answer_again_is_attacked_like_another_one() -> None:
    class Reuses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.memory = linear(), torch.zeros(8, 10)

        def forward(self, images: Tensor) -> Tensor:
            logits = self.model(images)
            if torch.is_grad_enabled():
                self.memory.copy_(logits.detach())
                return logits
            return self.memory.copy_(logits)

    for name in ("trades", "r-mc-la+"):
        recipe = recipes.get(name).replace(epsilon=0.1)
        ours, expected = (
            adversarial_example(model, *images_and_labels(), recipe, rng=RNG) for model in (Reuses(), linear())
        )
        assert torch.equal(ours.images, expected.images)


def test_an_average_of_complex_weights_is_an_average() -> None:
    model = nn.Linear(2, 2)
    model.register_parameter("phase", nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    ema = ExponentialAverage(model, 0.75)
    with torch.no_grad():
        model.phase.mul_(3)
    ema.update(model)
    assert torch.equal(ema.module.phase, torch.full((2,), 1.5, dtype=torch.complex64))
