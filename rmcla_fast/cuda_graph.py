"""Capture and replay of CUDA graphs: one attack step (`captured_work`), and a whole update (`CapturedUpdate`).

If a capture fails, everything that it left in PyTorch, the model and the optimizer is cleaned up.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# Runs before a capture, in which cuDNN picks its algorithms, modules compile and the optimizer creates its state:
WARM_UP = 3
Work = Callable[[], None]
Update = Callable[[Tensor, Tensor], Tensor]

# Graphs whose capture broke. They are never freed, since PyTorch's allocator may still use them.
_BROKEN: list[torch.cuda.CUDAGraph] = []


class CaptureFailed(Exception):
    """Something cannot be captured in a CUDA graph. The message says why in one sentence."""


def record(
    device: torch.device, stream: torch.cuda.Stream, work: Callable[[], Any]
) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Capture `work` on `stream` without running it, and return the graph and what `work` returned.

    PyTorch does not clean up after a capture that broke, for example because the host waited for the GPU. Without the
    clean-up here, the stream would stay current, the allocator would go on recording, and the random generator would
    refuse to draw.

    Raises:
        CaptureFailed: `work` cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    pool = torch.cuda.graph_pool_handle()
    try:
        # The outer context puts the current stream back, which the inner one does not if its capture broke.
        # "thread_local", so that a thread that pins batches at the same time does not break the capture.
        with (
            torch.cuda.stream(torch.cuda.current_stream(device)),
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            return graph, work()
    except Exception as error:  # each operation that a graph cannot hold raises its own kind
        raise CaptureFailed(first_line(_root_error(error) if _clean_up(graph, device, pool) else error)) from error


def _clean_up(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> bool:
    """Clean up after a capture that broke, and return True; return False if PyTorch has ended the capture itself."""
    index = torch.cuda.current_device() if device.index is None else device.index
    try:
        torch._C._cuda_endAllocateToPool(index, pool)
    except RuntimeError:  # the allocator is not recording
        return False
    torch._C._cuda_releasePool(index, pool)
    _BROKEN.append(graph)
    generator = torch.cuda.default_generators[index]
    generator.graphsafe_set_state(generator.clone_state())  # a copy belongs to no capture
    torch.cuda.synchronize(device)
    return True


def _root_error(error: BaseException) -> BaseException:
    """Return the error that broke the capture. The errors after it only say that the capture is broken."""
    while error.__context__ is not None:
        error = error.__context__
    return error


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """Raise CaptureFailed if the host waits for the GPU inside the `with` block, since that would break a capture."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():  # PyTorch warns that it does not detect every wait
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        raise CaptureFailed(first_line(error)) from error
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def first_line(error: BaseException) -> str:
    """Return the first line of the error's message, or the name of its class if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def captured_work(device: torch.device, work: Work) -> Work:
    """Run `work` a few times to warm up, capture it as a CUDA graph, and return the function that replays the graph.

    During the last warm-up, PyTorch's check for synchronisation is on. It finds a model whose control flow depends on
    values, before a capture would break. Errors of the model itself are raised unchanged.

    Raises:
        CaptureFailed: the model waits for the GPU, or cannot be captured for another reason.
    """
    with torch.cuda.device(device):
        stream: torch.cuda.Stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP - 1):
                work()
            with refusing_to_wait():
                work()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph, _ = record(device, stream, work)
    replay: Work = graph.replay
    return replay


class CapturedUpdate:
    """The function `update(images, labels)`, which is captured as a CUDA graph after a few calls and then replayed.

    The first calls are real updates on a side stream. When a batch of the same shapes comes for the fourth time, the
    update is captured on that stream. This batch, and every later batch of these shapes, is trained on by a replay. A
    batch of other shapes runs uncaptured. Learning rates are device tensors that the graph reads, so a schedule may
    still write floats into the optimizer's groups. If any other hyper-parameter changes, or if `load_state_dict`
    changes the optimizer's state, the update is captured again.

    Before a capture, `rehearse(images, labels)` runs the part of the update that runs the model, and changes nothing.
    It finds a model that waits for the GPU. A call raises CaptureFailed if the update cannot be captured. Nothing has
    changed then, and the batch was not trained on.
    """

    def __init__(
        self,
        update: Update,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        rehearse: Callable[[Tensor, Tensor], None] | None = None,
    ) -> None:
        self._update = update
        self._rehearse = rehearse
        self._optimizer = optimizer
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)
        self._rates = [torch.zeros((), dtype=torch.float32, device=device) for _ in optimizer.param_groups]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._loss: Tensor | None = None
        self._shapes: Any = None  # of the batch that the graph was captured for
        self._captured_with: Any = None
        self._warned = False
        self._warm: Counter[Any] = Counter()  # the number of uncaptured updates, by shapes
        optimizer.register_load_state_dict_post_hook(lambda _: self.forget())

    def forget(self) -> None:
        """Drop the graph, so that the next calls warm up and capture again."""
        self._graph, self._loss, self._inputs = None, None, []
        self._warm.clear()

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        self._bind_learning_rates()
        given = [images, labels]
        # Strides do not matter, since the batch is copied into the graph's own tensors.
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in given)
        hyper_parameters = self._hyper_parameters()
        if hyper_parameters != self._captured_with:
            self.forget()
            self._captured_with = hyper_parameters
        if self._graph is None and self._warm[shapes] == WARM_UP:
            self._capture(given)
            self._shapes = shapes
        if self._graph is None or shapes != self._shapes:
            if self._graph is not None and shapes[0][0] == self._shapes[0][0] and not self._warned:
                self._warned = True
                warnings.warn(
                    "an update runs uncaptured, since its batch has another shape or dtype than the captured one",
                    stacklevel=3,
                )
            loss = self._on_side_stream(images, labels)
            self._warm[shapes] += 1
            return loss
        assert self._loss is not None
        for ours, theirs in zip(self._inputs, given, strict=True):
            ours.copy_(theirs, non_blocking=True)
        self._graph.replay()
        return self._loss.clone()  # the graph writes the next loss into the same memory

    def _on_side_stream(self, images: Tensor, labels: Tensor) -> Tensor:
        current = torch.cuda.current_stream(self._device)
        with self._beside(current):
            loss = self._update(images, labels)
        loss.record_stream(current)
        return loss

    @contextmanager
    def _beside(self, current: torch.cuda.Stream) -> Iterator[None]:
        """Run the `with` block on the side stream, after the earlier work of `current` and before its later work."""
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def _capture(self, given: list[Tensor]) -> None:
        """Capture one update without running it. Gradients, images and activations lie in the graph's own memory.

        Raises:
            CaptureFailed: the update cannot be captured. Model and optimizer are as they were.
        """
        inputs = [tensor.clone(memory_format=torch.preserve_format) for tensor in given]
        images, labels = inputs
        if self._rehearse is not None:
            with self._beside(torch.cuda.current_stream(self._device)), refusing_to_wait():
                self._rehearse(images, labels)
        optimizer = self._optimizer
        optimizer.zero_grad(set_to_none=True)
        states = {parameter: dict(state) for parameter, state in optimizer.state.items()}
        try:
            self._graph, self._loss = record(self._device, self._stream, lambda: self._update(images, labels))
        except CaptureFailed:
            # States and gradients that the capture created were never written, and their memory is gone.
            optimizer.state.clear()
            optimizer.state.update(states)
            optimizer.zero_grad(set_to_none=True)
            raise
        self._inputs = inputs

    def _bind_learning_rates(self) -> None:
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            given = group["lr"]
            if given is not rate:
                rate.copy_(given) if isinstance(given, Tensor) else rate.fill_(given)
                group["lr"] = rate

    def _hyper_parameters(self) -> list[dict[str, Any]]:
        return [
            {
                name: value
                for name, value in group.items()
                if name not in ("params", "lr") and not _belongs_to_schedule(name)
            }
            for group in self._optimizer.param_groups
        ]


def _belongs_to_schedule(name: str) -> bool:
    """Return whether a learning-rate schedule keeps this entry of a group for its own use."""
    return name in ("initial_lr", "max_lr", "min_lr")


def resolve_capture(capture: str, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> str:
    """Return the capture to begin with.

    Raises:
        ValueError: "cuda-graph" is asked for, and the device, the model or the optimizer does not allow it.
    """
    if capture not in ("auto", "cuda-graph"):
        return capture
    reason = ""
    if device.type != "cuda":
        reason = f"the model is on {device}, and a CUDA graph needs a CUDA device"
    elif isinstance(model, DistributedDataParallel):
        reason = "DistributedDataParallel's reducer works on the host; use capture 'compile'"
    elif not is_fused(optimizer):
        reason = "the optimizer must be made with fused=True, so that it reads its learning rate on the device"
    elif not all(group.get("capturable", True) for group in optimizer.param_groups):
        reason = "the optimizer must be made with capturable=True"
    if capture == "cuda-graph" and reason:
        raise ValueError(f"capture 'cuda-graph' is not possible: {reason}")
    if capture == "auto" and reason:
        return "compile" if device.type == "cuda" else "eager"
    return "cuda-graph"


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return all(group.get("fused") for group in optimizer.param_groups)
