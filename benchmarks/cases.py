"""Provide what the operator benchmarks share: input sizes, compiled rivals, and the comparison itself."""

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
from timing import Run, one_line, quartiles, time_interleaved, typical_seconds
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


# Masks of images (B, C, H, W): one that repeats itself in memory, and shares of all pixels.
MASKS = [pytest.param("square", id="square"), pytest.param("shares", id="shares")]


def mask_of(kind: str, images: Tensor) -> Tensor:
    """Return a bool mask (H, W) with a square in it, or float32 shares in the shape of the images."""
    if kind == "shares":
        return torch.rand(images.shape, generator=torch.Generator().manual_seed(7)).to(images.device)
    height, width = images.shape[2:]
    mask = torch.zeros(height, width, dtype=torch.bool, device=images.device)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    return mask


@dataclass
class Row:
    """The result of one comparison. Times are seconds per call.

    Attributes:
        operator: the name of the operator.
        case: its input in words.
        device: the device that it ran on.
        backend: the backend of "ours".
        cold: True if a call finds none of its inputs in the L2 cache; None on a CPU.
        seconds: the time of each rival.
        spread: the lower and upper quartile of the rounds for each rival.
        missing: the rivals that could not be timed, and the reason.
        roof: the time that the memory traffic alone takes.
    """

    operator: str
    case: str
    device: str
    backend: str
    cold: bool | None
    seconds: dict[str, float]
    spread: dict[str, tuple[float, float]]
    missing: dict[str, str] = field(default_factory=dict)
    roof: float | None = None

    def ratio(self, rival: str) -> float:
        """Return how many times as long as ours a rival takes."""
        return self.seconds[rival] / self.seconds["ours"]


rows: list[Row] = []
references_until = float("inf")  # a time of `time.monotonic`; conftest.py sets it


def _in_range_without_reading_values(name: str, labels: Tensor, num_classes: int) -> Tensor:
    return (labels >= 0) & (labels < num_classes)


for _stem in ("augment", "joint_gradient", "soft_cross_entropy"):
    # The references skip the check of label and index values: it reads them, which would break a compiled graph.
    importlib.import_module(f"rmcla_fast.reference.{_stem}").in_range = _in_range_without_reading_values  # type: ignore[attr-defined]


def _smallest(z: Tensor, count: int) -> Tensor:
    return z.topk(count, largest=False).indices


# The reference sorts to break ties. Without ties torch.topk selects the same classes, and is many times as fast.
importlib.import_module("rmcla_fast.reference.joint_gradient").smallest = _smallest  # type: ignore[attr-defined]


def is_large(tensor: Tensor) -> bool:
    """Return whether memory traffic decides the time. Then a copy is timed too, and on a GPU the L2 cache is cold."""
    return tensor.numel() >= (1 << 20 if tensor.is_cuda else 1 << 22)


def compiled(plain: Callable[..., Any], like: Tensor) -> Callable[..., Any]:
    """Compile plain code for static shapes, with autotuning for large work on a GPU.

    On a CPU, autotuning would only affect matrix products. The mode "max-autotune-no-cudagraphs" is not used, because
    its coordinate descent compiles one candidate after another.
    """
    tuned = like.is_cuda and is_large(like) and time.monotonic() < references_until
    return torch.compile(plain, fullgraph=True, dynamic=False, options={"max_autotune": True} if tuned else None)


def compiled_reference(reference: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a reference, or return a rival that raises a TimeoutError if there is no time left to compile it."""
    if time.monotonic() < references_until:
        return torch.compile(reference, fullgraph=True, dynamic=False)

    def too_late(*_: Any) -> None:
        raise TimeoutError("it was not compiled, because the time of --references-for was used up")

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
    """Check and time the rivals, of which "ours" is one, and add the result to `rows` and to pytest-benchmark's report.

    Args:
        benchmark: pytest-benchmark's fixture.
        operator, case: the name of the operator, and its input in words.
        rivals: the functions to time, by name. "ours" must succeed; another one that fails is recorded as missing.
        check: is called with the name and result of each rival, and raises an exception if the result is wrong.
        like: a tensor of the size that the operator works on.
        bytes_moved: the number of bytes that the operator must read and write.
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
            missing[name] = one_line(error)
    copied = copies(like, bytes_moved) if large else {}
    samples, failed = time_interleaved({**runs, **{name: run for name, (run, _) in copied.items()}}, device, large)
    assert "ours" not in failed, failed["ours"]
    seconds = {name: typical_seconds(values, device) for name, values in samples.items()}
    spreads = {name: quartiles(values) for name, values in samples.items()}
    roof = roof_seconds(seconds, copied, bytes_moved)
    backend = resolve(device.type, None)
    cold = large if like.is_cuda else None
    row = Row(operator, case, str(device), backend, cold, seconds, spreads, {**missing, **failed}, roof)
    rows.append(row)
    benchmark.extra_info.update(asdict(row))
    if like.is_cuda:  # pytest-benchmark's clock measures only the host
        benchmark.pedantic(rivals["ours"], rounds=1)
    else:
        benchmark.pedantic(rivals["ours"], rounds=5, iterations=max(1, int(0.002 / seconds["ours"])))
