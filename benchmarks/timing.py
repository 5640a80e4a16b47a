"""Times rivals against one another in the same run, in turns: by the clock on a CPU, by CUDA graph replays on a GPU.

On a GPU one call of a small operator takes less than the launch of the graph that holds it, and its time depends on
what the L2 cache holds. So a graph holds many calls, another graph holds the same without the calls, and a call takes
the difference of their medians over the number of calls.

* Large operators (`cold`): each call comes after a kernel that reads three times what L2 holds, so a call finds none of
  its inputs there. It reads and does not write: after a write the call would also pay for bringing the cache's changed
  lines to memory. What the call itself leaves to be written is written while the next such kernel reads, and counts.
* Small operators: the calls follow one another and find their inputs in L2, as they do in a training step, where the
  kernel before has just written them. The gap between two dependent kernels, about a microsecond, counts.

A rival that fails, synchronises with the host or cannot be captured is reported with the reason and stops no other.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Run = Callable[[], object]
Samples = dict[str, list[float]]  # seconds a call of each rival, by round

ROUNDS = 40
ROUND_SECONDS = 0.003  # short enough that many rounds fall between two interruptions
LIMIT_SECONDS = 2.0  # of all rounds; slow rivals take fewer, at least five
GPU_LIMIT_SECONDS = 0.5
COLD_CALLS, WARM_CALLS = 10, 20  # in one graph
AHEAD_CYCLES = 500_000  # a quarter of a millisecond in which the host hands over the events and the graph


def uses_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


def interleaved(rivals: dict[str, Run], device: torch.device, cold: bool) -> tuple[Samples, dict[str, str]]:
    """The seconds of each rival, and why others have none; `cold` speaks of the GPU's L2."""
    if uses_graphs(device):
        return _on_gpu(rivals, device, cold)
    for run in rivals.values():
        for _ in range(3):
            run()
    return _on_cpu(rivals), {}


def figure(samples: list[float], device: torch.device) -> float:
    """The best on a CPU, where others' work only adds; the median of graph replays."""
    return statistics.median(samples) if uses_graphs(device) else min(samples)


def spread(samples: list[float]) -> tuple[float, float]:
    """The quartiles."""
    lower, _, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return lower, upper


def reason(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def _on_cpu(rivals: dict[str, Run]) -> Samples:
    calls = {name: max(1, int(ROUND_SECONDS / _seconds(run, 1))) for name, run in rivals.items()}
    calls = {name: max(1, int(ROUND_SECONDS / _seconds(run, calls[name]))) for name, run in rivals.items()}
    samples: Samples = {name: [] for name in rivals}
    start = time.perf_counter()
    for turn in range(ROUNDS):
        if turn >= 5 and time.perf_counter() - start > LIMIT_SECONDS:
            break
        for name, run in rivals.items():
            samples[name].append(_seconds(run, calls[name]))
    return samples


def _seconds(run: Run, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def _on_gpu(rivals: dict[str, Run], device: torch.device, cold: bool) -> tuple[Samples, dict[str, str]]:
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    many, one = torch.zeros(3 * cache_bytes // 4, device=device), torch.zeros((), device=device)

    def read() -> None:
        torch.sum(many, dim=0, out=one)

    def sequence(call: Run) -> Run:
        def cold_calls() -> None:
            one.uniform_()  # torch launches two kernels more at a replay that draws: so each of them draws
            read()
            for _ in range(COLD_CALLS):
                call()
                read()

        def warm_calls() -> None:
            one.uniform_()
            for _ in range(WARM_CALLS):
                call()

        return cold_calls if cold else warm_calls

    base = _captured(read, sequence(lambda: None))
    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    missing: dict[str, str] = {}
    for name, run in rivals.items():
        try:
            graphs[name] = _captured(run, sequence(run))
        except Exception as error:
            missing[name] = reason(error)

    for graph in (base, *graphs.values()):  # so that the clocks have risen before the first round
        _replay_seconds(graph, cold)
    base_seconds: list[float] = []
    seconds: Samples = {name: [] for name in graphs}
    start = time.perf_counter()
    for turn in range(ROUNDS):
        if turn >= 5 and time.perf_counter() - start > GPU_LIMIT_SECONDS:
            break
        base_seconds.append(_replay_seconds(base, cold))
        for name, graph in graphs.items():
            seconds[name].append(_replay_seconds(graph, cold))
    nothing, calls = statistics.median(base_seconds), COLD_CALLS if cold else WARM_CALLS
    return {name: [(value - nothing) / calls for value in values] for name, values in seconds.items()}, missing


def _replay_seconds(graph: torch.cuda.CUDAGraph, cold: bool) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if not cold:
        graph.replay()  # brings its tensors into L2
    torch.cuda._sleep(AHEAD_CYCLES)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _captured(run: Run, sequence: Run) -> torch.cuda.CUDAGraph:
    """The graph of `sequence`, which calls `run`."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        run()
        run()
        # A capture that fails leaves the random generator and the stream unusable: what synchronises is found before.
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            sequence()
    except Exception:
        torch.cuda.set_stream(current)
        raise
    return graph
