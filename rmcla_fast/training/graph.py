"""One hand-captured CUDA graph for a whole update: attack, backward, optimizer, average, noise and learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Update = Callable[[Tensor, Tensor, Tensor | None], Tensor]
WARM_UP = 3  # updates before the capture: cuDNN picks its algorithms, modules compile, the optimizer makes its state


class CapturedUpdate:
    """`update(images, labels, start)`, replayed as one CUDA graph once it is warm.

    The first calls are real updates on a side stream; the next one of the same shapes is captured there and replayed,
    as is every later one. A batch of other shapes runs uncaptured. Learning rates are device tensors that the graph
    reads: a schedule may still write floats into the optimizer's groups. A change of any other hyper-parameter, or of
    the optimizer's state by `load_state_dict`, captures anew.
    """

    def __init__(self, update: Update, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._update = update
        self._optimizer = optimizer
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._loss: Tensor | None = None
        self._key: Any = None
        self._warm = 0
        optimizer.register_load_state_dict_post_hook(lambda _: self.forget())

    def forget(self) -> None:
        """Drops the graph; the next calls warm up and capture again."""
        self._graph, self._loss, self._inputs, self._key, self._warm = None, None, [], None, 0

    def __call__(self, images: Tensor, labels: Tensor, start: Tensor | None = None) -> Tensor:
        self._bind_learning_rates()
        given = [images, labels] if start is None else [images, labels, start]
        shapes = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in given]
        key = (shapes, self._hyper_parameters())
        if self._graph is not None and key != self._key:
            if shapes != self._key[0]:
                return self._on_side_stream(images, labels, start)
            self.forget()
        if self._graph is None:
            if key != self._key:
                self._key, self._warm = key, 0
            if self._warm < WARM_UP:
                self._warm += 1
                return self._on_side_stream(images, labels, start)
            self._capture(given)
        assert self._graph is not None
        assert self._loss is not None
        for ours, theirs in zip(self._inputs, given, strict=True):
            ours.copy_(theirs, non_blocking=True)
        self._graph.replay()
        return self._loss.clone()  # the graph writes the next loss into the same memory

    def _on_side_stream(self, images: Tensor, labels: Tensor, start: Tensor | None) -> Tensor:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            loss = self._update(images, labels, start)
        current.wait_stream(self._stream)
        loss.record_stream(current)
        return loss

    def _capture(self, given: list[Tensor]) -> None:
        """Records one update without running it. Gradients, images and activations live in the graph's own memory."""
        self._inputs = [tensor.clone(memory_format=torch.preserve_format) for tensor in given]
        self._optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            images, labels, *start = self._inputs
            self._loss = self._update(images, labels, start[0] if start else None)
        self._graph = graph

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
