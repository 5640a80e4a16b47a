"""CUDA graphs captured by hand: of an attack's step (`captured_work`) and of a whole update (`CapturedUpdate`).

Where a capture fails, nothing of the attempt is left behind.
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

WARM_UP = 3  # runs before a capture: cuDNN picks its algorithms, modules compile, the optimizer makes its state
Work = Callable[[], None]
Update = Callable[[Tensor, Tensor], Tensor]

_BROKEN: list[torch.cuda.CUDAGraph] = []  # PyTorch's allocator may ask a graph whose capture broke for ever


class CaptureFailed(Exception):
    """Why something cannot be captured, in one sentence."""


def record(
    device: torch.device, stream: torch.cuda.Stream, work: Callable[[], Any]
) -> tuple[torch.cuda.CUDAGraph, Any]:
    """`work` as a graph, captured on `stream` without being run, and what it returned; CaptureFailed if it cannot be.

    PyTorch does not clean up where the capture itself broke, as it does when the host waits within it: then the stream
    would stay current, the allocator would go on recording, and the random generator would refuse to draw.
    """
    graph = torch.cuda.CUDAGraph()
    pool = torch.cuda.graph_pool_handle()
    try:
        # The outer context puts the current stream back, which the inner one does not if its capture broke.
        # "thread_local": a thread that pins batches meanwhile must not break the capture.
        with (
            torch.cuda.stream(torch.cuda.current_stream(device)),
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            return graph, work()
    except Exception as error:  # whatever a model does that no graph can hold
        raise CaptureFailed(first_line(_first(error) if _cleaned_up(graph, device, pool) else error)) from error


def _cleaned_up(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> bool:
    """Whether there was anything to clean up: not where the capture ended as it should, only too early."""
    index = torch.cuda.current_device() if device.index is None else device.index
    try:
        torch._C._cuda_endAllocateToPool(index, pool)
    except RuntimeError:  # it has ended
        return False
    torch._C._cuda_releasePool(index, pool)
    _BROKEN.append(graph)
    generator = torch.cuda.default_generators[index]
    generator.graphsafe_set_state(generator.clone_state())  # a copy is in no capture
    torch.cuda.synchronize(device)
    return True


def _first(error: BaseException) -> BaseException:
    """The error that broke the capture; those that followed say no more than that it is broken."""
    while error.__context__ is not None:
        error = error.__context__
    return error


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """CaptureFailed where the host waits for the GPU inside: a capture would break there."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():  # PyTorch says once that the check does not know every way to wait
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        raise CaptureFailed(first_line(error)) from error
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def first_line(error: BaseException) -> str:
    """What an error says, or what it is called."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def captured_work(device: torch.device, work: Work) -> Work:
    """Return `work`, once it is warm, as one CUDA graph.

    CaptureFailed for a model that waits for the GPU or refuses to be captured.

    The last warm-up runs with PyTorch's check for synchronisation on, so that a model whose control flow depends on its
    values is found out before a capture breaks in the middle. Errors of the model itself come out as they are.
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
    """`update(images, labels)`, replayed as one CUDA graph once it is warm.

    The first calls are real updates on a side stream; the first shapes that come a fourth time are captured there and
    replayed, as they are ever after. A batch of other shapes runs uncaptured. Learning rates are device tensors that
    the graph reads: a schedule may still write floats into the optimizer's groups. A change of any other
    hyper-parameter, or of the optimizer's state by `load_state_dict`, captures anew.

    `rehearse`, of the same arguments, does before a capture what the update asks of the model, and changes nothing: a
    model that waits for the GPU is found there. A call raises CaptureFailed where the update cannot be captured; the
    batch was not trained on then, and nothing has changed.
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
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._loss: Tensor | None = None
        self._shapes: Any = None  # that it was captured for
        self._captured_with: Any = None
        self._warned = False
        self._warm: Counter[Any] = Counter()  # updates so far, by their shapes
        optimizer.register_load_state_dict_post_hook(lambda _: self.forget())

    def forget(self) -> None:
        """Drops the graph; the next calls warm up and capture again."""
        self._graph, self._loss, self._inputs = None, None, []
        self._warm.clear()

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        self._bind_learning_rates()
        given = [images, labels]
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in given)  # any strides are copied into the graph's
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
                    "an update runs uncaptured, since its batch differs from those that the graph was captured for in "
                    "shape or dtype",
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
        """On the side stream, after what the current one holds and before what it gets next."""
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def _capture(self, given: list[Tensor]) -> None:
        """Records one update without running it. Gradients, images and activations live in the graph's own memory.

        CaptureFailed leaves model and optimizer as they were.
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
            # A state or gradient that the capture made was never written, and its memory is gone.
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
            {name: value for name, value in group.items() if name not in ("params", "lr") and not _is_note(name)}
            for group in self._optimizer.param_groups
        ]


def _is_note(name: str) -> bool:
    """What schedules write into a group for themselves."""
    return name in ("initial_lr", "max_lr", "min_lr")


def resolve_capture(capture: str, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> str:
    """The capture to begin with; ValueError where "cuda-graph" is asked for and cannot be had."""
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
        raise ValueError(f"capture 'cuda-graph' cannot be had: {reason}")
    if capture == "auto" and reason:
        return "compile" if device.type == "cuda" else "eager"
    return "cuda-graph"


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return all(group.get("fused") for group in optimizer.param_groups)
