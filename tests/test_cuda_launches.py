"""Which lanes share a row of joint_gradient and soft_cross_entropy: a batch for every kind of launch.

A warp, a block or a cluster of blocks, by the number of classes and by how many rows there are for each multiprocessor.
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
    check_broken,
    check_joint,
    close,
    emulated_library,
    run,
    wide,
)
from torch import Tensor

from rmcla_fast import reference


def launched(kernels: Kernels) -> tuple[int, ...] | None:
    """Blocks, threads of each and blocks of a cluster, of the launch before; a GPU does not say."""
    if kernels.device == "cuda":
        return None
    launch = np.zeros(3, dtype=np.int32)
    emulated_library().probe_last_launch(launch.ctypes.data_as(ctypes.c_void_p))
    return tuple(launch.tolist())


def check_every_rule(kernels: Kernels, logits: Tensor, labels: Tensor, given: Tensor) -> None:
    """joint_gradient with every target and scheme and several top_k; soft_cross_entropy with both kinds of labels."""
    rows, classes = logits.shape
    for target, scheme in itertools.product(TARGETS, ("main", "sup", "none")):
        check_joint(kernels, logits, labels, given, target, (9.0, 0.01, None, scheme))
    for top_k in (1, 9, classes // 2, classes - 2):
        check_joint(kernels, logits, labels, given, "mc", (11.0, 0.01, top_k, "main"))
        check_joint(kernels, logits.round(), labels, given, "ll", (11.0, 0.01, top_k, "sup"))  # with many ties
    soft = torch.rand(rows, classes, dtype=wide(logits.dtype), generator=torch.Generator().manual_seed(1)) / classes
    for y in (labels, soft):
        loss, grad, grad_labels = run(kernels, "soft_cross_entropy", logits, y, "none", True)
        expected = reference.soft_cross_entropy(logits.double(), y if y.dim() == 1 else y.double(), "none", True)
        close(loss, expected[0], wide(logits.dtype))
        close(grad, expected[1], logits.dtype)
        close(grad_labels, expected[2], wide(logits.dtype))


@pytest.mark.parametrize("classes", [129, 1000, 1001, 1024])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_many_rows_have_a_warp_each(kernels: Kernels, classes: int, dtype: torch.dtype) -> None:
    rows = 2 * kernels.multiprocessors + 1
    logits, labels, given = batch(classes, dtype, rows)
    check_every_rule(kernels, logits, labels, given)
    assert launched(kernels) in (None, ((rows + 1) // 2, 64, 1))
    check_every_rule(kernels, logits[:-1], labels[:-1], given[:-1])
    assert launched(kernels) in (None, (rows - 1, 256, 1))  # a block each
    logits[rows // 2, classes - 1], labels[0], labels[1] = NAN, -1, classes
    check_broken(kernels, logits, labels, given, "mc", [0, 1, rows // 2])


@pytest.mark.parametrize("classes", [4096, 16384, 21841])
@pytest.mark.parametrize("blocks", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_long_row_has_several_blocks(kernels: Kernels, classes: int, blocks: int, dtype: torch.dtype) -> None:
    """As many as find room: two a multiprocessor (float64: one), and four elements a thread."""
    room = kernels.multiprocessors * (1 if dtype == torch.float64 else 2)
    rows = room // blocks + 1 if blocks == 1 else room // blocks
    if rows == 0 or classes < blocks * 2048:
        pytest.skip("so many blocks find no room" if rows == 0 else "so many blocks would have too little to do")
    logits, labels, given = batch(classes, dtype, rows)
    check_every_rule(kernels, logits, labels, given)
    assert launched(kernels) in (None, (rows * blocks, 512, blocks))
    logits[rows - 1, classes - 1] = NAN
    check_broken(kernels, logits, labels, given, "mc", [rows - 1])


def test_a_row_of_imagenet_21k_has_four_blocks_on_an_h100(kernels: Kernels) -> None:
    """64 rows are 256 blocks, for 132 multiprocessors that take two each."""
    if kernels.device == "cuda":
        pytest.skip("a GPU does not say what it was launched with")
    logits, labels, given = batch(21_841, torch.float32, rows=64)
    emulated_library().emulate_multiprocessors(132)
    try:
        check_joint(kernels, logits, labels, given, "mc", (9.0, 0.01, None, "main"))
    finally:
        emulated_library().emulate_multiprocessors(kernels.multiprocessors)
    assert launched(kernels) == (256, 512, 4)
