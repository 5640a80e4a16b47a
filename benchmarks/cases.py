"""What the operator benchmarks share: the sizes, torch.compile of a reference, and the record of a comparison."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from roofline import copies, roof_seconds
from timing import Run, interleaved
from torch import Tensor

LOGITS: list[tuple[int, int, int | None]] = [  # (B, C, top_k)
    (128, 10, None),
    (128, 100, None),
    (256, 1000, None),
    (4096, 1000, None),
    (4096, 1000, 9),
    (64, 21841, None),
]
IMAGES = [(128, 3, 32, 32), (64, 3, 224, 224)]


@dataclass
class Row:
    """One comparison; seconds a call."""

    operator: str
    case: str
    device: str
    seconds: dict[str, float]
    roof: float | None  # seconds that the memory traffic alone takes

    def ratio(self, rival: str) -> float:
        return self.seconds[rival] / self.seconds["ours"]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


rows: list[Row] = []


def _comparison_only(name: str, labels: Tensor, num_classes: int) -> Tensor:
    return (labels >= 0) & (labels < num_classes)


for _stem in ("augment_start", "joint_gradient", "soft_cross_entropy"):
    # The rivals are spared the check of label and index values: it reads them, so a compiled graph would break there.
    importlib.import_module(f"rmcla_fast.reference.{_stem}").in_range = _comparison_only  # type: ignore[attr-defined]


def _topk(z: Tensor, count: int) -> Tensor:
    return z.topk(count, largest=False).indices


# And the stable sort, many times as slow: without ties torch.topk selects the same classes.
importlib.import_module("rmcla_fast.reference.joint_gradient").smallest = _topk  # type: ignore[attr-defined]


def compiled(reference: Callable[..., Any], device: torch.device) -> dict[str, Callable[..., Any]]:
    """torch.compile of a reference for static shapes; on a GPU also with max-autotune (on a CPU it tunes only gemm)."""
    torch._dynamo.reset()
    rivals = {"compile": torch.compile(reference, fullgraph=True, dynamic=False)}
    if device.type == "cuda":
        rivals["max-autotune"] = torch.compile(
            reference, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs"
        )
    return rivals


def compare(
    benchmark: BenchmarkFixture,
    operator: str,
    case: str,
    rivals: dict[str, Run],
    device: torch.device,
    *,
    copied: Tensor | None = None,
    bytes_moved: int = 0,
) -> None:
    """Times the rivals in turns ("ours" first), records the row, and hands "ours" to pytest-benchmark.

    `copied`: a buffer of the size that the copies of the roof move, for an operator that moves `bytes_moved`.
    """
    extra = copies(copied) if copied is not None else {}
    seconds = interleaved({**rivals, **extra}, device)
    roof = roof_seconds(seconds, copied, bytes_moved) if copied is not None else None
    row = Row(operator, case, str(device), seconds, roof)
    rows.append(row)
    benchmark.extra_info.update(row.as_dict())
    benchmark.pedantic(rivals["ours"], rounds=5, iterations=max(1, int(0.002 / seconds["ours"])))
