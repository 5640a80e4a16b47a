"""The network's two forward passes: the attack's needs no weight gradients, and the update's no image gradient."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rmcla_fast.any_model import logits_of, no_gradient, own_inputs, weight_dtype
from rmcla_fast.ops.tensors import with_own_strides
from rmcla_fast.precision import PRECISIONS

Signature = tuple[torch.Size, tuple[int, ...], torch.dtype]


class Passes:
    """The passes `attack(images)` and `update(images)`, eager or compiled, in one precision and memory layout.

    The model gets a copy of the images, in the type of its weights unless it runs under autocast.
    Eager autograd computes only the gradients that are asked for. A compiled module with trainable parameters computes
    theirs, too. So the compiled attack sees detached views of the parameters, which share their storage and therefore
    follow every update. Both passes are compiled for the largest batch's shape, because a run may be resumed at an
    epoch's last, smaller batch. Batches of other shapes run eagerly.
    """

    def __init__(self, model: nn.Module, precision: str, compiled: bool) -> None:
        self.model = model
        # Without the wrapper the attack neither synchronises gradients nor broadcasts buffers.
        self.attacked: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        self.device = next(model.parameters()).device
        self._dtype = PRECISIONS[precision]
        self._input_dtype = weight_dtype(model) if self._dtype == torch.float32 else None
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
        self.eager = False  # True: run eagerly, even if there are compiled passes
        if compiled:
            # Inductor's own CUDA graphs are off, since the whole update is captured by hand. Its other options are as
            # the process has set them in torch._inductor.config. On an H100 combo_kernels gained 3 %, programmatic
            # dependent launch gained nothing, and cooperative_reductions lost (docs/h100.md).
            options: dict[str, Any] = {"triton.cudagraphs": False}
            self._compiled = (
                torch.compile(self._detached_forward, dynamic=False, options=options),
                torch.compile(self._forward, dynamic=False, options=options),
            )

    def layout(self, images: Tensor) -> Tensor:
        """Return the images in the weights' layout, in bytes or in float32 and wider.

        A bfloat16 pixel near 1 would be off by 6 % of epsilon. Images of one shape always get the same strides, so that
        what was compiled for the first batch fits the others.
        """
        images = with_own_strides(images.contiguous(memory_format=self._memory_format))
        return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images

    def attack(self, images: Tensor) -> Tensor:
        """Return logits from which autograd can reach the images."""
        inputs = own_inputs(images, self._input_dtype)
        compiled = self._compiled_pass(0, inputs)
        if compiled is not None:
            return logits_of(compiled(inputs), images)
        with self._autocast():
            return logits_of(self.attacked(inputs), images)

    def update(self, images: Tensor) -> Tensor:
        """Return logits from which autograd can reach the weights."""
        inputs = own_inputs(images, self._input_dtype)
        logits = logits_of((self._compiled_pass(1, inputs) or self._forward)(inputs), images)
        if not logits.requires_grad:
            raise no_gradient("the weights")
        return logits

    def _forward(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self.model(images)

    def _detached_forward(self, images: Tensor) -> Tensor:
        weights = {name: parameter.detach() for name, parameter in self.attacked.named_parameters()}
        with self._autocast():
            return torch.func.functional_call(self.attacked, weights, (images,))

    def _autocast(self) -> AbstractContextManager[Any]:
        """Return a context for one pass, so that weights cast for a pass are never kept for the next."""
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
                f"a pass runs eagerly, since its images are {images.dtype} with strides {images.stride()} and it was "
                f"compiled for {self._compiled_for[2]} with strides {self._compiled_for[1]}",
                stacklevel=2,
            )
        return None
