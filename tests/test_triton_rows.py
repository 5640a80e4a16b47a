"""The Triton kernels on rows against the reference: long rows in tiles, integer keys, ranks of ties, and targets.

Tests that all backends share are in test_<operator>.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from adversarial_inputs import FLOAT_DTYPES
from tolerances import assert_same_bits
from torch import Tensor
from triton_cases import DEVICE, MARKS

import rmcla_fast
from rmcla_fast.triton_kernels import rows

TARGETS = ("mc", "ll", "untargeted", "margin", "given")

pytestmark = MARKS


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiles_of_16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make kernels read rows of more than 16 classes in tiles, as they do for more than 4,096 classes."""
    monkeypatch.setattr(rows, "LONGEST_TILE", 16)
    rows.block_shape.cache_clear()
    yield
    rows.block_shape.cache_clear()


def assert_near(result: Tensor | None, expected: Tensor | None, what: str) -> None:
    """Check that dtype and NaN are equal, and values within rounding errors of the arithmetic and the storage."""
    assert (result is None) == (expected is None), what
    if result is None or expected is None:
        return
    assert result.dtype == expected.dtype, what
    storage = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
    torch.testing.assert_close(
        result.double(),
        expected.double(),
        rtol=storage[result.dtype],
        atol=1e-13 if result.dtype == torch.float64 else 1e-6,
        equal_nan=True,
        msg=lambda text: f"{what}: {text}",
    )


def logits_and_labels(batch: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return logits with few distinct values, so that there are many ties, and labels."""
    logits = (torch.randn(batch, classes) * 2).round().to(dtype).to(DEVICE)
    return logits, torch.randint(0, classes, (batch,)).to(DEVICE)


def check_rows(
    logits: Tensor, labels: Tensor, target: str = "mc", scheme: str = "main", top_k: int | None = None
) -> None:
    """Check `joint_gradient` and `redistribute_labels` against the reference."""
    what = f"{tuple(logits.shape)} {logits.dtype} {logits.stride()} {target} {scheme} top {top_k}"
    wanted = labels.flip(0) if target == "given" else target
    rule = {"top_k": top_k, "label_scheme": scheme}
    result = rmcla_fast.joint_gradient(logits, labels, target=wanted, **rule, backend="triton")
    expected = rmcla_fast.joint_gradient(logits, labels, target=wanted, **rule, backend="reference")
    for name, got, value in zip(result._fields, result, expected, strict=True):
        if name == "targets":
            assert torch.equal(got, value), what
        else:
            assert_near(got, value, f"{name}, {what}")
    if scheme != "none":
        assert expected.soft_labels is not None
        assert torch.equal(result.soft_labels == 0, expected.soft_labels == 0), what  # the same classes receive mass
        alone = rmcla_fast.redistribute_labels(logits, labels, **rule, backend="triton")
        assert_same_bits(alone, result.soft_labels, what)


def check_loss(logits: Tensor, labels: Tensor) -> None:
    """Check the loss and both gradients against the reference, for every reduction."""
    for reduction, smoothing in (("mean", 0.0), ("sum", 0.1), ("none", 0.999)):
        results = []
        for backend in ("triton", "reference"):
            leaves = [logits.clone().requires_grad_()]
            if labels.dtype != torch.int64:
                leaves.append(labels.clone().requires_grad_())
            given = leaves[1] if len(leaves) == 2 else labels
            rule = {"reduction": reduction, "label_smoothing": smoothing, "backend": backend}
            loss = rmcla_fast.soft_cross_entropy(leaves[0], given, **rule)
            weight = torch.linspace(0.5, 2, len(logits), device=DEVICE, dtype=loss.dtype)
            weight = weight if reduction == "none" else weight[0]
            results.append((loss, *torch.autograd.grad(loss, leaves, weight)))
        for got, expected in zip(*results, strict=True):
            assert_near(got, expected, f"{tuple(logits.shape)} {logits.dtype} {labels.dtype} {reduction}")


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("scheme", ["main", "sup", "none"])
def test_every_target_and_dtype(dtype: torch.dtype, scheme: str) -> None:
    for target in TARGETS:
        for classes in (2, 10):
            logits, labels = logits_and_labels(17, classes, dtype)
            check_rows(logits, labels, target, scheme)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_every_top_k(dtype: torch.dtype) -> None:
    for classes in (2, 3, 7):
        logits, labels = logits_and_labels(16, classes, dtype)
        for top_k in range(1, classes + 1):
            check_rows(logits, labels, scheme="sup" if top_k % 2 else "main", top_k=top_k)


@pytest.mark.usefixtures("tiles_of_16")
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_rows_in_several_tiles(dtype: torch.dtype) -> None:
    logits, labels = logits_and_labels(9, 37, dtype)  # two programs, three tiles
    for number, target in enumerate(TARGETS):
        check_rows(logits, labels, target, ("main", "sup")[number % 2])
    check_rows(logits, labels, scheme="sup", top_k=9)
    for soft in (labels, torch.rand_like(logits)):
        check_loss(logits, soft)


@pytest.mark.usefixtures("tiles_of_16")
def test_ties_across_tiles() -> None:
    logits = torch.zeros(4, 50, device=DEVICE)
    logits[1, 20:] = -0.0  # equal to 0, so these are ties
    logits[2, ::7] = 1.0
    logits[3, 40] = -1.0
    for top_k in (1, 16, 17, 48):
        check_rows(logits, torch.tensor([0, 18, 21, 49], device=DEVICE), "ll", top_k=top_k)


def test_many_classes() -> None:
    for classes in (4096, 21_841):
        logits, labels = logits_and_labels(1, classes)
        check_rows(logits, labels, scheme="sup", top_k=9)
        check_rows(logits, labels)
        check_loss(logits, torch.rand_like(logits).softmax(1))


@pytest.mark.parametrize("value", [1e4, -1e4, 1e19, 3e38])
def test_saturated_logits(value: float) -> None:
    logits, labels = logits_and_labels(6, 10)
    rows = torch.arange(6, device=DEVICE)
    logits[rows, (labels + rows) % 10] = value
    for target in TARGETS:
        for scheme in ("main", "sup"):
            check_rows(logits, labels, target, scheme, top_k=5)
    check_loss(logits, torch.rand_like(logits))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.usefixtures("tiles_of_16")
def test_non_finite_rows_in_several_tiles(value: float) -> None:
    logits, labels = logits_and_labels(4, 40)
    logits[0, 39] = logits[2, labels[2]] = value
    for number, target in enumerate(TARGETS):
        check_rows(logits, labels, target, ("main", "sup")[number % 2], top_k=5 if target == "ll" else None)
    check_loss(logits, torch.rand_like(logits))
