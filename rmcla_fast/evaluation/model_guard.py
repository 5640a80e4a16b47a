"""Runs someone else's model and gives it back as it came: mode, weights, buffers, gradients, flags, random state.

`untouched` is the guard around every attack, and `Answerer` the one way in which an attack asks the model.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rmcla_fast.pixels import to_unit, with_own_strides

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


class Answerer(nn.Module):
    """The model, asked in its own floating-point type and answering checked logits (B, C), C >= 2.

    Images keep the attack's arithmetic (float32) and are converted at the door, inside the graph; a model under
    autocast converts by itself.
    """

    def __init__(self, model: nn.Module, num_classes: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        self.dtype = None if parameter is None else parameter.dtype
        self.captured_for: Any = None  # what the graphs of `captured` are for; see ascent.py
        self.captured: dict[int, Any] = {}
        self.uncapturable = False
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        inputs = images
        if self.dtype is not None and not torch.is_autocast_enabled(images.device.type):
            inputs = images.to(self.dtype)
        logits = self.model(inputs)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != images.shape[0]:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model must answer logits of shape ({images.shape[0]}, C); got {got}")
        if logits.shape[1] < 2:
            raise ValueError(f"model must answer at least 2 classes; got logits of shape {tuple(logits.shape)}")
        if self.num_classes is not None and logits.shape[1] != self.num_classes:
            raise ValueError(f"model must answer {self.num_classes} classes, as the data have; got {logits.shape[1]}")
        return logits

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """(B,) int64: the class of the largest logit; -1 where a logit is NaN or infinite."""
        return predictions(self(images))


def predictions(logits: Tensor) -> Tensor:
    """(B,) int64 from logits (B, C): the largest class; -1, which is no label, where one is NaN or infinite."""
    return logits.argmax(1).masked_fill_(~logits.isfinite().all(1), MISCLASSIFIED)


def as_images(images: Tensor) -> Tensor:
    """uint8 means value / 255; float images are as they are. Never an inference-mode tensor: autograd refuses it.

    Their strides are those of `with_own_strides`: images of one channel with the stride of channels_last would have
    convolutions answer in that layout, and every step of an attack mix the two.
    """
    images = to_unit(images)
    images = images.clone() if images.is_inference() else images.detach()
    return with_own_strides(images)
