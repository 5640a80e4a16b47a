"""Models that nobody had in mind, at every door: what they answer, of which type they are, and how they were made."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from any_model_cases import (
    DOORS,
    RECIPE,
    After,
    convolutional,
    every_door,
    images_and_labels,
    linear,
    needs_gradients,
    one_update,
)
from torch import Tensor, nn

from rmcla_fast import recipes
from rmcla_fast.attacks import evaluate
from rmcla_fast.training import TrainStep


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
