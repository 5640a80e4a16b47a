"""`perturb_step`: one signed gradient step, projected onto the ball around the origin and the pixel range."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rmcla_fast.ops import checks, dispatch
from rmcla_fast.ops.tensors import as_dense


def _fake(images: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(as_dense(images))


_ARGUMENTS = (
    "Tensor images, Tensor origin, Tensor grad, float step_size, Tensor? step_sizes, float epsilon, Tensor? epsilons, "
    "float lower, float upper, Tensor? mask=None"
)
dispatch.define("perturb_step", "perturb_step", f"({_ARGUMENTS}) -> Tensor", _fake)
dispatch.define("perturb_step", "perturb_step.out", f"({_ARGUMENTS}, *, Tensor(a!) out) -> ()", lambda *_, **__: None)


def perturb_step(
    images: Tensor,
    origin: Tensor,
    grad: Tensor,
    *,
    step_size: float | Tensor,
    epsilon: float | Tensor,
    lower: float = 0.0,
    upper: float = 1.0,
    mask: Tensor | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Take one signed gradient step, and project it onto the epsilon ball and the pixel range, in one pass.

    The result is clip(clip(images + step_size * sign(grad), origin - epsilon, origin + epsilon), lower, upper). This is
    step 3 of "Bilateral Adversarial Training" (Wang and Zhang, ICCV 2019), and the step of every l-infinity PGD attack
    (Madry et al., ICLR 2018). Arithmetic is float32 (float64 for float64 images) whatever the storage, and every
    backend gives the same bits. sign(0) = 0, and an infinite gradient has sign +-1.

    Args:
        images: the points from which the step starts; any shape and layout, float32, float64, float16 or bfloat16.
        origin: the centre of the ball; the same shape, any of these dtypes or uint8 (value / 255).
        grad: the direction to ascend; the same shape, any of these float dtypes.
        step_size: a finite float (a negative one descends), or a float32 tensor on the images' device of shape () or
            (B,).
        epsilon: the radius, in the unit of the images (8/255); a float that is not negative, or a float32 tensor as for
            step_size. A negative or NaN value in a tensor gives NaN in that image, since a check would stall a GPU.
        lower, upper: the pixel range.
        mask: which pixels may move, or how much of the budget each of them has: bool, or float32, float64, float16 or
            bfloat16 in [0, 1], on the images' device, of a shape that broadcasts to theirs, such as (H, W). step_size
            and epsilon of each pixel are multiplied by its value, rounded to the dtype of the arithmetic. True and 1
            change nothing. False and 0 put the pixel at `origin`, clipped to the pixel range (0 times an infinite
            budget is NaN). On a CPU a value outside [0, 1] raises; on a GPU it gives NaN in that element, since a check
            would stall it.
        out: a tensor to write and return, of the images' shape and dtype; it may share memory with any input.
        backend: "reference", "cpu", "triton" or "cuda"; None chooses.

    Returns:
        The new images, in the shape, dtype and memory layout of `images` (contiguous if `images` are not dense). NaN in
        any of the three tensors or in `mask` gives NaN in that element. The result is not differentiable and never
        requires grad.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range.
    """
    checks.floating("images", images)
    checks.floating("origin", origin, uint8=True)
    checks.floating("grad", grad)
    checks.same_shape("origin", origin, images, "images")
    checks.same_shape("grad", grad, images, "images")
    checks.same_device("origin", origin, images, "images")
    checks.same_device("grad", grad, images, "images")
    if mask is not None:
        checks.mask(mask, images)
    steps = epsilons = None
    if isinstance(step_size, Tensor):
        steps, step_size = checks.per_image("step_size", step_size, images), 0.0
    if isinstance(epsilon, Tensor):
        epsilons, epsilon = checks.per_image("epsilon", epsilon, images), 0.0
    arguments = (
        checks.number("step_size", step_size),
        steps,
        checks.not_negative("epsilon", epsilon),
        epsilons,
        *checks.pixel_range(lower, upper),
        mask,
    )
    if out is None:
        operator = dispatch.choose("perturb_step", images, backend)
        result: Tensor = operator(images, origin, grad, *arguments)
        return result
    checks.output(out, images.shape, images.dtype, images, "images")
    dispatch.choose("perturb_step.out", images, backend)(images, origin, grad, *arguments, out=out)
    return out
