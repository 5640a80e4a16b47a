"""Tests for the CPU kernels alone: instruction sets, whole and partial vectors, selection, 16-bit conversion."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rmcla_fast import reference
from rmcla_fast.ops import extension

pytestmark = pytest.mark.skipif(not extension.has_kernels("cpu"), reason=extension.why_missing("cpu"))

OPERATORS = torch.ops.rmcla_fast
HALVES = (torch.float16, torch.bfloat16)
# Numbers close to one vector and to the longest short row (64), and rows too long for the buffer on the stack.
CLASSES = (2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 80, 127, 1000, 4099, 21841)


def row_inputs(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(classes)
    return 4 * torch.randn(rows, classes), torch.randint(classes, (rows,))


def same_bits(got: Tensor, wanted: Tensor) -> bool:
    """Return whether all values are equal, with NaN equal to NaN, and zeros have the same sign."""
    one_sign = torch.equal(got.signbit() | got.isnan(), wanted.signbit() | wanted.isnan())
    return (
        one_sign and torch.equal(got.nan_to_num(7), wanted.nan_to_num(7)) and torch.equal(got.isnan(), wanted.isnan())
    )


@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", ["default", "avx2"])
def test_every_instruction_set_passes_these_tests(instruction_set: str) -> None:
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": instruction_set}
    environment["PYTHONPATH"] = str(Path(extension.__file__).parents[2])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("rows", [1, 3, 16, 37])
def test_rows_of_many_lengths(rows: int, classes: int) -> None:
    logits, labels = row_inputs(rows, classes)
    labels[-1] = classes - 1  # in the last, partial vector
    for scheme in ("main", "sup"):
        got = OPERATORS.joint_gradient(logits, labels, "mc", None, 9.0, 0.01, None, scheme)
        wanted = reference.joint_gradient(logits.double(), labels, "mc", None, 9.0, 0.01, None, scheme)
        torch.testing.assert_close(got[0].double(), wanted[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got[1].double(), wanted[1], rtol=0, atol=1e-6)
        torch.testing.assert_close(got[2].double(), wanted[2], rtol=0, atol=1e-6)
        assert torch.equal(got[3], wanted[3])
        assert (got[2].double().sum(1) - 1).abs().max() < 1e-6
        alone = OPERATORS.redistribute_labels(logits, labels, 9.0, 0.01, None, scheme)
        assert torch.equal(alone, got[2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", CLASSES)
def test_a_row_does_not_depend_on_its_neighbours(classes: int, smoothing: float) -> None:
    """The kernels read and write whole vectors beyond the ends of rows, which must not change any result."""
    logits, labels = row_inputs(9, classes)
    poisoned = torch.full((11, classes + 5), float("nan"))
    poisoned[1:10, 2:-3] = logits
    inside = poisoned[1:10, 2:-3]
    inside[4, classes // 2] = float("nan")
    soft = torch.rand(9, classes)
    together = (
        *OPERATORS.joint_gradient(inside, labels, "ll", None, 9.0, 0.01, None, "main"),
        *OPERATORS.soft_cross_entropy(inside, soft, "none", True, smoothing),
    )
    for row in (0, 3, 5, 8):
        one = inside[row : row + 1].clone()
        alone = (
            *OPERATORS.joint_gradient(one, labels[row : row + 1], "ll", None, 9.0, 0.01, None, "main"),
            *OPERATORS.soft_cross_entropy(one, soft[row : row + 1], "none", True, smoothing),
        )
        for got, wanted in zip(together, alone, strict=True):
            assert torch.equal(got[row : row + 1], wanted)
    for output in together:
        assert (output[4] == -1 if output.dtype == torch.int64 else output[4].isnan()).all()


@pytest.mark.parametrize("levels", [1, 3, 1000])
@pytest.mark.parametrize("classes", [5, 16, 40, 130, 1000])
def test_selection_is_exact_for_every_k(classes: int, levels: int) -> None:
    logits, labels = row_inputs(6, classes)
    logits = (logits * levels).round() / levels  # many ties, or few
    for k in {1, 2, 9, 12, 13, 16, 47, 64, 65, classes // 2, classes - 2} & set(range(1, classes - 1)):
        got = OPERATORS.redistribute_labels(logits, labels, 9.0, 0.01, k, "main")
        wanted = reference.redistribute_labels(logits.double(), labels, 9.0, 0.01, k, "main")
        assert torch.equal(got > 0, wanted > 0), k
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-6)


def test_subnormal_probabilities_are_accurate() -> None:
    gaps = torch.linspace(0, 120, 64)
    for classes in (64, 65):  # the longest short row, and the shortest long one
        logits = torch.full((1, classes), -1e3)
        logits[0, :64] = -gaps
        gradient = OPERATORS.joint_gradient(logits, torch.tensor([0]), "mc", None, 9.0, 0.01, None, "none")[1]
        wanted = -logits.double().softmax(1)[0, 2:].float()
        torch.testing.assert_close(gradient[0, 2:], wanted, rtol=1e-6, atol=3e-45)
        assert gradient[0, 63] == 0


def test_a_sum_of_many_equal_terms_is_accurate() -> None:
    """A plain float32 sum of 21,840 equal terms is off by 1e-5."""
    logits = torch.full((2, 21841), -7.3)
    logits[:, 5] = 1.1
    got = OPERATORS.redistribute_labels(logits, torch.tensor([0, 5]), 9.0, 0.01, None, "main")
    assert (got.double().sum(1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", HALVES)
def test_every_16_bit_value_is_converted_exactly(dtype: torch.dtype) -> None:
    images = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    zero, wide = torch.zeros_like(images), torch.full(images.shape, 0.0)
    arguments = (0.0, None, 1e30, None, -1e38, 1e38)
    got = OPERATORS.perturb_step(images, wide, zero, *arguments)
    wanted = reference.perturb_step(images, wide, zero, *arguments)
    assert same_bits(got, wanted)
    as_origin = OPERATORS.perturb_step(wide, images, wide, 0.0, None, 0.0, None, -1e38, 1e38)
    assert same_bits(as_origin, reference.perturb_step(wide, images, wide, 0.0, None, 0.0, None, -1e38, 1e38))


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_to_16_bits_is_to_nearest_even(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    exact = torch.arange(0, 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    exact = exact[exact.isfinite()]
    halfway = (exact[1:] + exact[:-1]) / 2
    infinity = torch.full_like(halfway, float("inf"))
    candidates = torch.cat([halfway, halfway.nextafter(infinity), halfway.nextafter(-infinity), torch.rand(1000)])
    # The centre is float32 and the radius 0, so the result is the centre, stored in 16 bits.
    images = torch.zeros(candidates.shape, dtype=dtype)
    got = OPERATORS.perturb_step(images, candidates, images, 0.0, None, 0.0, None, -3e38, 3e38)
    assert torch.equal(got, candidates.clamp(max=3e38).to(dtype))


def test_every_byte_is_divided_with_correct_rounding() -> None:
    origin = torch.arange(256, dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64):
        images = torch.zeros(256, dtype=dtype)
        got = OPERATORS.perturb_step(images, origin, images, 0.0, None, 0.0, None, 0.0, 1.0)
        assert torch.equal(got, origin.to(dtype) / 255)


def test_a_tiny_float64_gradient_keeps_its_sign_with_float32_images() -> None:
    images = torch.full((70,), 0.5)
    grad = torch.full((70,), 1e-300, dtype=torch.float64)
    grad[::2] *= -1
    got = OPERATORS.perturb_step(images, images, grad, 0.25, None, 1.0, None, 0.0, 1.0)
    assert torch.equal(got, 0.5 + 0.25 * grad.sign().float())


@pytest.mark.parametrize("offset", [0, 1, 5])
def test_large_outputs_that_are_stored_without_caching_are_the_same(offset: int) -> None:
    count = (34 << 20) // 4 + 3
    torch.manual_seed(0)
    images, grad = torch.rand(count), torch.randn(count)
    for mask in (None, torch.rand(count), torch.rand(count) < 0.5):
        out = torch.full((count + offset,), float("nan"))[offset:]
        OPERATORS.perturb_step.out(images, images, grad, 0.1, None, 0.05, None, 0.0, 1.0, mask, out=out)
        assert torch.equal(out, reference.perturb_step(images, images, grad, 0.1, None, 0.05, None, mask=mask))


@pytest.mark.parametrize("form", [(), (512,), (37, 1)], ids=str)
def test_large_outputs_with_a_mask_that_repeats_itself_are_the_same(form: tuple[int, ...]) -> None:
    """Each repetition begins at another place of a line of the cache."""
    rows = (34 << 20) // 4 // (37 * 512) + 1
    torch.manual_seed(0)
    images, grad = torch.rand(rows, 37, 512), torch.randn(rows, 37, 512)
    buffer = torch.full((images.numel() + 3,), float("nan"))
    out = buffer[3:].view(images.shape)
    for mask in (torch.rand(form), torch.rand(form) < 0.5):
        OPERATORS.perturb_step.out(images, images, grad, 0.1, None, 0.05, None, 0.0, 1.0, mask, out=out)
        assert torch.equal(out, reference.perturb_step(images, images, grad, 0.1, None, 0.05, None, mask=mask))


def test_a_label_outside_the_classes_is_an_error_before_anything_is_written() -> None:
    logits, labels = row_inputs(300, 1000)
    labels[250] = 1000
    out = torch.full((300, 1000), 7.0)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 1000\); got 1000 in row 250"):
        OPERATORS.redistribute_labels.out(logits, labels, 9.0, 0.01, None, "main", out=out)
    assert (out == 7).all()


def test_only_functions_for_wider_instruction_sets_use_their_registers() -> None:
    """The linker keeps one copy of an inline function. One compiled for AVX-512 would crash on other processors."""
    library = extension.path_of("cpu")
    if shutil.which("objdump") is None or platform.machine() != "x86_64" or sys.platform != "linux":
        pytest.skip("needs objdump on Linux on x86-64")
    listing = subprocess.run(["objdump", "-d", "-C", str(library)], check=True, capture_output=True, text=True).stdout
    functions = dict(re.findall(r"^[0-9a-f]+ <(.*)>:\n((?:[ \t].*\n)+)", listing, flags=re.MULTILINE))
    wide = {name for name, code in functions.items() if re.search(r"%[yz]mm\d|%k[1-7]\b", code)}
    assert any("rmcla::with_avx512<" in name for name in wide)
    assert any("rmcla::with_avx2<" in name for name in wide)
    assert not [name for name in wide if not re.match(r"void rmcla::with_avx(2|512)<", name)]


def resident_memory() -> int:
    """Return the bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process as Linux shows it")
def test_calls_keep_no_memory() -> None:
    """PyTorch's headers up to 2.13 leak every string argument of a kernel on the stable ABI, some 50 bytes each."""
    logits, labels = row_inputs(3, 5)
    images = torch.rand(3, 4)

    def call() -> None:
        OPERATORS.joint_gradient(logits, labels, "mc", None, 9.0, 0.01, 2, "main")
        OPERATORS.soft_cross_entropy(logits, labels, "mean", True, 0.1)
        OPERATORS.perturb_step.out(images, images, images, 0.1, None, 0.1, None, 0.0, 1.0, None, out=images)
        with pytest.raises(ValueError, match="target must be"):
            OPERATORS.joint_gradient(logits, labels, "a word of many more letters", None, 9.0, 0.01, 2, "main")

    for _ in range(1000):
        call()
    before = resident_memory()
    for _ in range(20_000):
        call()
    assert resident_memory() - before < 1 << 20  # of the 5 MB that three leaked strings a call would take
