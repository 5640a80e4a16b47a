"""The network's two passes: the attack's has no weight gradients, and the update's has no input gradient."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rmcla_fast.ops.tensors import with_own_strides
from rmcla_fast.precision import PRECISIONS

Signature = tuple[torch.Size, tuple[int, ...], torch.dtype]


class Passes:
    """`attack(images)` and `update(images)` give logits, eager or compiled, in one precision and memory layout.

    Eager autograd prunes what is not asked for; a compiled module with trainable parameters does not. So the compiled
    attack sees detached views of them, which share their storage: it follows every update. What is compiled is compiled
    for the largest batch's shape, since a run may be resumed at an epoch's last one; the others run eager.
    """

    def __init__(self, model: nn.Module, precision: str, compiled: bool) -> None:
        self.model = model
        # Without the wrapper the attack neither synchronises gradients nor broadcasts buffers.
        self.attacked: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        self.device = next(model.parameters()).device
        self._dtype = PRECISIONS[precision]
        channels_last = any(
            parameter.dim() == 4
            and parameter.is_contiguous(memory_format=torch.channels_last)
            and not parameter.is_contiguous()
            for parameter in model.parameters()
        )
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._compiled_for: Signature | None = None
        self._compiled: tuple[Any, Any] | None = None
        self._warned = False
        self.eager = False  # whether what was compiled is left alone
        if compiled:
            # The whole update is captured by hand where it is captured at all. Every other option is as the process has
            # it in torch._inductor.config. On an H100 combo_kernels gained 3 %, less than two processes differ by;
            # programmatic dependent launch gained nothing, and cooperative_reductions lost (docs/h100.md).
            options: dict[str, Any] = {"triton.cudagraphs": False}
            self._compiled = (
                torch.compile(self._detached_forward, dynamic=False, options=options),
                torch.compile(self._forward, dynamic=False, options=options),
            )

    def layout(self, images: Tensor) -> Tensor:
        """Images in the weights' layout, and precise enough for the ball: a bf16 pixel near 1 is 6 % of epsilon off.

        Of one shape they always have the same strides, so that what was compiled for the first batch fits the others.
        """
        images = with_own_strides(images.contiguous(memory_format=self._memory_format))
        return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images

    def attack(self, images: Tensor) -> Tensor:
        """Logits from which autograd can reach the images."""
        compiled = self._compiled_pass(0, images)
        if compiled is not None:
            return compiled(images)
        with self._autocast():
            return self.attacked(images)

    def update(self, images: Tensor) -> Tensor:
        """Logits from which autograd can reach the weights."""
        compiled = self._compiled_pass(1, images)
        return compiled(images) if compiled is not None else self._forward(images)

    def _forward(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self.model(images)

    def _detached_forward(self, images: Tensor) -> Tensor:
        weights = {name: parameter.detach() for name, parameter in self.attacked.named_parameters()}
        with self._autocast():
            return torch.func.functional_call(self.attacked, weights, (images,))

    def _autocast(self) -> AbstractContextManager[Any]:
        """One context a pass, so that weights cast for one pass are never kept for the next."""
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)

    def _compiled_pass(self, index: int, images: Tensor) -> Any:
        if self._compiled is None or self.eager:
            return None
        signature = (images.shape, images.stride(), images.dtype)
        if self._compiled_for is None or len(images) > self._compiled_for[0][0]:
            self._compiled_for = signature
        if signature == self._compiled_for:
            return self._compiled[index]
        if images.shape == self._compiled_for[0] and not self._warned:
            self._warned = True
            warnings.warn(
                f"a pass runs eager, since its images are {images.dtype} with strides {images.stride()} and it was "
                f"compiled for {self._compiled_for[2]} with strides {self._compiled_for[1]}",
                stacklevel=2,
            )
        return None
