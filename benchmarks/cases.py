"""What the operator benchmarks share: the sizes, compiled rivals, and the record of a comparison."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from roofline import copies, roof_seconds
from timing import Run, figure, interleaved, reason, spread, uses_graphs
from torch import Tensor

from rmcla_fast.ops.dispatch import resolve

LOGITS = [  # (B, C, top_k)
    pytest.param(128, 10, None, id="128x10"),
    pytest.param(128, 100, None, id="128x100"),
    pytest.param(256, 1000, None, id="256x1000"),
    pytest.param(4096, 1000, None, id="4096x1000"),
    pytest.param(4096, 1000, 9, id="4096x1000-top9"),
    pytest.param(64, 21841, None, id="64x21841"),
]
IMAGES = [
    pytest.param((128, 3, 32, 32), id="128x3x32x32"),
    pytest.param((64, 3, 224, 224), id="64x3x224x224"),
]


@dataclass
class Row:
    """One comparison; seconds a call."""

    operator: str
    case: str
    device: str
    backend: str  # of "ours"
    cold: bool | None  # whether a call finds none of its inputs in L2; None on a CPU
    seconds: dict[str, float]
    spread: dict[str, tuple[float, float]]  # quartiles over the rounds
    missing: dict[str, str] = field(default_factory=dict)  # the rivals that gave no figure, and why
    roof: float | None = None  # seconds that the memory traffic alone takes

    def ratio(self, rival: str) -> float:
        return self.seconds[rival] / self.seconds["ours"]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


rows: list[Row] = []
references_until = float("inf")  # on `time.monotonic`; conftest.py sets it


def _comparison_only(name: str, labels: Tensor, num_classes: int) -> Tensor:
    return (labels >= 0) & (labels < num_classes)


for _stem in ("augment", "joint_gradient", "soft_cross_entropy"):
    # The rivals are spared the check of label and index values: it reads them, so a compiled graph would break there.
    importlib.import_module(f"rmcla_fast.reference.{_stem}").in_range = _comparison_only  # type: ignore[attr-defined]


def _topk(z: Tensor, count: int) -> Tensor:
    return z.topk(count, largest=False).indices


# And the stable sort, many times as slow: without ties torch.topk selects the same classes.
importlib.import_module("rmcla_fast.reference.joint_gradient").smallest = _topk  # type: ignore[attr-defined]


def is_large(tensor: Tensor) -> bool:
    """Whether memory traffic decides the time: a roof is drawn, and on a GPU each call starts with a cold L2."""
    return tensor.numel() >= (1 << 20 if uses_graphs(tensor.device) else 1 << 22)


def compiled(plain: Callable[..., Any], like: Tensor) -> Callable[..., Any]:
    """torch.compile of plain code for static shapes; large work on a GPU is also tuned (on a CPU that tunes only gemm).

    Not mode="max-autotune-no-cudagraphs": its coordinate descent compiles one candidate after the other.
    """
    tuned = uses_graphs(like.device) and is_large(like) and time.monotonic() < references_until
    return torch.compile(plain, fullgraph=True, dynamic=False, options={"max_autotune": True} if tuned else None)


def compiled_reference(reference: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile of a reference, or a rival that says why it is missing."""
    if time.monotonic() < references_until:
        return torch.compile(reference, fullgraph=True, dynamic=False)

    def too_late(*_: Any) -> None:
        raise TimeoutError("not compiled, to keep within the time of --references-for")

    return too_late


def compare(
    benchmark: BenchmarkFixture,
    operator: str,
    case: str,
    rivals: dict[str, Run],
    check: Callable[[str, Any], None],
    *,
    like: Tensor,
    bytes_moved: int,
) -> None:
    """Checks each rival's result ("ours" is one), times them in turns, records the row, and tells pytest-benchmark.

    `check(name, result)` raises where a result is wrong. `like` is a tensor of the size that the operator works on, and
    `bytes_moved` what it must read and write. Only "ours" must succeed; a rival that does not is recorded as missing.
    """
    device, large = like.device, is_large(like)
    runs: dict[str, Run] = {}
    missing: dict[str, str] = {}
    for name, run in rivals.items():
        try:
            check(name, run())
            runs[name] = run
        except Exception as error:
            if name == "ours":
                raise
            missing[name] = reason(error)
    copied = copies(like, bytes_moved) if large else {}
    samples, failed = interleaved({**runs, **{name: run for name, (run, _) in copied.items()}}, device, large)
    assert "ours" not in failed, failed["ours"]
    seconds = {name: figure(values, device) for name, values in samples.items()}
    spreads = {name: spread(values) for name, values in samples.items()}
    roof = roof_seconds(seconds, copied, bytes_moved)
    backend = resolve(device.type, None)
    cold = large if uses_graphs(device) else None
    row = Row(operator, case, str(device), backend, cold, seconds, spreads, {**missing, **failed}, roof)
    rows.append(row)
    benchmark.extra_info.update(row.as_dict())
    if uses_graphs(device):  # pytest-benchmark's clock sees the host alone
        benchmark.pedantic(rivals["ours"], rounds=1)
    else:
        benchmark.pedantic(rivals["ours"], rounds=5, iterations=max(1, int(0.002 / seconds["ours"])))
