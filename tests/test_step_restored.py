"""An update that fails changes nothing, also if the model replaces its buffers or draws random numbers from torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from step_cases import network
from test_step_fallback import UPDATES, as_on_a_gpu, expected, failing, given, make, same, state, warning_once
from torch import Tensor, nn


class Drifting(nn.Module):
    """A model that replaces its buffer in every forward pass, where batch norm would write into it."""

    center: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.model = network()
        self.register_buffer("center", torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        self.center = 0.5 * self.center + images.detach().mean()
        return self.model(images - 0.1 * self.center)


class Expanded(nn.Module):
    """A model with a buffer whose elements share memory, so that it cannot be written."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.model = network()
        self.register_buffer("scale", torch.full((1,), 0.9).expand(10))

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images) * self.scale


class Dropping(nn.Module):
    """A model with dropout, which draws from torch's own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(self.model(images), 0.5, self.training)


@pytest.mark.parametrize("place", ["update", "backward"])
@pytest.mark.parametrize("model", [Drifting, Expanded, Dropping])
def test_a_failed_compilation_changes_nothing(
    model: type[nn.Module], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(7)
    networks = [model(), model()]
    torch.manual_seed(7)
    losses, end = expected(networks[0])
    as_on_a_gpu(monkeypatch, "compile")
    monkeypatch.setattr(torch, "compile", failing(place))
    step = make(networks[1], "auto")
    torch.manual_seed(7)
    with warning_once("training goes on with capture 'eager'"):
        assert [float(step(*given(n))) for n in range(UPDATES)] == losses
    assert same(state(step), end)


@pytest.mark.parametrize("model", [Drifting, Expanded])
def test_a_rehearsal_changes_no_buffer(model: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    step = make(model(), "eager")
    step(*given(0))
    before = state(step)
    step._rehearse(*given(1))
    assert same(state(step), before)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_an_interruption_of_the_first_update_changes_nothing(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch, "compile")

    def stopped(*_: Any, **__: Any) -> Tensor:
        raise kind

    step = make(network(), "compile")
    before = state(step)
    with monkeypatch.context() as patch:
        patch.setattr(step._gradients, "_backward", stopped)
        with pytest.raises(kind):
            step(*given(0))
    assert same(state(step), before)


def test_auto_keeps_its_capture_after_a_bad_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch, "compile")
    step = make(network(), "auto")
    images, labels = given(0)
    with pytest.raises(ValueError, match="labels must lie in"):
        step(images, labels + 10)
    assert step.capture == "compile"
    assert not step._passes.eager
    step(images, labels)
    assert step.capture == "compile"


def test_an_update_of_a_model_with_an_expanded_buffer_can_be_skipped() -> None:
    step = make(Expanded(), "eager", skip_nonfinite=True)
    images, labels = given(0)
    step(torch.full_like(images, float("nan"), dtype=torch.float32), labels)
    assert int(step.skipped) == 1  # type: ignore[arg-type]
