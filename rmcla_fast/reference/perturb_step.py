"""`perturb_step` in plain torch (Wang and Zhang 2019, the method's step 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rmcla_fast.ops.tensors import as_dense, compute_dtype, to_unit


def perturb_step(
    images: Tensor,
    origin: Tensor,
    grad: Tensor,
    step_size: float,
    step_sizes: Tensor | None,
    epsilon: float,
    epsilons: Tensor | None,
    lower: float = 0.0,
    upper: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Return clip(clip(images + step_size * sign(grad), origin - epsilon, origin + epsilon), lower, upper).

    `mask` multiplies the step_size and the epsilon of each element. NaN in an input gives NaN in that element.
    """
    dtype = compute_dtype(images)
    step = per_image(step_size, step_sizes, images)
    radius = per_image(epsilon, epsilons, images)
    radius = torch.where(radius >= 0, radius, float("nan"))
    if mask is not None:
        share = shares(mask, images, dtype)
        step, radius = step * share, radius * share
    center = to_unit(origin, dtype)
    sign = torch.where(grad.isnan(), grad, grad.sign()).to(dtype)
    moved = images.to(dtype) + step * sign
    inside = moved.clamp(center - radius, center + radius).clamp(rounded(lower, dtype), rounded(upper, dtype))
    return torch.empty_like(as_dense(images)).copy_(inside)


def perturb_step_out(
    images: Tensor,
    origin: Tensor,
    grad: Tensor,
    step_size: float,
    step_sizes: Tensor | None,
    epsilon: float,
    epsilons: Tensor | None,
    lower: float,
    upper: float,
    mask: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    """Write the result of `perturb_step` into `out`."""
    out.copy_(perturb_step(images, origin, grad, step_size, step_sizes, epsilon, epsilons, lower, upper, mask))


def shares(mask: Tensor, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values of the mask for the elements of the images, with NaN for one outside [0, 1].

    Raises:
        ValueError: a value outside [0, 1], on the CPU only, since the check would stall a GPU.
    """
    share = mask.to(dtype).expand(images.shape)
    outside = (share < 0) | (share > 1)
    if share.device.type == "cpu" and bool(outside.any()):
        raise ValueError(f"mask must lie in [0, 1]; got {float(share[outside][0]):g}")
    return torch.where(outside, float("nan"), share)


def rounded(value: float, dtype: torch.dtype) -> float:
    """Return the value as torch takes it for float32 or float64: one that is too large becomes infinite, as in C++."""
    most = torch.finfo(dtype).max
    if abs(value) <= most:
        return value
    return math.copysign(most if abs(value) < 2.0**128 - 2.0**103 else math.inf, value)


def per_image(value: float, values: Tensor | None, images: Tensor) -> Tensor:
    """Return the float `value`, or the tensor `values` of shape () or (B,), as a tensor that broadcasts to the images.

    Its dtype is the one in which the operators compute.
    """
    dtype = compute_dtype(images)
    if values is None:
        # torch.tensor would stall a GPU
        return torch.full((), rounded(value, dtype), dtype=dtype, device=images.device)
    return values.to(dtype).reshape(-1, *[1] * (images.dim() - 1)) if values.dim() else values.to(dtype)
