"""Argument checks that the operators share.

Each check raises TypeError or ValueError with one sentence that names the argument, what was passed and what was
expected. The checks look at shapes, dtypes, devices and numbers, and never read a tensor's values, which would stall a
GPU. The CPU kernels check the values of labels and masks.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def floating(name: str, tensor: Any, *, uint8: bool = False) -> None:
    """Raise unless `tensor` is a dense float tensor; `uint8` allows uint8 too, which means value / 255."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(tensor).__name__}")
    if tensor.dtype not in FLOATS and not (uint8 and tensor.dtype == torch.uint8):
        expected = "uint8, float32" if uint8 else "float32"
        raise TypeError(f"{name} must be {expected}, float64, float16 or bfloat16; got {tensor.dtype}")
    dense(name, tensor)


def dense(name: str, tensor: Tensor) -> None:
    """Raise for a sparse tensor, which no kernel can read."""
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor; got layout {tensor.layout}")


def logits(tensor: Any) -> None:
    """Raise unless `tensor` is float (B, C) with C at least 2."""
    floating("logits", tensor)
    shape = tensor.shape
    if len(shape) != 2:
        raise ValueError(f"logits must have shape (B, C); got {tuple(shape)}")
    if shape[1] < 2:
        raise ValueError(f"logits must have at least 2 classes; got shape {tuple(tensor.shape)}")


def class_indices(name: str, tensor: Any, like: Tensor) -> None:
    """Raise unless `tensor` is int64 (B,) on the device of the logits `like`."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be an int64 tensor of shape ({like.shape[0]},); got {type(tensor).__name__}")
    if tensor.dtype != torch.int64:
        raise TypeError(f"{name} must be int64; got {tensor.dtype}")
    dense(name, tensor)
    if tensor.dim() != 1 or tensor.shape[0] != like.shape[0]:
        raise ValueError(
            f"{name} must have shape ({like.shape[0]},), one value per row of logits; got {tuple(tensor.shape)}"
        )
    same_device(name, tensor, like, "logits")


def same_device(name: str, tensor: Tensor, like: Tensor, like_name: str) -> None:
    """Raise unless `tensor` is on the device of `like`."""
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, as {like_name} is; got {tensor.device}")


def same_shape(name: str, tensor: Tensor, like: Tensor, like_name: str) -> None:
    """Raise unless `tensor` has the shape of `like`."""
    if tensor.shape != like.shape:
        raise ValueError(f"{name} must have the shape of {like_name}, {tuple(like.shape)}; got {tuple(tensor.shape)}")


def number(name: str, value: Any) -> float:
    """Return a finite number, NumPy's included, as a float; raise for anything else."""
    if type(value) is float and -math.inf < value < math.inf:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    try:
        result = float(value)
        if -math.inf < result < math.inf:  # math.isfinite would stop torch.compile, which traces numbers that change
            return result
    except OverflowError:  # an int larger than every float
        pass
    raise ValueError(f"{name} must be finite; got {value}")


def positive(name: str, value: Any) -> float:
    """Return a finite number above 0 as a float; raise for anything else."""
    value = number(name, value)
    if value <= 0:
        raise ValueError(f"{name} must be positive; got {value}")
    return value


def not_negative(name: str, value: Any) -> float:
    """Return a finite number of at least 0 as a float; raise for anything else."""
    value = number(name, value)
    if value < 0:
        raise ValueError(f"{name} must not be negative; got {value}")
    return value


def fraction(name: str, value: Any) -> float:
    """Return a number of at least 0 and below 1 as a float; raise for anything else."""
    value = number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1); got {value}")
    return value


def pixel_range(lower: Any, upper: Any) -> tuple[float, float]:
    """Return the two finite numbers as floats; raise if `lower` exceeds `upper`."""
    lower, upper = number("lower", lower), number("upper", upper)
    if lower > upper:
        raise ValueError(f"lower must not exceed upper; got lower {lower} and upper {upper}")
    return lower, upper


def top_k(value: Any) -> None:
    """Raise unless `value` is None or an int of at least 1."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"top_k must be an int or None; got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"top_k must be at least 1; got {value}")


def per_image(name: str, tensor: Tensor, images: Tensor) -> Tensor:
    """Return `tensor` if it is float32 of shape () or (B,) on the images' device; raise otherwise."""
    if tensor.dtype != torch.float32:
        raise TypeError(f"{name} must be a float or a float32 tensor; got a {tensor.dtype} tensor")
    batch = images.shape[0] if images.dim() else 1
    if tensor.dim() > 1 or (tensor.dim() == 1 and (tensor.shape[0] != batch or not images.dim())):
        raise ValueError(f"{name} must have shape () or ({batch},), one value per image; got {tuple(tensor.shape)}")
    same_device(name, tensor, images, "images")
    return tensor


def mask(tensor: Any, images: Tensor) -> None:
    """Raise unless `tensor` is bool or float, on the images' device, and broadcasts to their shape."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"mask must be a bool or float tensor, or None; got {type(tensor).__name__}")
    if tensor.dtype not in (torch.bool, *FLOATS):
        raise TypeError(f"mask must be bool, float32, float64, float16 or bfloat16; got {tensor.dtype}")
    dense("mask", tensor)
    shape, missing = tensor.shape, images.dim() - tensor.dim()
    if missing < 0 or any(n not in (1, whole) for n, whole in zip(shape, images.shape[missing:], strict=True)):
        raise ValueError(f"mask must broadcast to the shape of images, {tuple(images.shape)}; got {tuple(shape)}")
    same_device("mask", tensor, images, "images")


def random_state(rng: Any, like: Tensor, like_name: str, *, per_image: bool = False) -> None:
    """Raise unless `rng` is an int64 tensor (seed, step) on the device of `like`.

    `per_image` allows (B, 2) too, one seed and step for each image of the batch `like`.
    """
    if not isinstance(rng, Tensor) or rng.dtype != torch.int64:
        got = rng.dtype if isinstance(rng, Tensor) else type(rng).__name__
        raise TypeError(f"rng must be an int64 tensor (seed, step); got {got}")
    batch = like.shape[0] if per_image and like.dim() else None
    if rng.shape != (2,) and (batch is None or rng.shape != (batch, 2)):
        expected = "(2,)" if batch is None else f"(2,) or ({batch}, 2)"
        raise ValueError(f"rng must have shape {expected}, seed and step; got {tuple(rng.shape)}")
    same_device("rng", rng, like, like_name)


def boolean(name: str, value: Any) -> None:
    """Raise unless `value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool; got {type(value).__name__}")


def output(out: Any, shape: torch.Size, dtype: torch.dtype, like: Tensor, like_name: str) -> None:
    """Raise unless a kernel may write into `out`.

    It needs the given shape and dtype, the device of `like`, one place in memory per element, and no autograd graph.
    """
    if not isinstance(out, Tensor):
        raise TypeError(f"out must be a tensor; got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {tuple(shape)}; got {tuple(out.shape)}")
    if out.dtype != dtype:
        raise TypeError(f"out must be {dtype}; got {out.dtype}")
    dense("out", out)
    same_device("out", out, like, like_name)
    if out.numel() and 0 in out.stride() and any(not s and n > 1 for s, n in zip(out.stride(), out.shape, strict=True)):
        raise ValueError(f"out must not share memory between its elements; got strides {tuple(out.stride())}")
    if out.requires_grad:
        raise ValueError("out must not require grad; pass out.detach()")
    # A compiled graph works on copies, and the compiler does not trace this question.
    if not torch.compiler.is_compiling() and out.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError("out was made in inference mode and must not be written outside of it; pass out.clone()")
