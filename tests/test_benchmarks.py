"""Tests of the code of the benchmarks, as far as it runs without a GPU. It must work the first time on a GPU."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OPERATORS = ("perturb_step", "random_start", "joint_gradient", "soft_cross_entropy", "augment")


def run_pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent)


def test_compact_selection_has_cases_of_every_operator() -> None:
    pytest.importorskip("pytest_benchmark")
    files = [f"benchmarks/bench_{operator}.py" for operator in OPERATORS]
    listed = run_pytest("--collect-only", "-m", "compact", *files).stdout
    counts = {operator: listed.count(f"::bench_{operator}[") for operator in OPERATORS}
    expected = (6, 4, 5, 3, 2)
    assert counts == dict(zip(OPERATORS, expected, strict=True)), listed


def test_the_figures_of_a_part_of_the_cases_are_written(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    path = tmp_path / "new" / "rows.json"
    done = run_pytest("benchmarks/bench_overhead.py", "-k", "torch.add", "--rows", str(path))
    assert done.returncode == 0, done.stdout
    written = json.loads(path.read_text())
    assert [row["operator"] for row in written["rows"]] == ["a call"]
    assert written["rows"][0]["seconds"]["ours"] > 0
    assert {"machine", "torch", "commit"} <= set(written["context"])


@pytest.mark.slow
def test_the_import_benchmark_prints_and_writes_its_figures(tmp_path: Path) -> None:
    pytest.importorskip("typer")
    path = tmp_path / "import.json"
    command = [sys.executable, str(BENCHMARKS / "bench_import.py"), "--rounds", "1", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert {"machine", "torch", "commit"} <= set(written["context"])
    for name, medians in written["median ms, wall and processor"].items():
        (once,) = written["seconds, wall and processor"][name]
        assert medians == [1000 * seconds for seconds in once]
        assert min(medians) > 0
        assert name in done.stdout


def test_the_commit_of_a_copy_without_history_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import machine

    monkeypatch.setenv("COMMIT", "abc")
    assert machine.commit() == "abc"
    monkeypatch.delenv("COMMIT")
    monkeypatch.setenv("PATH", "")
    assert machine.commit() == "unknown"
    assert machine.clocks() == ""


class Clock:
    """A stand-in for the GPU. Work during a capture is added to the graph, and a replay takes as long as this work."""

    def __init__(self) -> None:
        self.now = 0.0
        self.capturing: Graph | None = None

    def work(self, amount: float) -> None:
        if self.capturing:
            self.capturing.milliseconds += amount


class Graph:
    """A stand-in for a CUDA graph. Its launch takes 5 microseconds."""

    clock: Clock

    def __init__(self) -> None:
        self.milliseconds = 0.0

    def replay(self) -> None:
        self.clock.now += 0.005 + self.milliseconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(Graph, "clock", clock, raising=False)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = clock.now

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    @contextlib.contextmanager
    def graph(graph: Graph) -> Iterator[None]:
        clock.capturing = graph
        yield
        clock.capturing = None

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes: dict[str, Any] = {
        "CUDAGraph": Graph,
        "Event": Event,
        "Stream": lambda: stream,
        "_sleep": lambda cycles: None,
        "current_stream": lambda: stream,
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=1 << 12),
        "graph": graph,
        "set_stream": lambda stream: None,
        "set_sync_debug_mode": lambda mode: None,
        "stream": lambda stream: contextlib.nullcontext(),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return clock


@pytest.mark.parametrize("cold", [False, True])
def test_timing_on_a_gpu_subtracts_the_launch_and_reports_a_rival_that_fails(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, cold: bool
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import timing

    def fails() -> None:
        raise RuntimeError("called a synchronizing CUDA operation\nand more")

    rivals = {"ours": lambda: clock.work(0.002), "rival": lambda: clock.work(0.006), "syncs": fails}
    samples, missing = timing._on_gpu(rivals, torch.device("cpu"), cold)
    assert missing == {"syncs": "RuntimeError: called a synchronizing CUDA operation"}
    seconds = {name: timing.typical_seconds(values, torch.device("cuda")) for name, values in samples.items()}
    assert seconds == pytest.approx({"ours": 2e-6, "rival": 6e-6})
    assert timing.quartiles(samples["ours"]) == pytest.approx((2e-6, 2e-6))
