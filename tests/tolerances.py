"""How close a result must be, one table for every operator and backend, and the comparisons that read it.

The exact result is the float64 oracle on the exactly converted input. What is stored in float16 or bfloat16 may be one
unit in the last place further off than the same result stored in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """|result - stored| <= absolute + relative * |stored| + units_in_last_place * ulp(stored).

    With units in the last place, `stored` is the exact result rounded to the result's dtype; without, the exact result.
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
LABEL_GRADIENT = {  # v = -log p has a loss's magnitude, and the label's dtype
    torch.float32: Tolerance(1e-6, 1e-6),
    torch.float64: Tolerance(1e-12, 1e-12),
    torch.float16: Tolerance(1e-6, 1e-6, 1),
    torch.bfloat16: Tolerance(1e-6, 1e-6, 1),
}


def exact(tensor: Tensor) -> np.ndarray:
    """The tensor's values in float64, on the host."""
    return tensor.detach().cpu().to(torch.float64).numpy()


def unit_in_last_place(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The distance between neighbours of `dtype` at `values`."""
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
    """NaN exactly where the oracle has NaN, and every other element within the table's tolerance, times `scale`."""
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
        where = tuple(int(i[0]) for i in np.nonzero(wrong))
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.size} elements off; first at {where}: got {got[where]!r}, "
            f"expected {expected[where]!r}, error {abs(got[where] - expected[where]):.3g}, allowed {limit[where]:.3g}"
        )


def assert_soft_labels(soft_labels: Tensor, expected: np.ndarray) -> None:
    """Close to the oracle's; exactly 0 where no mass goes; each row sums to one."""
    assert_close(soft_labels, expected, SOFT_LABELS, "soft_labels")
    assert (exact(soft_labels)[expected == 0] == 0).all(), "soft_labels: exactly 0 where no mass goes"
    off = np.abs(exact(soft_labels).sum(1) - 1)
    assert (off[np.isfinite(off)] <= SOFT_LABEL_SUM[soft_labels.dtype]).all(), "soft_labels: rows must sum to 1"


def assert_same_bits(result: Tensor, expected: Tensor, what: str) -> None:
    """The same shape, dtype and value everywhere, NaN beside NaN; the two zeros are one, since max(-0, 0) is either."""
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
    """The same bits from call to call, and on one, two and three threads."""
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
