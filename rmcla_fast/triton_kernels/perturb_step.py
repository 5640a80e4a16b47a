"""`perturb_step` in Triton (Wang and Zhang 2019, the method's step 3): one pass over flat memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmcla_fast.triton_kernels import elements
from rmcla_fast.triton_kernels.conversion import arithmetic, narrow, scalar, widen
from rmcla_fast.triton_kernels.elements import load_flat, per_image, store_flat, to_unit, valid_radius


@triton.jit
def _step(
    images,
    origin,
    grad,
    out,
    steps,
    radii,
    start,
    count,
    batch,
    image_size,
    steps_stride,
    radii_stride,
    step_size,
    epsilon,
    lower,
    upper,
    STEP_PER_IMAGE: tl.constexpr,
    RADIUS_PER_IMAGE: tl.constexpr,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offsets = start + tl.arange(0, BLOCK)
    image = widen(load_flat(images, offsets, count, MASKED), DTYPE)
    center = to_unit(load_flat(origin, offsets, count, MASKED), DTYPE)
    slope = load_flat(grad, offsets, count, MASKED)
    slope = widen(slope, tl.float64 if slope.dtype == tl.float64 else tl.float32)
    sign = tl.where(slope > 0, 1.0, tl.where(slope < 0, -1.0, tl.where(slope == 0, 0.0, float("nan")))).to(DTYPE)
    step = per_image(step_size, steps, steps_stride, start, batch, image_size, STEP_PER_IMAGE, DTYPE, BLOCK)
    radius = per_image(epsilon, radii, radii_stride, start, batch, image_size, RADIUS_PER_IMAGE, DTYPE, BLOCK)
    radius = valid_radius(radius)
    least = center - radius
    most = center + radius
    lower = scalar(lower, DTYPE)
    upper = scalar(upper, DTYPE)
    moved = image + step * sign
    moved = tl.where(moved < least, least, moved)
    moved = tl.where(moved > most, most, moved)
    moved = tl.where(moved < lower, lower, moved)
    moved = tl.where(moved > upper, upper, moved)
    moved = tl.where((least == least) & (most == most), moved, float("nan"))
    store_flat(out, offsets, narrow(moved, out.dtype.element_ty), count, MASKED)


@triton.jit(do_not_specialize=["count", "batch", "image_size", "steps_stride", "radii_stride"])
def _kernel(
    images,
    origin,
    grad,
    out,
    steps,
    radii,
    count,
    batch,
    image_size,
    steps_stride,
    radii_stride,
    step_size: tl.float64,
    epsilon: tl.float64,
    lower: tl.float64,
    upper: tl.float64,
    STEP_PER_IMAGE: tl.constexpr,
    RADIUS_PER_IMAGE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    if start + BLOCK <= count:
        _step(images, origin, grad, out, steps, radii, start, count, batch, image_size, steps_stride, radii_stride, step_size, epsilon, lower, upper, STEP_PER_IMAGE, RADIUS_PER_IMAGE, False, DTYPE, BLOCK)  # fmt: skip
    else:
        _step(images, origin, grad, out, steps, radii, start, count, batch, image_size, steps_stride, radii_stride, step_size, epsilon, lower, upper, STEP_PER_IMAGE, RADIUS_PER_IMAGE, True, DTYPE, BLOCK)  # fmt: skip


def perturb_step(
    images: Tensor,
    origin: Tensor,
    grad: Tensor,
    step_size: float,
    step_sizes: Tensor | None,
    epsilon: float,
    epsilons: Tensor | None,
    lower: float,
    upper: float,
) -> Tensor:
    """clip(clip(images + step_size * sign(grad), origin - epsilon, origin + epsilon), lower, upper); NaN in, NaN out."""
    images = elements.dense(images)
    out = torch.empty_like(images)
    _launch(images, origin, grad, step_size, step_sizes, epsilon, epsilons, lower, upper, out)
    return out


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
    out: Tensor,
) -> None:
    """`perturb_step` into `out`, which may be any of the inputs."""
    images = elements.dense(images)
    if elements.same_layout(images, out):
        _launch(images, origin, grad, step_size, step_sizes, epsilon, epsilons, lower, upper, out)
    else:
        out.copy_(perturb_step(images, origin, grad, step_size, step_sizes, epsilon, epsilons, lower, upper))


def _launch(
    images: Tensor,
    origin: Tensor,
    grad: Tensor,
    step_size: float,
    step_sizes: Tensor | None,
    epsilon: float,
    epsilons: Tensor | None,
    lower: float,
    upper: float,
    out: Tensor,
) -> None:
    count, batch, image_size = elements.batch_geometry(images)
    if count == 0:
        return
    origin, grad = elements.in_layout_of(images, origin), elements.in_layout_of(images, grad)
    with torch.cuda.device_of(images):
        _kernel[(triton.cdiv(count, elements.BLOCK),)](
            images,
            origin,
            grad,
            out,
            step_sizes,
            epsilons,
            count,
            batch,
            image_size,
            elements.value_stride(step_sizes),
            elements.value_stride(epsilons),
            step_size,
            epsilon,
            lower,
            upper,
            STEP_PER_IMAGE=step_sizes is not None and step_sizes.dim() == 1,
            RADIUS_PER_IMAGE=epsilons is not None and epsilons.dim() == 1,
            DTYPE=arithmetic(images),
            BLOCK=elements.BLOCK,
            num_warps=elements.WARPS,
            enable_fp_fusion=False,
        )
