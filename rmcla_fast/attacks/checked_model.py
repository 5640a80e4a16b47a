"""Runs someone else's model and gives it back as it came: mode, weights, buffers, gradients, flags, random state.

`untouched` is the guard around every attack, and `CheckedModel` the one way in which an attack asks the model.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rmcla_fast.ops.tensors import to_unit, with_own_strides
from rmcla_fast.precision import PRECISIONS, check_precision, require_precision

MISCLASSIFIED = -1


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """The model is in evaluation mode with frozen parameters inside, and exactly as it came outside, errors included.

    Frozen: no attack needs the gradient of a weight, and the libraries that ask for one would leave it behind. The
    global random states, the gradient mode and the trace function are put back too: the libraries set all of them.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    python_state, numpy_state, trace = random.getstate(), np.random.get_state(), sys.gettrace()
    try:
        model.eval()
        for parameter, _, _ in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        gpus = range(torch.cuda.device_count())  # named, since several of them unnamed earn a warning
        with torch.random.fork_rng(devices=gpus), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        if sys.gettrace() is not trace:  # the check for dynamic defences of AutoAttack unsets it
            sys.settrace(trace)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                if not same_bits(buffer, value):
                    buffer.copy_(value)
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for module, mode in modes:
            module.training = mode


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether the tensors hold the same values, NaN equal to NaN."""
    return bool(torch.equal(a, b) or (a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)))


class CheckedModel(nn.Module):
    """The model, asked in its own floating-point type and answering checked logits (B, C), C >= 2.

    Images keep the attack's arithmetic (float32) and are converted at the door, inside the graph; a model under the
    caller's autocast converts by itself. With `precision` "bf16" or "fp16" it is asked under an autocast of our own,
    and answers float32; its weights must be float32 or of that type, since autocast leaves float64 as it is. The graphs
    that ascent.py captures stay with an answerer, which has one precision.
    """

    def __init__(self, model: nn.Module, num_classes: int | None = None, precision: str = "fp32") -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        self.precision = check_precision(precision)
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        self.dtype = None if parameter is None else parameter.dtype
        if precision != "fp32" and parameter is not None:
            require_precision(precision, parameter.device)
            if self.dtype not in (torch.float32, PRECISIONS[precision]):
                raise ValueError(
                    f"precision {precision!r} needs weights in float32 or {PRECISIONS[precision]}; the model's are "
                    f"{self.dtype}, in which it is asked with 'fp32'"
                )
        self.captured_for: Any = None  # what the graphs of `captured` are for; see ascent.py
        self.captured: dict[int, Any] = {}
        self.uncapturable = False
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        by_itself = self.precision == "fp32" and torch.is_autocast_enabled(images.device.type)
        computes_in = self.dtype if self.precision == "fp32" else PRECISIONS[self.precision]
        if by_itself:
            computes_in = torch.get_autocast_dtype(images.device.type)
        scale = _GradientScale() if computes_in == torch.float16 and _differentiated(images) else None
        inputs = images if scale is None else scale.undone(images)
        if self.dtype is not None and not by_itself:
            inputs = inputs.to(self.dtype)
        with self._autocast(images.device.type):
            logits = self.model(inputs)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != images.shape[0]:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model must answer logits of shape ({images.shape[0]}, C); got {got}")
        if logits.shape[1] < 2:
            raise ValueError(f"model must answer at least 2 classes; got logits of shape {tuple(logits.shape)}")
        if self.num_classes is not None and logits.shape[1] != self.num_classes:
            raise ValueError(f"model must answer {self.num_classes} classes, as the data have; got {logits.shape[1]}")
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return logits if scale is None else scale.done(logits)

    def _autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """Without autocast's cache: a CUDA graph that replays must cast the weights that are there by then."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device_type, dtype=PRECISIONS[self.precision], cache_enabled=False)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """(B,) int64: the class of the largest logit; -1 where a logit is NaN or infinite."""
        return predictions(self(images))


def _differentiated(tensor: Tensor) -> bool:
    return torch.is_grad_enabled() and tensor.requires_grad


class _GradientScale:
    """Scales the gradient within a float16 network to 1 at the logits, image by image, and back at the images.

    The gradient of a confident answer is below what float16 can hold (6e-8): it would vanish on its way, the attack
    would stand still, and the model would look robust. Float32 holds it on either side. Each image has its own scale,
    since one that an attack leaves alone must not decide for the others. That is exact for first derivatives of a
    network that answers each image by itself.
    """

    def __init__(self) -> None:
        self._largest = torch.ones(())  # (B,), of the backward pass that is under way

    def done(self, logits: Tensor) -> Tensor:
        """The logits, whose gradient is scaled behind them."""
        if not _differentiated(logits):
            return logits
        logits.register_hook(self._scale)
        return logits.view_as(logits)

    def undone(self, images: Tensor) -> Tensor:
        """The images, of which the gradient comes unscaled; but float16 ones could not hold it, so it stays scaled."""
        inputs = images.view_as(images)
        if images.dtype != torch.float16:
            inputs.register_hook(self._undo)
        return inputs

    def _undo(self, gradient: Tensor) -> Tensor:
        return gradient * self._largest.to(gradient.dtype).reshape(-1, *[1] * (gradient.dim() - 1))

    def _scale(self, gradient: Tensor) -> Tensor:
        largest = gradient.detach().abs().amax(1)
        # A row without a gradient, or with one that is no number, stays as it is.
        self._largest = largest.where((largest > 0) & largest.isfinite(), torch.ones_like(largest))
        return gradient / self._largest[:, None]


def predictions(logits: Tensor) -> Tensor:
    """(B,) int64 from logits (B, C): the largest class; -1, which is no label, where one is NaN or infinite."""
    return logits.argmax(1).masked_fill_(~logits.isfinite().all(1), MISCLASSIFIED)


def as_images(images: Tensor, *, widen: bool = True) -> Tensor:
    """uint8 means value / 255; 16-bit floats become float32 if `widen`: a bfloat16 pixel near 1 is 6 % of 8/255 off.

    Never an inference-mode tensor, which autograd refuses.

    Their strides are those of `with_own_strides`: images of one channel with the stride of channels_last would have
    convolutions answer in that layout, and every step of an attack mix the two.
    """
    images = to_unit(images)
    if widen and images.dtype in (torch.float16, torch.bfloat16):
        images = images.float()
    images = images.clone() if images.is_inference() else images.detach()
    return with_own_strides(images)
