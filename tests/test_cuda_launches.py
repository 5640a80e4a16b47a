"""Every kind of launch of joint_gradient and soft_cross_entropy.

A row is computed by a warp, a block or a cluster of blocks, which depends on the number of classes and on the number of
rows per multiprocessor.
"""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
import torch
from adversarial_inputs import FLOAT_DTYPES
from test_cuda_kernels import (  # noqa: F401  (_kernels is a fixture)
    NAN,
    TARGETS,
    Kernels,
    _kernels,
    batch,
    check_joint,
    check_nan,
    close,
    emulated_library,
    run,
    wide,
)
from torch import Tensor

from rmcla_fast import reference


def launched(kernels: Kernels) -> tuple[int, ...] | None:
    """Return the blocks, threads per block, blocks per cluster and bytes of dynamic shared memory of the last launch.

    On a GPU these are not known, and the result is None.
    """
    if kernels.device == "cuda":
        return None
    launch = np.zeros(4, dtype=np.int32)
    emulated_library().probe_last_launch(launch.ctypes.data_as(ctypes.c_void_p))
    return tuple(launch.tolist())


def check_every_rule(kernels: Kernels, logits: Tensor, labels: Tensor, given: Tensor) -> None:
    """Check joint_gradient with all targets and schemes and several top_k, and soft_cross_entropy with all labels."""
    rows, classes = logits.shape
    for target, scheme in itertools.product(TARGETS, ("main", "sup", "none")):
        check_joint(kernels, logits, labels, given, target, (9.0, 0.01, None, scheme))
    for top_k in (1, 9, classes // 2, classes - 2):
        check_joint(kernels, logits, labels, given, "mc", (11.0, 0.01, top_k, "main"))
        check_joint(kernels, logits.round(), labels, given, "ll", (11.0, 0.01, top_k, "sup"))  # with many ties
    soft = torch.rand(rows, classes, dtype=wide(logits.dtype), generator=torch.Generator().manual_seed(1)) / classes
    for y, smoothing in ((labels, 0.0), (labels, 0.4), (soft, 0.1)):
        loss, grad, grad_labels = run(kernels, "soft_cross_entropy", logits, y, "none", True, smoothing)
        exact = y if y.dim() == 1 else y.double()
        expected = reference.soft_cross_entropy(logits.double(), exact, "none", True, smoothing)
        close(loss, expected[0], wide(logits.dtype))
        close(grad, expected[1], logits.dtype)
        close(grad_labels, expected[2], wide(logits.dtype))


@pytest.mark.parametrize("classes", [129, 1000, 1001, 1024])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_each_of_many_rows_has_a_warp(kernels: Kernels, classes: int, dtype: torch.dtype) -> None:
    rows = 2 * kernels.multiprocessors + 1
    logits, labels, given = batch(classes, dtype, rows)
    check_every_rule(kernels, logits, labels, given)
    assert launched(kernels) in (None, ((rows + 1) // 2, 64, 1, 0))
    check_every_rule(kernels, logits[:-1], labels[:-1], given[:-1])
    assert launched(kernels) in (None, (rows - 1, 256, 1, 0))  # a block each
    logits[rows // 2, classes - 1], labels[0], labels[1] = NAN, -1, classes
    check_nan(kernels, logits, labels, given, "mc", [0, 1, rows // 2])


def staged(classes: int, blocks: int, dtype: torch.dtype) -> int:
    """Return the bytes of shared memory for a block's piece of a row; 0 if they exceed the memory of a block."""
    piece = -(-classes // (4 * blocks)) * 4
    size = -(-piece * dtype.itemsize // 16) * 16
    return size if size < 225 << 10 else 0


@pytest.mark.parametrize("classes", [4096, 16_388, 21_841])  # 16,388: packs of four, a shorter last piece
@pytest.mark.parametrize("fitting", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_long_row_has_several_blocks(kernels: Kernels, classes: int, fitting: int, dtype: torch.dtype) -> None:
    """There are as many as fit: two per multiprocessor (one for float64), with at least four elements per thread."""
    room = kernels.multiprocessors * (1 if dtype == torch.float64 else 2)
    rows = max(room // fitting, 1) if fitting > 1 else room + 1
    blocks = 1
    while 2 * blocks * rows <= room and 2 * blocks * 2048 <= classes and blocks < 8:
        blocks *= 2
    logits, labels, given = batch(classes, dtype, rows)
    check_every_rule(kernels, logits, labels, given)
    assert launched(kernels) in (None, (rows * blocks, 512, blocks, staged(classes, blocks, dtype)))
    logits[rows - 1, classes - 1] = NAN
    check_nan(kernels, logits, labels, given, "mc", [rows - 1])


@pytest.mark.parametrize(
    ("classes", "dtype"), [(60_000, torch.float32), (60_001, torch.float32), (30_000, torch.float64)], ids=str
)
def test_a_row_too_long_for_shared_memory_is_read_again(kernels: Kernels, classes: int, dtype: torch.dtype) -> None:
    logits, labels, given = batch(classes, dtype, rows=2 * kernels.multiprocessors + 1)
    check_joint(kernels, logits, labels, given, "mc", (9.0, 0.01, 9, "main"))
    assert launched(kernels) in (None, (len(logits), 512, 1, 0))
    loss, grad, _ = run(kernels, "soft_cross_entropy", logits, labels, "none", True, 0.999)
    expected = reference.soft_cross_entropy(logits.double(), labels, "none", True, 0.999)
    close(loss, expected[0], dtype)
    close(grad, expected[1], dtype)
    in_place = logits.clone().to(kernels.device)
    kernels.ops.redistribute_labels.out(in_place, labels.to(kernels.device), 9.0, 0.01, None, "main", out=in_place)
    close(in_place.cpu(), reference.redistribute_labels(logits.double(), labels), dtype)


@pytest.mark.parametrize("classes", [100, 1000, 4096])
@pytest.mark.parametrize("rows", [3, 9])  # a row of 1,000 classes has a block, or with 9 rows a warp
def test_aligned_logits_with_unaligned_labels(kernels: Kernels, classes: int, rows: int) -> None:
    """A row is read in packs of four only if all tensors are aligned."""
    logits, labels, _ = batch(classes, torch.float32, rows)
    soft = torch.rand(rows * classes + 1, generator=torch.Generator().manual_seed(2))[1:].view(rows, classes)
    memory = torch.zeros(rows * classes + 1, device=kernels.device)
    memory[1:] = soft.flatten().to(kernels.device)
    loss, grad, _ = kernels.ops.soft_cross_entropy(
        logits.to(kernels.device), memory[1:].view(rows, classes), "none", False, 0.0
    )
    expected = reference.soft_cross_entropy(logits.double(), soft.double(), "none", False)
    close(loss.cpu(), expected[0], torch.float32)
    close(grad.cpu(), expected[1], torch.float32)
    out = memory[1:].view(rows, classes)
    kernels.ops.redistribute_labels.out(
        logits.to(kernels.device), labels.to(kernels.device), 9.0, 0.01, None, "main", out=out
    )
    close(out.cpu(), reference.redistribute_labels(logits.double(), labels), torch.float32)
    assert memory[0] == 0


@pytest.mark.parametrize("classes", [200, 1000, 2612])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_all_lanes_take_the_same_search_steps_with_zeros_of_both_signs(
    kernels: Kernels, classes: int, dtype: torch.dtype
) -> None:
    """max(+0, -0) may be either, and may differ between lanes, whose searches would then take different steps."""
    generator = torch.Generator().manual_seed(3)
    rows = 12
    zeros = torch.where(torch.rand(rows, classes, generator=generator) < 0.5, 0.0, -0.0)
    below = torch.where(
        torch.rand(rows, classes, generator=generator) < 0.5, -torch.rand(classes, generator=generator), zeros
    )
    for logits in (zeros.to(dtype), below.to(dtype), -below.to(dtype)):
        for top_k in (1, classes // 10, 3 * classes // 4):
            labels = torch.zeros(rows, dtype=torch.int64)
            check_joint(kernels, logits, labels, labels, "mc", (9.0, 0.01, top_k, "main"))


def test_a_row_of_imagenet_21k_has_four_blocks_on_an_h100(kernels: Kernels) -> None:
    """64 rows have 256 blocks, on 132 multiprocessors with room for two each."""
    if kernels.device == "cuda":
        pytest.skip("the arguments of a launch on a GPU are not known")
    logits, labels, given = batch(21_841, torch.float32, rows=64)
    emulated_library().emulate_multiprocessors(132)
    try:
        check_joint(kernels, logits, labels, given, "mc", (9.0, 0.01, None, "main"))
    finally:
        emulated_library().emulate_multiprocessors(kernels.multiprocessors)
    assert launched(kernels) == (256, 512, 4, staged(21_841, 4, torch.float32))
