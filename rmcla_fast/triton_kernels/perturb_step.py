"""`perturb_step` in Triton (Wang and Zhang 2019, the method's step 3): one pass over flat memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from rmcla_fast.ops.tensors import compute_dtype
from rmcla_fast.triton_kernels import elements
from rmcla_fast.triton_kernels.conversion import alignment_of, arithmetic, narrow, scalar, widen
from rmcla_fast.triton_kernels.elements import clip, load_shares, per_image, to_unit, valid_radius
from rmcla_fast.triton_kernels.memory import writable_beside


@triton.jit(do_not_specialize=["units", "batch", "image_size", "steps_stride", "radii_stride", "mask_units"])
def _kernel(
    images,
    origin,
    grad,
    out,
    steps,  # (), (B,) or None
    radii,  # (), (B,) or None
    mask,  # the shares in the order of memory, or None
    units,  # elements / ALIGNMENT
    batch,
    image_size,
    steps_stride,
    radii_stride,
    mask_units,  # elements of the mask / ALIGNMENT
    step_size: tl.float64,
    epsilon: tl.float64,
    lower: tl.float64,
    upper: tl.float64,
    STEP_PER_IMAGE: tl.constexpr,
    RADIUS_PER_IMAGE: tl.constexpr,
    MASK_REPEATS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    inside = offsets < units.to(tl.int64) * ALIGNMENT
    image = widen(tl.load(images + offsets, mask=inside), DTYPE)
    center = to_unit(tl.load(origin + offsets, mask=inside), DTYPE)
    slope = tl.load(grad + offsets, mask=inside)
    slope = widen(slope, tl.float64 if slope.dtype == tl.float64 else tl.float32)
    sign = tl.where(slope > 0, 1.0, tl.where(slope < 0, -1.0, tl.where(slope == 0, 0.0, float("nan")))).to(DTYPE)
    step = per_image(step_size, steps, steps_stride, start, batch, image_size, STEP_PER_IMAGE, DTYPE, BLOCK)
    radius = per_image(epsilon, radii, radii_stride, start, batch, image_size, RADIUS_PER_IMAGE, DTYPE, BLOCK)
    radius = valid_radius(radius)
    if mask is not None:
        period = mask_units.to(tl.int64) * ALIGNMENT
        share = load_shares(mask, start, inside, period, MASK_REPEATS, ALIGNMENT, DTYPE, BLOCK)
        step = step * share
        radius = radius * share
    least = center - radius
    most = center + radius
    moved = image + step * sign  # the product is exact, so a fused multiply-add would give the same bits
    moved = tl.where(moved < least, least, moved)
    moved = tl.where(moved > most, most, moved)
    moved = clip(moved, scalar(lower, DTYPE), scalar(upper, DTYPE))
    moved = tl.where((least == least) & (most == most), moved, float("nan"))
    tl.store(out + offsets, narrow(moved, out.dtype.element_ty), mask=inside)


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
    mask: Tensor | None = None,
) -> Tensor:
    """Return clip(clip(images + step_size * sign(grad), origin - epsilon, origin + epsilon), lower, upper).

    `mask` multiplies the step_size and the epsilon of each element. NaN in an input gives NaN in that element.
    """
    images = elements.dense(images)
    out = torch.empty_like(images)
    mask = elements.mask_beside(images, mask, compute_dtype(images))
    _launch(images, origin, grad, step_size, step_sizes, epsilon, epsilons, lower, upper, mask, out)
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
    mask: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    """Write the result of `perturb_step` into `out`, which may share memory with any of the inputs."""
    images = elements.dense(images)
    origin, grad = elements.in_layout_of(images, origin), elements.in_layout_of(images, grad)
    mask = elements.mask_beside(images, mask, compute_dtype(images))
    inputs = images, origin, grad, step_sizes, epsilons, mask
    if elements.same_layout(images, out) and writable_beside(out, *inputs):
        _launch(images, origin, grad, step_size, step_sizes, epsilon, epsilons, lower, upper, mask, out)
        increment_version(out)
    else:
        out.copy_(perturb_step(images, origin, grad, step_size, step_sizes, epsilon, epsilons, lower, upper, mask))


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
    mask: Tensor | None,
    out: Tensor,
) -> None:
    count, batch, image_size = elements.batch_geometry(images)
    if count == 0:
        return
    origin, grad = elements.in_layout_of(images, origin), elements.in_layout_of(images, grad)
    period = mask.numel() if mask is not None else count
    alignment = alignment_of(count, period)
    with torch.cuda.device_of(images):
        _kernel[(triton.cdiv(count, elements.BLOCK),)](
            images,
            origin,
            grad,
            out,
            step_sizes,
            epsilons,
            mask,
            count // alignment,
            batch,
            image_size,
            elements.value_stride(step_sizes),
            elements.value_stride(epsilons),
            period // alignment,
            step_size,
            epsilon,
            lower,
            upper,
            STEP_PER_IMAGE=step_sizes is not None and step_sizes.dim() == 1,
            RADIUS_PER_IMAGE=epsilons is not None and epsilons.dim() == 1,
            MASK_REPEATS=period < count,
            ALIGNMENT=alignment,
            DTYPE=arithmetic(images),
            BLOCK=elements.BLOCK,
            num_warps=elements.WARPS,
            enable_fp_fusion=False,
        )
