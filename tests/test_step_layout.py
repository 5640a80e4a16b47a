"""A compiled update runs no pass eagerly: images have the compiled strides, for every recipe and every input layout."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from step_cases import recipe, sgd
from torch import Tensor, nn

from rmcla_fast import recipes
from rmcla_fast.training import TrainStep
from rmcla_fast.training.forward import Passes

Passed = list[tuple[str, tuple[Any, ...]]]  # name of the pass; shape, strides and dtype of its images
SHAPES = [(4, 3, 6, 6), (4, 1, 6, 6), (4, 3, 1, 1), (4, 3, 1, 6), (1, 3, 6, 6)]


def odd_strides(images: Tensor) -> Tensor:
    """Return the same images, in which dimensions of size one have strides that no layout has."""
    strides = [7 if size == 1 else stride for size, stride in zip(images.shape, images.stride(), strict=True)]
    return images.as_strided(images.shape, strides)


def gaps(images: Tensor) -> Tensor:
    """Return the same images in memory with gaps."""
    return torch.stack([images, images], dim=-1)[..., 0]


MEMORY: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda images: images.contiguous(),
    "channels_last": lambda images: images.contiguous(memory_format=torch.channels_last),
    "odd strides": odd_strides,
    "gaps": gaps,
}


def network(channels: int, memory_format: torch.memory_format) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)]
    return nn.Sequential(*layers).to(memory_format=memory_format)


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Passed:
    """Collect what compiled and eager passes get from now on; torch.compile is replaced and compiles nothing."""
    seen: Passed = []

    def compiler(forward: Callable[[Tensor], Tensor], **options: Any) -> Callable[[Tensor], Tensor]:
        name = "attack" if "detached" in forward.__name__ else "update"

        def compiled(images: Tensor) -> Tensor:
            seen.append((name, (images.shape, images.stride(), images.dtype)))
            return forward(images)

        return compiled

    chosen = Passes._compiled_pass

    def choose(self: Passes, index: int, images: Tensor) -> Any:
        found = chosen(self, index, images)
        if found is None:
            seen.append(("eager", (images.shape, images.stride(), images.dtype)))
        return found

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(Passes, "_compiled_pass", choose)
    return seen


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", recipes.names())
def test_both_passes_are_compiled_once(name: str, memory_format: torch.memory_format, passed: Passed) -> None:
    """A batch of the compiled size never runs eagerly, and never has strides that would cause a second compilation."""
    for shape in SHAPES:
        model = network(shape[1], memory_format)
        step = TrainStep(model, sgd(model), recipe(name), capture="compile")
        labels = torch.arange(shape[0])
        passed.clear()
        for memory in MEMORY.values():
            for dtype in (torch.uint8, torch.float32, torch.bfloat16):
                images = torch.randint(0, 256, shape, dtype=torch.uint8)
                images = memory(images if dtype == torch.uint8 else (images / 255).to(dtype))
                step(images, labels)
        names = {which for which, _ in passed}
        assert names == ({"update"} if recipe(name).steps == 0 else {"attack", "update"}), shape
        assert len({given for _, given in passed}) == 1, (shape, {given for _, given in passed})


def test_a_pass_that_runs_eager_warns_once(passed: Passed) -> None:
    passes = Passes(network(3, torch.contiguous_format), "fp32", compiled=True)
    images = torch.rand(4, 3, 6, 6)
    passes.update(images)
    images = images.contiguous(memory_format=torch.channels_last)
    with pytest.warns(UserWarning, match=r"a pass runs eagerly, since its images are torch\.float32 with strides"):
        passes.update(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passes.update(images)
    passes.update(images[:3])  # another size runs eagerly without a warning, as documented
