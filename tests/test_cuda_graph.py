"""Tests of the captured update and of failed captures, without a GPU: streams and captures are replaced."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from step_cases import batch, network, sgd
from test_step_fallback import CPU, as_on_a_gpu, never
from torch import Tensor

from rmcla_fast import cuda_graph
from rmcla_fast.cuda_graph import CapturedUpdate, CaptureFailed, resolve_capture


def test_the_graph_needs_an_optimizer_that_can_be_captured() -> None:
    model, cuda = network(), torch.device("cuda")
    adam = torch.optim.Adam(model.parameters(), fused=True)
    assert resolve_capture("auto", model, adam, cuda) == "compile"
    with pytest.raises(ValueError, match="is not possible: the optimizer must be made with capturable=True"):
        resolve_capture("cuda-graph", model, adam, cuda)
    assert resolve_capture("auto", model, sgd(model, fused=True), cuda) == "cuda-graph"


@pytest.mark.parametrize("sizes", [[4, 4, 3] * 3, [3] + [4, 4, 3] * 3, [3, 4] * 4], ids=str)
def test_updates_are_captured_in_short_epochs_and_after_a_resume(
    sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warm-up ends even with three updates an epoch. The test records what is run, captured and replayed."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    optimizer = sgd(network())
    update = CapturedUpdate(lambda *batch: torch.zeros(()), optimizer, torch.device("cpu"))
    done: list[str] = []

    def capture(given: list[Tensor]) -> None:
        done.append("capture")
        update._inputs, update._loss = [tensor.clone() for tensor in given], torch.zeros(())
        update._graph = type("Graph", (), {"replay": lambda self: done.append(f"replay {len(given[0])}")})()

    monkeypatch.setattr(update, "_capture", capture)
    monkeypatch.setattr(update, "_on_side_stream", lambda images, *rest: done.append(f"run {len(images)}"))
    for size in sizes:
        update(*batch(size))
    captured = max(sizes) if sizes.count(4) > sizes.count(3) else 3
    place = done.index("capture")
    assert done[:place].count(f"run {captured}") == 3
    assert f"replay {captured}" in done[place:]
    assert f"run {captured}" not in done[place:]
    optimizer.param_groups[0]["momentum"] = 0.5
    update(*batch(captured))
    assert done[-1] == f"run {captured}"


def test_a_captured_update_accepts_any_strides_and_warns_about_another_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    update = CapturedUpdate(lambda *batch: torch.zeros(()), sgd(network()), torch.device("cpu"))
    done: list[str] = []

    def capture(given: list[Tensor]) -> None:
        update._inputs, update._loss = [tensor.clone() for tensor in given], torch.zeros(())
        update._graph = type("Graph", (), {"replay": lambda self: done.append("replay")})()

    monkeypatch.setattr(update, "_capture", capture)
    monkeypatch.setattr(update, "_on_side_stream", lambda *batch: done.append("run"))
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    for given in (images, images.contiguous(memory_format=torch.channels_last)) * 3:
        update(given, labels)
        if update._graph is not None:
            assert torch.equal(update._inputs[0], given)
    assert done == ["run"] * 3 + ["replay"] * 3
    with pytest.warns(UserWarning, match="an update runs uncaptured, since its batch has another shape"):
        update(images.double(), labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update(images.double(), labels)
    assert done[6:] == ["run"] * 2


def test_optimizer_states_made_by_a_failed_capture_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture runs no kernel, but it makes states and gradients, whose memory is freed with the capture."""
    as_on_a_gpu(monkeypatch, "cuda-graph")
    model = network()
    optimizer = sgd(model, fused=True)
    parameters = list(model.parameters())
    optimizer.state[parameters[0]]["momentum_buffer"] = kept = torch.ones(1)

    def record(*_: Any) -> Any:
        optimizer.state[parameters[1]]["momentum_buffer"] = torch.full((1,), torch.nan)
        parameters[1].grad = torch.full_like(parameters[1], torch.nan)
        raise CaptureFailed("broken")

    monkeypatch.setattr(cuda_graph, "record", record)
    captured = cuda_graph.CapturedUpdate(never, optimizer, CPU)
    with pytest.raises(CaptureFailed):
        captured._capture(list(batch(4)))
    assert list(optimizer.state) == [parameters[0]]
    assert optimizer.state[parameters[0]]["momentum_buffer"] is kept
    assert parameters[1].grad is None


@pytest.mark.parametrize("device", ["cuda:0", "cuda"])
@pytest.mark.parametrize("broken", [True, False], ids=["broken", "ended"])
def test_a_failed_capture_is_cleaned_up(broken: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like `torch.cuda.graph`, `Graph` ends the capture first, and restores the stream only if that succeeds."""
    done: list[str] = []
    current = ["main"]

    @contextmanager
    def stream(name: str) -> Iterator[None]:
        before, current[0] = current[0], name
        try:
            yield
        finally:
            current[0] = before

    class Graph:
        def __init__(self, *_: Any, **options: Any) -> None:
            assert options["pool"] == (0, 1)

        def __enter__(self) -> None:
            current[0] = "side"

        def __exit__(self, *_: Any) -> None:
            if broken:
                raise RuntimeError("operation failed due to a previous error during capture")
            current[0] = "main"

    def end(index: int, pool: Any) -> None:
        assert index == 0  # pybind refuses None, which is the index of "cuda"
        if not broken:
            raise RuntimeError("not recording to this pool")
        done.append("end")

    monkeypatch.setattr(torch.cuda, "default_generators", (FakeGenerator(done),))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[0])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append("synchronize"))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *_: done.append("release"), raising=False)
    monkeypatch.setattr(cuda_graph, "_BROKEN", [])

    def work() -> None:
        assert current[0] == "side"
        raise ValueError("the model waits")

    with pytest.raises(CaptureFailed, match="the model waits"):
        cuda_graph.record(torch.device(device), "side", work)  # type: ignore[arg-type]
    assert current == ["main"]
    assert done == (["end", "release", "generator", "synchronize"] if broken else [])
    assert len(cuda_graph._BROKEN) == broken


class FakeGenerator:
    def __init__(self, done: list[str]) -> None:
        self.done = done

    def clone_state(self) -> FakeGenerator:
        return FakeGenerator(self.done)

    def graphsafe_set_state(self, other: FakeGenerator) -> None:
        assert other is not self
        self.done.append("generator")
