"""A model that cannot be compiled or captured causes one message, and no update is lost or done twice.

The tests need no GPU. They replace streams by nothing, torch.compile by the function that it gets, and the capture by
what each test needs.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from step_cases import RefuseHostReads, batch, network, recipe, sgd
from torch import Tensor, nn

from rmcla_fast import cuda_graph
from rmcla_fast.cuda_graph import CaptureFailed
from rmcla_fast.errors import UserError
from rmcla_fast.training import ExponentialAverage, TrainStep
from rmcla_fast.training import step as step_module

Compiled = Callable[[Tensor], Tensor]
UPDATES = 5
CPU = torch.device("cpu")


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Raise CaptureFailed where the host reads a tensor, in place of PyTorch's check, which needs a GPU."""
    try:
        with RefuseHostReads():
            yield
    except AssertionError as error:
        raise CaptureFailed(str(error)) from error


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, captured: str) -> None:
    """Make every step choose the capture `captured`, compile nothing, and use no streams."""
    monkeypatch.setattr(step_module, "resolve_capture", lambda *_: captured)
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(cuda_graph.CapturedUpdate, "_beside", lambda self, current: nullcontext())
    monkeypatch.setattr(cuda_graph, "refusing_to_wait", no_host_reads)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: None)


def make(model: nn.Module, capture: str, **options: Any) -> TrainStep:
    average = ExponentialAverage(model, 0.9)
    return TrainStep(
        model, sgd(model, fused=True), recipe("r-mc-la+"), capture=capture, seed=3, ema=average, accumulate=2, **options
    )


def given(n: int) -> tuple[Tensor, Tensor]:
    return batch(8, seed=n)


def state(step: TrainStep) -> list[Any]:
    assert step.ema is not None
    return copy.deepcopy(
        [
            *step.model.state_dict().values(),
            *step.ema.state_dict().values(),
            step.rng,
            *[value for values in step.optimizer.state.values() for value in values.values()],
        ]
    )


def same(ours: list[Any], theirs: list[Any]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def expected(model: nn.Module) -> tuple[list[float], list[Any]]:
    eager = make(model, "eager")
    return [float(eager(*given(n))) for n in range(UPDATES)], state(eager)


@contextmanager
def warning_once(words: str) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    assert [str(one.message) for one in said if words in str(one.message)] == [str(one.message) for one in said]
    assert len(said) == 1


class FailsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this")


def failing(place: str) -> Callable[..., Compiled]:
    """Return a torch.compile whose functions fail in the "attack", the "update" or the "backward" of the update."""

    def compiler(forward: Compiled, **_: Any) -> Compiled:
        def compiled(images: Tensor) -> Tensor:
            logits = forward(images)
            attacks = "detached" in forward.__name__
            if place == ("attack" if attacks else "update"):
                raise RuntimeError("no kernel for this\nand more lines")
            return FailsInBackward.apply(logits) if place == "backward" and not attacks else logits

        return compiled

    return compiler


@pytest.mark.parametrize("captured", ["compile", "cuda-graph"])
@pytest.mark.parametrize("place", ["attack", "update", "backward"])
def test_auto_falls_back_to_eager_if_the_model_cannot_be_compiled(
    place: str, captured: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, end = expected(network())
    as_on_a_gpu(monkeypatch, captured)
    monkeypatch.setattr(torch, "compile", failing(place))
    step = make(network(), "auto")
    with warning_once(
        "training goes on with capture 'eager', since torch.compile cannot compile the model: no kernel for this"
    ):
        assert [float(step(*given(n))) for n in range(UPDATES)] == losses
    assert step.capture == "eager"
    assert same(state(step), end)


@pytest.mark.parametrize("captured", ["compile", "cuda-graph"])
def test_a_requested_compilation_that_fails_raises_one_sentence_and_changes_nothing(
    captured: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.exc import TorchDynamoException

    losses, end = expected(network())
    as_on_a_gpu(monkeypatch, captured)

    def compiler(forward: Compiled, **_: Any) -> Compiled:
        def compiled(images: Tensor) -> Tensor:
            logits = forward(images)
            if broken and "detached" not in forward.__name__:
                raise TorchDynamoException("no kernel for this")
            return logits

        return compiled

    broken = True
    monkeypatch.setattr(torch, "compile", compiler)
    step = make(network(), captured)
    before = state(step)
    words = f"capture '{captured}' is not possible, since torch.compile cannot compile the model: no kernel for this"
    with pytest.raises(UserError, match=words):
        step(*given(0))
    assert same(state(step), before)
    assert step.calls == 0
    broken = False
    monkeypatch.setattr(cuda_graph, "WARM_UP", UPDATES)
    assert [float(step(*given(n))) for n in range(UPDATES)] == losses
    assert same(state(step), end)


def test_an_error_of_the_update_itself_is_raised_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch, "compile")
    images, labels = given(0)
    for capture in ("auto", "compile"):
        step = make(network(), capture)
        before = state(step)
        with pytest.raises(ValueError, match="labels must lie in"):
            step(images, labels + 10)
        if capture == "compile":
            assert same(state(step), before)


class Branching(nn.Module):
    """A model whose control flow waits for values, so that no graph can hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits if bool(logits.sum() > -1e9) else -logits


def refused(device: Any, stream: Any, work: Callable[[], Tensor]) -> Any:
    raise CaptureFailed("operation not permitted when stream is capturing")


def never(*_: Any) -> Any:
    raise AssertionError("a model that waits must be found before the capture")


@pytest.mark.parametrize(
    ("model", "record", "reason"),
    [
        (Branching, never, "aten._local_scalar_dense.default reads a tensor on the host"),
        (network, refused, "operation not permitted when stream is capturing"),
    ],
)
def test_auto_falls_back_to_compile_if_the_update_cannot_be_captured(
    model: Callable[[], nn.Module], record: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, end = expected(model())
    as_on_a_gpu(monkeypatch, "cuda-graph")
    monkeypatch.setattr(cuda_graph, "record", record)
    step = make(model(), "auto")
    with warning_once(
        f"training goes on with capture 'compile', since the update cannot be captured in a CUDA graph: {reason}"
    ):
        assert [float(step(*given(n))) for n in range(UPDATES)] == losses
    assert step.capture == "compile"
    assert same(state(step), end)


@pytest.mark.parametrize(("model", "record"), [(Branching, never), (network, refused)])
def test_a_requested_capture_that_fails_raises_one_sentence_and_changes_nothing(
    model: Callable[[], nn.Module], record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch, "cuda-graph")
    monkeypatch.setattr(cuda_graph, "record", record)
    step = make(model(), "cuda-graph")
    for n in range(cuda_graph.WARM_UP):
        step(*given(n))
    before = state(step)
    with pytest.raises(UserError, match="capture 'cuda-graph' is not possible, since the update cannot be captured"):
        step(*given(cuda_graph.WARM_UP))
    assert same(state(step), before)
    assert step.calls == cuda_graph.WARM_UP
    assert step.capture == "cuda-graph"


def test_a_rehearsal_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch, "cuda-graph")
    step = make(nn.Sequential(network(), nn.Dropout(0.5)), "cuda-graph", skip_nonfinite=True)
    step(*given(0))
    before, drawn = state(step), torch.get_rng_state()
    step._rehearse(*given(1))
    assert same(state(step), before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in step.model.parameters())
