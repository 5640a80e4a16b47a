"""`augment_start`: from the uint8 data set on the device to augmented images and their random start, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rmcla_fast.ops import checks, dispatch


def _fake(
    dataset: Tensor,
    index: Tensor,
    rng: Tensor,
    epsilon: float,
    epsilons: Tensor | None,
    padding: int,
    flip: bool,
    fill: float,
    dtype: torch.dtype,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.empty((index.shape[0], *dataset.shape[1:]), dtype=dtype, device=dataset.device, memory_format=layout)
    return images, torch.empty_like(images)


dispatch.define(
    "augment_start",
    "augment_start",
    "(Tensor dataset, Tensor index, Tensor rng, float epsilon, Tensor? epsilons, int padding, bool flip, float fill, "
    "ScalarType dtype, bool channels_last) -> (Tensor, Tensor)",
    _fake,
)


def augment_start(
    dataset: Tensor,
    index: Tensor,
    *,
    rng: Tensor,
    epsilon: float | Tensor,
    padding: int = 4,
    flip: bool = True,
    fill: float = 0.5,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Gathers images of a uint8 data set, crops each with padding, flips half of them, and adds the random start.

    The standard CIFAR augmentation (He et al., CVPR 2016, section 4.2) and step 1 of "Bilateral Adversarial Training"
    (Wang and Zhang, ICCV 2019). Image b draws from Philox block b of stream 1 for (seed, step): shifts (word 0, word 1)
    times (2 padding + 1) div 2**32, a flip from the top bit of word 2. The same bits on every backend.

    Args:
        dataset: (N, C, H, W) uint8, contiguous, on the device.
        index: (B,) int64, which images; on the data set's device.
        rng: int64 tensor (seed, step) on the data set's device, read by the kernel and never advanced.
        epsilon: radius of the start, as `random_start` takes it: a float or a float32 tensor of shape () or (B,).
        padding: pixels that a crop may reach over each border; 0 crops nothing.
        flip: whether half of the images are mirrored left to right.
        fill: the value of pixels beyond the border, in the images' unit.
        dtype: of both results: float32, float16 or bfloat16.
        memory_format: of both results: torch.contiguous_format or torch.channels_last.
        backend: None (choose), "reference", "cpu", "triton" or "cuda".

    Returns:
        (images, start), both (B, C, H, W): the clean images that the ball is around, and `random_start(images, epsilon,
        rng=rng)` to the bit. An index outside [0, N) is a ValueError on a CPU and an image of NaN on a GPU.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range.
    """
    if not isinstance(dataset, Tensor) or dataset.dtype != torch.uint8:
        got = dataset.dtype if isinstance(dataset, Tensor) else type(dataset).__name__
        raise TypeError(f"dataset must be a uint8 tensor; got {got}")
    if dataset.dim() != 4 or not dataset.is_contiguous():
        raise ValueError(f"dataset must be contiguous (N, C, H, W); got {tuple(dataset.shape)}, {dataset.stride()}")
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        got = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index must be an int64 tensor of shape (B,); got {got}")
    if index.dim() != 1:
        raise ValueError(f"index must have shape (B,); got {tuple(index.shape)}")
    checks.same_device("index", index, dataset, "dataset")
    checks.random_state(rng, dataset, "dataset")
    if isinstance(padding, bool) or not isinstance(padding, int):
        raise TypeError(f"padding must be an int; got {type(padding).__name__}")
    if not 0 <= padding < 2**30:
        raise ValueError(f"padding must lie in [0, 2**30); got {padding}")
    checks.boolean("flip", flip)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"dtype must be float32, float16 or bfloat16; got {dtype}")
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format must be contiguous_format or channels_last; got {memory_format}")
    epsilons = None
    if isinstance(epsilon, Tensor):
        epsilons, epsilon = checks.per_image("epsilon", epsilon, index), 0.0
    epsilon = checks.not_negative("epsilon", epsilon)
    fill = checks.number("fill", fill)
    operator: Any = dispatch.choose("augment_start", dataset, backend)
    channels_last = memory_format == torch.channels_last
    images, start = operator(dataset, index, rng, epsilon, epsilons, padding, flip, fill, dtype, channels_last)
    return images, start
