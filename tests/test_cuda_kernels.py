"""The CUDA kernels against the reference: on a GPU if there is one, and on every machine emulated on the CPU.

The tests call the registered operators with the arguments of their schemas. Operators on rows are tested here, those on
elements in test_cuda_elements.py, and what only a GPU can show in test_cuda_device.py.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
from typing import Any, NamedTuple

import cuda_emulation
import numpy as np
import pytest
import torch
from adversarial_inputs import FLOAT_DTYPES
from oracle import PHILOX_KNOWN_ANSWERS
from torch import Tensor

from rmcla_fast import reference
from rmcla_fast.ops import extension

CLASSES = (2, 3, 10, 32, 33, 100, 128, 129, 1000, 1024, 1025, 4096, 21841)  # around every change of kernel
TARGETS = ("mc", "ll", "untargeted", "margin", "given")
NAN = float("nan")
EMULATED_MULTIPROCESSORS = 4  # so few that a small batch fills them


class Kernels(NamedTuple):
    """The registered kernels, and the device of their tensors."""

    ops: Any
    device: str
    multiprocessors: int


def on_gpu() -> Any:
    missing = not torch.cuda.is_available() or not extension.has_kernels("cuda")
    reason = "no CUDA device" if not torch.cuda.is_available() else extension.why_missing("cuda")
    return pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(missing, reason=reason if missing else "")])


@pytest.fixture(name="kernels", scope="module", params=["emulated", on_gpu()])
def _kernels(request: pytest.FixtureRequest) -> Kernels:
    if request.param == "cuda":
        return Kernels(torch.ops.rmcla_fast, "cuda", torch.cuda.get_device_properties("cuda").multi_processor_count)
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("the emulation of the CUDA kernels needs a C++ compiler")
    ops = cuda_emulation.load()
    emulated_library().emulate_multiprocessors(EMULATED_MULTIPROCESSORS)
    return Kernels(ops, "cpu", EMULATED_MULTIPROCESSORS)


def to(kernels: Kernels, *values: Any) -> list[Any]:
    return [value.to(kernels.device) if isinstance(value, Tensor) else value for value in values]


def run(kernels: Kernels, name: str, *arguments: Any, **buffers: Tensor) -> Any:
    result = getattr(kernels.ops, name)(*to(kernels, *arguments), **buffers)
    return tuple(None if r is None else r.cpu() for r in result) if isinstance(result, tuple) else result.cpu()


def close(got: Tensor, oracle: Tensor, dtype: torch.dtype) -> None:
    """Check that the error is at most 1e-6 (1e-13 for float64), absolute plus relative.

    For 16-bit dtypes one unit in the last place is added.
    """
    assert got.dtype == dtype
    rounded = oracle.to(dtype)
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    allowed = tolerance + tolerance * rounded.double().abs()
    if dtype.itemsize == 2:
        allowed = allowed + torch.finfo(dtype).eps * rounded.double().abs()
    assert torch.equal(got.isnan(), rounded.isnan())
    assert (((got.double() - rounded.double()).abs() <= allowed) | rounded.isnan()).all()


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def batch(classes: int, dtype: torch.dtype, rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = (3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).to(dtype)
    labels, given = torch.randint(0, classes, (2, rows), generator=generator)
    return logits, labels, given


def check_joint(
    kernels: Kernels, logits: Tensor, labels: Tensor, given: Tensor, target: str, rule: tuple[Any, ...]
) -> None:
    others = (target, given if target == "given" else None, *rule)
    objective, grad, soft, targets = run(kernels, "joint_gradient", logits, labels, *others)
    expected = reference.joint_gradient(logits.double(), labels, *others)
    assert torch.equal(targets, expected[3])
    close(objective, expected[0], wide(logits.dtype))
    close(grad, expected[1], logits.dtype)
    if expected[2] is None:
        assert soft is None
        return
    close(soft, expected[2], wide(logits.dtype))
    assert torch.equal(soft == 0, expected[2] == 0)  # exactly the same classes receive nothing
    assert (soft.double().sum(1) - 1).abs().max() <= 1e-6


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_joint_gradient_agrees_with_float64(kernels: Kernels, classes: int, dtype: torch.dtype) -> None:
    logits, labels, given = batch(classes, dtype)
    for target, scheme in itertools.product(TARGETS, ("main", "sup", "none")):
        check_joint(kernels, logits, labels, given, target, (9.0, 0.01, None, scheme))
    for top_k, scheme in itertools.product({1, 9, classes // 2, classes - 2, classes - 1} - {0}, ("main", "sup")):
        check_joint(kernels, logits, labels, given, "mc", (11.0, 0.01, top_k, scheme))


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_ties_go_to_the_lower_class(kernels: Kernels, classes: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randint(-2, 2, (4, classes), generator=generator).to(dtype)
    logits[0] = 0.5  # all equal
    logits[logits == 0] *= torch.randint(0, 2, (4, classes), generator=generator).to(dtype)[logits == 0] * 2 - 1  # +-0
    labels = torch.randint(0, classes, (4,), generator=generator)
    for top_k in {1, 2, classes // 3, classes // 2, classes - 2} - {0}:
        for target in ("mc", "ll"):
            check_joint(kernels, logits, labels, labels, target, (9.0, 0.01, top_k, "main"))


@pytest.mark.parametrize("seed", range(20))
def test_selection_is_a_stable_sort(kernels: Kernels, seed: int) -> None:
    """The classes that receive mass are the first k of a stable sort, for random sizes, k and distributions."""
    random = np.random.default_rng(seed)
    for _ in range(10):
        classes = int(random.choice([random.integers(3, 33), random.integers(33, 129), random.integers(129, 1500)]))
        top_k = int(random.integers(1, classes - 1))
        values = [
            random.normal(size=classes),
            np.round(random.normal(size=classes), 1),
            random.choice([-1e4, 0.0, 1e4], size=classes),
            random.normal(size=classes) * 10.0 ** random.integers(-44, 18, size=classes),
        ][int(random.integers(4))]
        logits = torch.from_numpy(values)[None].float()
        label = torch.tensor([int(random.integers(classes))])
        got = run(kernels, "redistribute_labels", logits, label, 9.0, 1e-2, top_k, "main")
        order = logits[0].index_fill(0, label, float("inf")).argsort(stable=True)[:top_k]
        most = logits[0].index_fill(0, label, -float("inf")).amax()
        share = torch.zeros(classes, dtype=torch.float64)
        share[order] = most.double() - logits[0, order].double() + 1e-2
        share[label] = 9 * share.max()
        assert torch.allclose(got[0].double(), share / share.sum(), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000, 21841])
def test_saturated_and_equal_logits(kernels: Kernels, classes: int) -> None:
    for dtype in FLOAT_DTYPES:
        logits, labels, given = batch(classes, dtype, rows=4)
        logits[0] = 1e4
        logits[1] = torch.where(torch.arange(classes) % 2 == 0, 1e4, -1e4).to(dtype)
        logits[2] = -1e4
        logits[2, labels[2]] = 1e4
        for target, scheme in itertools.product(TARGETS, ("main", "sup")):
            check_joint(kernels, logits, labels, given, target, (9.0, 0.01, None, scheme))


@pytest.mark.parametrize("classes", [2, 10, 100, 1000, 1025])
@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_gives_nan_and_changes_no_other(kernels: Kernels, classes: int, bad: float) -> None:
    logits, labels, given = batch(classes, torch.float32, rows=6)
    logits[1, 0] = bad
    logits[3, classes - 1] = bad
    logits[5, labels[5]] = bad
    for target in TARGETS:
        check_nan(kernels, logits, labels, given, target, [1, 3, 5])


@pytest.mark.parametrize("classes", [2, 10, 100, 1000, 1025])
@pytest.mark.parametrize("bad", [-1, 2**40, -(2**62)])
def test_a_label_outside_the_classes_gives_a_nan_row(kernels: Kernels, classes: int, bad: int) -> None:
    for outside in (bad, classes):
        logits, labels, given = batch(classes, torch.float32, rows=6)
        labels[2] = outside
        check_nan(kernels, logits, labels, given, "mc", [2])
        labels[2], given[4] = 0, outside
        check_nan(kernels, logits, labels, given, "given", [4])


def check_nan(kernels: Kernels, logits: Tensor, labels: Tensor, given: Tensor, target: str, rows: list[int]) -> None:
    given_or_none = given if target == "given" else None
    results = run(kernels, "joint_gradient", logits, labels, target, given_or_none, 9.0, 0.01, 1, "main")
    keep = [row for row in range(len(logits)) if row not in rows]
    others = None if given_or_none is None else given[keep]
    expected = reference.joint_gradient(logits[keep].double(), labels[keep], target, others, 9.0, 0.01, 1, "main")
    dtypes = wide(logits.dtype), logits.dtype, wide(logits.dtype), torch.int64
    for result, oracle, dtype in zip(results, expected, dtypes, strict=True):
        if dtype == torch.int64:
            assert (result[rows] == -1).all()
            assert torch.equal(result[keep], oracle)
        else:
            assert result[rows].isnan().all()
            close(result[keep], oracle, dtype)


@pytest.mark.parametrize("classes", [10, 100, 1000, 4096])
def test_strided_rows_read_and_write_nothing_outside(kernels: Kernels, classes: int) -> None:
    logits, labels, _ = batch(classes, torch.float32, rows=5)
    expected = reference.redistribute_labels(logits.double(), labels)
    device_labels, on_device = to(kernels, labels, logits)
    rule = (9.0, 0.01, None, "main")
    for offset in (0, 1, 4):  # aligned or not, inside a row of NaN
        row = slice(offset, offset + classes)
        view = torch.full((5, classes + 7), NAN, device=kernels.device)[:, row].copy_(on_device)
        close(run(kernels, "redistribute_labels", view, device_labels, *rule), expected, torch.float32)
        close(run(kernels, "joint_gradient", view, device_labels, "mc", None, *rule)[2], expected, torch.float32)
        poisoned = torch.full((5, classes + 7), 7.0, device=kernels.device)
        kernels.ops.redistribute_labels.out(view, device_labels, *rule, out=poisoned[:, row])
        close(poisoned[:, row].cpu(), expected, torch.float32)
        assert (poisoned[:, :offset] == 7).all()
        assert (poisoned[:, offset + classes :] == 7).all()
    for in_place in (on_device.clone(), on_device.t().contiguous().t()):
        kernels.ops.redistribute_labels.out(in_place, device_labels, *rule, out=in_place)
        close(in_place.cpu(), expected, torch.float32)
    memory = torch.cat([on_device.flatten(), on_device.flatten()[:4]])
    shifted = memory[4:].view(5, classes)  # overlaps the logits
    kernels.ops.redistribute_labels.out(memory[:-4].view(5, classes), device_labels, *rule, out=shifted)
    close(shifted.cpu(), expected, torch.float32)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_soft_cross_entropy_agrees_with_float64(kernels: Kernels, classes: int, dtype: torch.dtype) -> None:
    logits, labels, _ = batch(classes, dtype)
    soft = torch.rand(3, classes, generator=torch.Generator().manual_seed(1)) / classes
    soft[1] *= 3  # labels need not sum to one
    for y, (reduction, smoothing) in itertools.product(
        (labels, soft, soft.bfloat16(), soft.double()), (("mean", 0.0), ("sum", 0.1), ("none", 0.0), ("none", 0.999))
    ):
        loss, grad, grad_labels = run(kernels, "soft_cross_entropy", logits, y, reduction, True, smoothing)
        exact = y if y.dim() == 1 else y.to(wide(dtype)).double()
        expected = reference.soft_cross_entropy(logits.double(), exact, reduction, True, smoothing)
        close(loss, expected[0], wide(dtype))
        close(grad, expected[1], dtype)
        close(grad_labels, expected[2], wide(dtype))
    loss, grad, grad_labels = run(kernels, "soft_cross_entropy", logits, labels, "sum", False, 0.0)
    assert grad_labels is None


def test_soft_cross_entropy_of_bad_rows_is_nan(kernels: Kernels) -> None:
    for classes in (10, 100, 1000, 1025):
        logits, labels, _ = batch(classes, torch.float32, rows=6)
        logits[1, 3] = float("inf")
        labels[2] = classes
        labels[3] = -1
        for smoothing in (0.0, 0.1):
            for result in run(kernels, "soft_cross_entropy", logits, labels, "none", True, smoothing):
                assert result[1:4].isnan().all()
                assert result[[0, 4, 5]].isfinite().all()


def test_empty_tensors(kernels: Kernels) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    objective, grad, soft, targets = run(
        kernels, "joint_gradient", torch.zeros(0, 5), none, "mc", None, 9.0, 0.01, 2, "main"
    )
    assert (objective.shape, grad.shape, soft.shape, targets.shape) == ((0,), (0, 5), (0, 5), (0,))
    loss, _, _ = run(kernels, "soft_cross_entropy", torch.zeros(0, 5), none, "sum", False, 0.1)
    assert loss == 0
    empty = torch.zeros(0, 3, 4, 4)
    assert run(kernels, "perturb_step", empty, empty, empty, 0.1, None, 0.1, None, 0.0, 1.0).shape == empty.shape
    assert run(kernels, "random_start", empty, 0.1, None, torch.tensor([1, 2]), 0.0, 1.0, False).shape == empty.shape


def emulated_library() -> ctypes.CDLL:
    cuda_emulation.load()
    return ctypes.CDLL(str(cuda_emulation.build()))


def probe(name: str, *buffers: Any) -> None:
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("needs a C++ compiler")
    getattr(emulated_library(), name)(*(b.ctypes.data_as(ctypes.c_void_p) for b in buffers))


@pytest.mark.parametrize(("counter", "key", "words"), PHILOX_KNOWN_ANSWERS)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    got = np.zeros(4, dtype=np.uint32)
    probe("probe_philox", np.array(counter, dtype=np.uint32), np.array(key, dtype=np.uint32), got)
    assert tuple(got.tolist()) == words


def test_every_byte_is_divided_with_correct_rounding() -> None:
    singles, doubles = np.zeros(256, dtype=np.float32), np.zeros(256, dtype=np.float64)
    probe("probe_bytes", singles, doubles)
    assert (singles == np.arange(256, dtype=np.float32) / np.float32(255)).all()
    assert (doubles == np.arange(256) / 255.0).all()
