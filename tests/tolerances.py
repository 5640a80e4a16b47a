"""The tolerances of the tests, the same for every backend, and the comparisons that use them.

The exact result is that of the float64 oracle for the exactly converted input. A result in float16 or bfloat16 may be
off by one more unit in the last place than the same result in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import oracle
import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """The bound |result - exact| <= absolute + relative * |exact| + units_in_last_place * ulp(exact).

    If units_in_last_place is not 0, `exact` is first rounded to the dtype of the result.
    """

    absolute: float
    relative: float = 0.0
    units_in_last_place: int = 0


SOFT_LABELS = {torch.float32: Tolerance(1e-6), torch.float64: Tolerance(1e-12)}
SOFT_LABEL_SUM = {torch.float32: 1e-6, torch.float64: 1e-12}
LOSS = {torch.float32: Tolerance(1e-6, 1e-6), torch.float64: Tolerance(1e-12, 1e-12)}
GRADIENT = {
    torch.float32: Tolerance(1e-6),
    torch.float64: Tolerance(1e-12),
    torch.float16: Tolerance(1e-6, units_in_last_place=1),
    torch.bfloat16: Tolerance(1e-6, units_in_last_place=1),
}
LABEL_GRADIENT = {  # v = -log p has the magnitude of a loss and the dtype of the labels
    torch.float32: Tolerance(1e-6, 1e-6),
    torch.float64: Tolerance(1e-12, 1e-12),
    torch.float16: Tolerance(1e-6, 1e-6, 1),
    torch.bfloat16: Tolerance(1e-6, 1e-6, 1),
}


def exact(tensor: Tensor) -> np.ndarray:
    """Return the values of the tensor in float64, on the host."""
    return tensor.detach().cpu().to(torch.float64).numpy()


def exact_logits(logits: Tensor) -> np.ndarray:
    """Return the logits as the oracle takes them: in float64, with infinity for those that count as infinite."""
    return oracle.counted(exact(logits), 64 if logits.dtype == torch.float64 else 32)


def unit_in_last_place(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Return the distance between neighbouring numbers of `dtype` at `values`."""
    info = torch.finfo(dtype)
    magnitude = np.clip(np.nan_to_num(np.abs(values), posinf=info.max), info.smallest_normal, info.max)
    return 2.0 ** np.floor(np.log2(magnitude)) * info.eps


def assert_close(
    result: Tensor,
    expected: np.ndarray,
    table: dict[torch.dtype, Tolerance],
    what: str,
    scale: float | np.ndarray = 1.0,
) -> None:
    """Check that every element is within the table's tolerance times `scale`, and is NaN exactly if the oracle's is."""
    tolerance = table[result.dtype]
    got = exact(result)
    if tolerance.units_in_last_place:
        expected = exact(torch.from_numpy(np.asarray(expected)).to(result.dtype))
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(got), nan), f"{what}: NaN at the wrong places\n{got}\nexpected\n{expected}"
    limit = np.broadcast_to((tolerance.absolute + tolerance.relative * np.abs(expected)) * scale, expected.shape).copy()
    if tolerance.units_in_last_place:
        limit += tolerance.units_in_last_place * unit_in_last_place(expected, result.dtype)
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(got - expected) <= limit) & ~nan & (got != expected)  # equal infinities are close
    if wrong.any():
        where = tuple(int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape))  # () if there is one number
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.size} elements off; first at {where}: got {got[where]!r}, "
            f"expected {expected[where]!r}, error {abs(got[where] - expected[where]):.3g}, allowed {limit[where]:.3g}"
        )


def assert_soft_labels(soft_labels: Tensor, expected: np.ndarray) -> None:
    """Check that soft labels are close to the oracle's, exactly 0 for classes without mass, and sum to 1 in a row."""
    assert_close(soft_labels, expected, SOFT_LABELS, "soft_labels")
    assert (exact(soft_labels)[expected == 0] == 0).all(), "soft_labels: must be exactly 0 for classes without mass"
    off = np.abs(exact(soft_labels).sum(1) - 1)
    assert (off[np.isfinite(off)] <= SOFT_LABEL_SUM[soft_labels.dtype]).all(), "soft_labels: rows must sum to 1"


def assert_same_bits(result: Tensor, expected: Tensor, what: str) -> None:
    """Check that shape, dtype and every value are equal, with NaN equal to NaN.

    The zeros are equal too, since max(-0, 0) may be either.
    """
    assert result.dtype == expected.dtype, f"{what}: {result.dtype}, expected {expected.dtype}"
    assert result.shape == expected.shape, f"{what}: shape {tuple(result.shape)}, expected {tuple(expected.shape)}"
    result, expected = result.detach().cpu(), expected.detach().cpu()
    wrong = ~((result == expected) | (result.isnan() & expected.isnan()))
    if bool(wrong.any()):
        where = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} elements differ; first at {where}: "
            f"got {result[where].item()!r}, expected {expected[where].item()!r}"
        )


def assert_threads_change_no_bit(call: Callable[[], Tensor | tuple[Tensor, ...]]) -> None:
    """Check that repeated calls give the same bits, also with one, two and three threads."""
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (threads, 1, 2, 3):
            torch.set_num_threads(count)
            result = call()
            results.append((result,) if isinstance(result, Tensor) else result)
    finally:
        torch.set_num_threads(threads)
    for again in results[1:]:
        for place, (first, other) in enumerate(zip(results[0], again, strict=True)):
            assert torch.equal(first, other), f"result {place}"
