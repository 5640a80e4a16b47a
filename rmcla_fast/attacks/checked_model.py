"""`checked` gives a model to an attack: its logits are checked, and afterwards the model is as it was.

Mode, weights, buffers, gradients, requires-grad flags and the global random states are restored.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rmcla_fast.any_model import (
    attack_mode,
    check_model,
    image_gradient,
    logits_of,
    outside_inference_mode,
    own_inputs,
    weight_dtype,
)
from rmcla_fast.ops.tensors import finite_rows
from rmcla_fast.precision import PRECISIONS, check_weights, require_precision

MISCLASSIFIED = -1
"""The predicted class if a logit is NaN or infinite; no label equals it."""

ROWS = 8
"""The model is always run on a multiple of so many images.

In other batches, most of PyTorch's matrix kernels for a CPU round some rows differently. Over a hundred steps such a
difference can decide whether an image is fooled, and the verdict would depend on the batch that the image came in.
"""


@contextmanager
def checked(model: nn.Module, *, num_classes: int | None = None, precision: str = "fp32") -> Iterator[CheckedModel]:
    """Yield the model as a `CheckedModel`, and leave the model as it was after the `with` block.

    Args:
        model: maps images in [0, 1] to logits; it runs in evaluation mode.
        num_classes: the number of logits that it must return for an image; None accepts any number from 2 up.
        precision: "fp32", "bf16" or "fp16"; see `CheckedModel`.
    """
    with untouched(model):
        yield CheckedModel(model, num_classes, precision)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Freeze the model in evaluation mode inside the `with` block, and restore all that an attack may change.

    Parameters are frozen because no attack needs the gradient of a weight, and because the libraries that ask for one
    would leave it behind. The global random states, the gradient mode and the trace function are restored, too, since
    the libraries set all of them. All of this happens after an error as well.
    """
    check_model(model)
    # `outside_inference_mode` copies weights that were made in inference mode, and nothing may change the weights.
    own = [one for one in model.parameters() if not one.is_inference()]
    parameters = [(one, one.data, one.requires_grad, one.grad) for one in own]
    python_state, numpy_state, trace = random.getstate(), np.random.get_state(), sys.gettrace()
    gpus = range(torch.cuda.device_count())  # fork_rng warns if there are several and none is named
    try:
        for parameter, *_ in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        with (
            attack_mode(model, "eval"),
            torch.random.fork_rng(devices=gpus),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            yield
    finally:
        for parameter, data, requires_grad, grad in parameters:
            parameter.data = data  # `Examples` may have stored the weights in another memory layout
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        if sys.gettrace() is not trace:  # AutoAttack unsets it when it checks for dynamic defences
            sys.settrace(trace)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


class CheckedModel(nn.Module):
    """The model, run in its own floating-point type, whose output is checked to be logits (B, C) with C >= 2.

    Attacks compute images in float32. The images are converted to the model's type here, inside the autograd graph; a
    model under the caller's autocast converts them by itself. With `precision` "bf16" or "fp16" the model runs
    under an autocast of this class, and its logits are converted to float32. Its weights must then be float32 or of
    that type, since autocast leaves float64 as it is.
    """

    def __init__(self, model: nn.Module, num_classes: int | None = None, precision: str = "fp32") -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        self._run = outside_inference_mode(model)
        self.dtype = weight_dtype(model)
        self.precision = check_weights(precision, self.dtype)
        if precision != "fp32" and self.dtype is not None:
            require_precision(precision, next(model.parameters()).device)
        self.training = getattr(model, "training", False)  # not by `train`, which an exported program refuses

    def device_for(self, images: Tensor) -> torch.device:
        """Return the device of the model, or that of the images if the model has no parameter."""
        parameter = next(self.model.parameters(), None)
        return images.device if parameter is None else parameter.device

    def forward(self, images: Tensor) -> Tensor:
        missing = -len(images) % ROWS
        if not missing:
            return self._logits(images)
        return self._logits(functional.pad(images, (0, 0) * (images.dim() - 1) + (0, missing)))[: len(images)]

    def _logits(self, images: Tensor) -> Tensor:
        by_itself = self.precision == "fp32" and torch.is_autocast_enabled(images.device.type)
        computes_in = self.dtype if self.precision == "fp32" else PRECISIONS[self.precision]
        if by_itself:
            computes_in = torch.get_autocast_dtype(images.device.type)
        scale = _GradientScale() if computes_in == torch.float16 and _differentiated(images) else None
        inputs = images if scale is None else scale.with_unscaling_hook(images)
        inputs = own_inputs(inputs, self.dtype)
        with self._autocast(images.device.type):
            logits = logits_of(self._run(inputs), images)
        if self.num_classes is not None and logits.shape[1] != self.num_classes:
            raise ValueError(f"model must have {self.num_classes} classes, as the data have; got {logits.shape[1]}")
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        elif logits.dtype == torch.float64 and images.dtype != torch.float64:  # the losses are float32
            logits = logits.masked_fill(~finite_rows(logits.detach().float())[:, None], float("inf"))
        return logits if scale is None else scale.with_scaling_hook(logits)

    def _autocast(self, device_type: str) -> AbstractContextManager[object]:
        """Return an autocast without a cache of cast weights: each replay of a CUDA graph must cast them again."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device_type, dtype=PRECISIONS[self.precision], cache_enabled=False)

    def image_gradient(self, images: Tensor, direction_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradient (B, C, H, W) of the logits along a direction, with respect to the images.

        `direction_of` gives the direction (B, classes) for these logits. The model runs once. A gradient that is NaN
        becomes 0, so that its pixel stays in place.

        Raises:
            ValueError: autograd finds no way from the logits to the images.
        """
        images = images.detach().requires_grad_(True)
        logits = self(images)
        direction = direction_of(logits.detach())
        return image_gradient(logits, images, direction).nan_to_num(nan=0.0)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Return (B,) int64, the classes of the largest logits; -1 where a logit is NaN or infinite."""
        return predictions(self(images))


def _differentiated(tensor: Tensor) -> bool:
    return torch.is_grad_enabled() and tensor.requires_grad


class _GradientScale:
    """The scale of the gradient in a float16 network: at the logits, the largest element of each image becomes 1.

    The gradient of a confident prediction can be below the smallest float16 number (6e-8). It would become 0 in the
    network, the attack would not move, and the model would look robust. Outside the network, float32 can represent it.
    So it is scaled at the logits and scaled back at the images. Each image has its own scale, since an image that the
    attack no longer moves must not decide the scale of the others. This is exact for first derivatives of a network
    that computes the logits of each image independently.
    """

    def __init__(self) -> None:
        self._largest = torch.ones(())  # (B,) once a backward pass has reached the logits

    def with_scaling_hook(self, logits: Tensor) -> Tensor:
        """Return the logits with a hook that scales the gradient as it enters the network."""
        if not _differentiated(logits):
            return logits
        logits.register_hook(self._scale)
        return logits.view_as(logits)

    def with_unscaling_hook(self, images: Tensor) -> Tensor:
        """Return the images with a hook that scales their gradient back, except for float16 images.

        Float16 images could not hold the gradient, so theirs stays scaled.
        """
        inputs = images.view_as(images)
        if images.dtype != torch.float16:
            inputs.register_hook(self._undo)
        return inputs

    def _undo(self, gradient: Tensor) -> Tensor:
        return gradient * self._largest.to(gradient.dtype).reshape(-1, *[1] * (gradient.dim() - 1))

    def _scale(self, gradient: Tensor) -> Tensor:
        largest = gradient.detach().abs().amax(1)
        # A row stays as it is where its gradient is zero or not finite.
        self._largest = largest.where((largest > 0) & largest.isfinite(), torch.ones_like(largest))
        return gradient / self._largest[:, None]


def predictions(logits: Tensor) -> Tensor:
    """Return (B,) int64 from logits (B, C): the classes of the largest logits; -1 where one is NaN or infinite.

    A logit that counts as infinite (`finite_rows`) does so here, too. The attacks could not move its image, which would
    then seem to withstand them.
    """
    return logits.argmax(1).masked_fill_(~finite_rows(logits), MISCLASSIFIED)
