"""Time rivals against one another in turns: with the clock on a CPU, and by replaying CUDA graphs on a GPU.

On a GPU, one call of a small operator takes less time than the launch of a graph that holds it, and its time depends on
the contents of the L2 cache. So a graph holds many calls, a second graph holds the same without the calls, and the time
of a call is the difference of their median times divided by the number of calls.

* For large operators (`cold`), each call comes after a kernel that reads three times the size of the L2 cache. So the
  call finds none of its inputs there. The kernel only reads: after a kernel that writes, the call would also pay for
  writing the changed cache lines to memory. The lines that the call itself changes are written while the next such
  kernel reads, and this time is counted.
* For small operators, the calls follow one another and find their inputs in the L2 cache. So it is in training, where
  the previous kernel has just written them. The gap of about a microsecond between two dependent kernels is counted.

A rival that fails, synchronises with the host or cannot be captured is reported with the reason, and the others are
still timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Run = Callable[[], object]
Samples = dict[str, list[float]]  # for each rival the seconds per call in each round

ROUNDS = 40
ROUND_SECONDS = 0.003  # short, so that most rounds are not interrupted
LIMIT_SECONDS = 2.0  # for all rounds together; slow rivals get fewer rounds, but at least five
GPU_LIMIT_SECONDS = 0.5
COLD_CALLS, WARM_CALLS = 10, 20  # calls in one graph
AHEAD_CYCLES = 500_000  # the GPU waits a quarter of a millisecond while the host submits the events and the graph


def time_interleaved(rivals: dict[str, Run], device: torch.device, cold: bool) -> tuple[Samples, dict[str, str]]:
    """Time the rivals; return the samples, and the reason for each rival that could not be timed.

    `cold` makes every call on a GPU start with none of its inputs in the L2 cache.
    """
    if device.type == "cuda":
        return _on_gpu(rivals, device, cold)
    for run in rivals.values():
        for _ in range(3):
            run()
    return _on_cpu(rivals), {}


def typical_seconds(samples: list[float], device: torch.device) -> float:
    """Return the median on a GPU, and the minimum on a CPU, where other processes can only add time."""
    return statistics.median(samples) if device.type == "cuda" else min(samples)


def quartiles(samples: list[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile."""
    lower, _, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return lower, upper


def one_line(error: Exception) -> str:
    """Return the type and the first line of an error."""
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
            one.uniform_()  # a replay that draws random numbers launches two more kernels, so every graph draws
            read()
            for _ in range(COLD_CALLS):
                call()
                read()

        def warm_calls() -> None:
            one.uniform_()
            for _ in range(WARM_CALLS):
                call()

        return cold_calls if cold else warm_calls

    empty = _capture(read, sequence(lambda: None))
    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    missing: dict[str, str] = {}
    for name, run in rivals.items():
        try:
            graphs[name] = _capture(run, sequence(run))
        except Exception as error:
            missing[name] = one_line(error)

    for graph in (empty, *graphs.values()):  # so that the clock rates have risen before the first round
        _replay_seconds(graph, cold)
    empty_seconds: list[float] = []
    seconds: Samples = {name: [] for name in graphs}
    start = time.perf_counter()
    for turn in range(ROUNDS):
        if turn >= 5 and time.perf_counter() - start > GPU_LIMIT_SECONDS:
            break
        empty_seconds.append(_replay_seconds(empty, cold))
        for name, graph in graphs.items():
            seconds[name].append(_replay_seconds(graph, cold))
    overhead, calls = statistics.median(empty_seconds), COLD_CALLS if cold else WARM_CALLS
    return {name: [(value - overhead) / calls for value in values] for name, values in seconds.items()}, missing


def _replay_seconds(graph: torch.cuda.CUDAGraph, cold: bool) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if not cold:
        graph.replay()  # brings its tensors into the L2 cache
    torch.cuda._sleep(AHEAD_CYCLES)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _capture(run: Run, sequence: Run) -> torch.cuda.CUDAGraph:
    """Capture `sequence`, which calls `run`, into a CUDA graph."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        run()
        run()
        # A failed capture leaves the random generator and the stream unusable, so a call that synchronises with the
        # host must be found before the capture.
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
