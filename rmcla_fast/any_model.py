"""How a model that the caller brings is run: what it is given, what it must answer, and what it may leave behind.

Every attack and every training pass runs the model through this file. The model may be any `nn.Module`: one that writes
into its input, has weights of any floating-point type, counts its calls in a buffer, or was exported or scripted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Forward = Callable[[Tensor], Tensor]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

_checked_owners: weakref.WeakSet[object] = weakref.WeakSet()  # whose first images on a GPU were looked at


def check_model(model: object, *, trained: bool = False) -> None:
    """Raise TypeError unless the model is an `nn.Module`, and ValueError if its weights hold no numbers yet.

    If it is to be `trained`, its weights must also be made outside of `torch.inference_mode`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"model must have weights; {name} is not initialised before a first batch has run")
        if tensor.is_meta:
            raise ValueError(f"model must have weights; {name} is on the meta device, which holds no numbers")
    if trained and any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("model must be made outside of torch.inference_mode to be trained")


def weight_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the type of the model's first floating-point parameter; None if it has none."""
    return next((one.dtype for one in model.parameters() if one.is_floating_point()), None)


def own_inputs(images: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a copy of the images in the type of the model's weights, inside the autograd graph.

    The model may write into the copy. Under an autocast of the caller the copy keeps its type, since the layers then
    convert it themselves.
    """
    if dtype is None or dtype == images.dtype or torch.is_autocast_enabled(images.device.type):
        return images.clone(memory_format=torch.preserve_format)
    return images.to(dtype)


def outside_inference_mode(model: nn.Module) -> Forward:
    """Return the model, or a function that runs it with copies of weights that were made in `torch.inference_mode`.

    Autograd refuses the weights themselves.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if not any(tensor.is_inference() for tensor in tensors.values()):
        return model
    with torch.inference_mode(False):
        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    return partial(torch.func.functional_call, model, copies)


def logits_of(answer: object, images: Tensor) -> Tensor:
    """Return the model's answer to `images` (B, ...) if it is logits (B, C) with C >= 2.

    Raises:
        TypeError, ValueError: it is something else, or autograd cannot reach the images from it.
    """
    count = len(images)
    if not isinstance(answer, Tensor):
        raise TypeError(f"model must return logits of shape ({count}, C); got {_described(answer)}")
    if answer.layout is not torch.strided:
        raise TypeError(f"model must return logits in a dense tensor; got layout {answer.layout}")
    if not answer.is_floating_point():
        raise TypeError(f"model must return logits, which are floating-point numbers; got {answer.dtype}")
    if answer.dim() != 2 or answer.shape[0] != count:
        raise ValueError(f"model must return logits of shape ({count}, C); got {tuple(answer.shape)}")
    if answer.shape[1] < 2:
        raise ValueError(f"model must have at least 2 classes; got logits of shape {tuple(answer.shape)}")
    if images.requires_grad and torch.is_grad_enabled() and not answer.requires_grad:
        raise no_gradient("the images")
    return answer


def _described(answer: object) -> str:
    """Return what the answer is, and where in it the logits may be."""
    kind = type(answer).__name__
    if isinstance(answer, Mapping):
        keys = ", ".join(repr(key) for key in list(answer)[:5]) or "nothing"
        return f"a {kind} with {keys} in it; give a module that returns the logits alone"
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        return f"a {kind} of {len(answer)}; give a module that returns the logits alone"
    if isinstance(getattr(answer, "logits", None), Tensor):
        return f"a {kind}, which has logits; give a module that returns these alone"
    return kind


def no_gradient(to: str) -> ValueError:
    """Return the error for a model through which autograd finds no way from the logits to "the images" or "weights"."""
    return ValueError(
        f"the gradient of the logits cannot reach {to}: the model must be differentiable, and a forward pass under "
        "torch.no_grad or torch.inference_mode, a detach, an argmax or a quantised layer is not"
    )


def image_gradient(logits: Tensor, images: Tensor, direction: Tensor) -> Tensor:
    """Return the gradient of the logits (B, C) along `direction` (B, C), with respect to the images.

    Raises:
        ValueError: autograd finds no way from the logits to the images.
    """
    gradient = None
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad(logits, images, direction, allow_unused=True)
    if gradient is None:
        raise no_gradient("the images")
    return gradient


def check_pixels(images: Tensor) -> None:
    """Raise ValueError if float images lie outside [0, 1] by more than rounding; their values are read.

    An image that was normalised and put back stays within the bound: eight units in the last place of float32 and
    float64, and two in 16 bits, where eight would be more than a usual epsilon. NaN passes, since operators and attacks
    give NaN or a misclassified image for it.
    """
    if not images.numel() or not images.is_floating_point():
        return
    lowest, highest = (float(end) for end in torch.aminmax(images.detach()))
    tolerance = (8 if images.element_size() > 2 else 2) * torch.finfo(images.dtype).eps
    if lowest < -tolerance or highest > 1 + tolerance:
        raise ValueError(
            f"images must lie in [0, 1]; got values from {lowest:g} to {highest:g} (normalisation belongs inside the "
            "model, and pixels from 0 to 255 must be uint8)"
        )


def check_pixels_once(images: Tensor, owner: object) -> None:
    """Check the pixels on a CPU, and on a GPU only those of the owner's first batch, since the host waits for them."""
    if images.dtype == torch.uint8 or torch.compiler.is_compiling():
        return
    if images.is_cuda:
        if owner in _checked_owners or torch.cuda.is_current_stream_capturing():
            return
        _checked_owners.add(owner)
    check_pixels(images)


@contextmanager
def attack_mode(model: nn.Module, mode: str) -> Iterator[None]:
    """Put the model into evaluation or training mode inside the `with` block; restore modes and buffers after it.

    Buffers are restored in both modes: training mode changes the statistics of batch norm, and an observer counts in
    evaluation mode as well. In mode "train", a model that is training already keeps the modes of its parts, for example
    of frozen batch norms. No value is read on the host, so that a CUDA graph can be captured.
    `attacks.checked_model.untouched` uses this function, and restores more.

    A module may do work when its mode changes, such as folding an adapter into its weights. Its own `train` is called
    on the way back, too, and the weights then get exactly the values that they had.
    """
    modules = list(model.modules())
    # A frozen scripted module has no mode.
    modes = [(module, module.training) for module in modules if hasattr(module, "training")]
    # A module may also replace its buffers, register more of them, or fill those that were None. A scripted one cannot.
    eager = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    held = [(module, dict(module._buffers)) for module in eager]
    switches = mode == "eval" or not getattr(model, "training", False)
    works = any(_works_on_switch(type(one)) for one in modules)
    before = _values([*model.parameters(), *model.buffers()]) if switches and works else []
    try:
        if switches:
            set_mode(model, mode == "train")
        before = before or _values(buffer for module in modules for buffer in _moving_buffers(module))
        yield
    finally:
        if switches and works:
            set_mode(model, dict(modes)[model])
        for module, training in modes:
            if module.training != training and _works_on_switch(type(module)):
                set_mode(module, training)
            module.training = training
        for module, buffers in held:
            module._buffers.clear()
            module._buffers.update(buffers)
        for tensor, value in before:
            # Through `data`, because autograd would otherwise refuse the backward pass of a graph that the caller built
            # before and that holds this tensor.
            tensor.data.copy_(value)


def set_mode(module: nn.Module, training: bool) -> None:
    """Put the module into training or evaluation mode; an exported program keeps the mode that it was exported in."""
    try:
        module.train(training)
    except NotImplementedError:
        for child in module.children():
            set_mode(child, training)


def _works_on_switch(kind: type[nn.Module]) -> bool:
    """Return whether modules of this class have a `train` or `eval` of their own, which may do more than set the mode.

    Those of torch's own classes, such as a compiled module, do no more.
    """
    return any(method.__module__.partition(".")[0] != "torch" for method in (kind.train, kind.eval))


def _values(tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the tensors that can be written, each with a copy of its values."""
    return [(one, one.detach().clone()) for one in tensors if writable(one) and not one.is_inference()]


def _moving_buffers(module: nn.Module) -> list[Tensor]:
    """Return the module's own buffers that its forward pass may write into."""
    if type(module) in BATCH_NORMS and not module.training:  # it reads its statistics and changes nothing
        return []
    if isinstance(module, torch.jit.ScriptModule):
        return list(module.buffers(recurse=False))
    return [one for one in module._buffers.values() if one is not None]


def writable(tensor: Tensor) -> bool:
    """Return whether PyTorch can write into the tensor, which it refuses if elements share memory."""
    if tensor.layout is not torch.strided:
        return True
    return not any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
