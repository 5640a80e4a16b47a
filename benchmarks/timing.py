"""Times rivals against one another in the same run: in turns on a CPU, by CUDA graph replay with a cold L2 on a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Run = Callable[[], object]
ROUNDS = 40
ROUND_SECONDS = 0.003  # short enough that many rounds fall between two interruptions
LIMIT_SECONDS = 2.0  # of all rounds; slow rivals take fewer, at least five


def interleaved(rivals: dict[str, Run], device: torch.device) -> dict[str, float]:
    """Seconds a call of each: on a CPU the best of rounds that take turns, on a GPU the median of replays that do."""
    for run in rivals.values():
        for _ in range(3):
            run()
    return _on_gpu(rivals) if device.type == "cuda" else _on_cpu(rivals)


def _on_cpu(rivals: dict[str, Run]) -> dict[str, float]:
    calls = {name: max(1, int(ROUND_SECONDS / _seconds(run, 1))) for name, run in rivals.items()}
    calls = {name: max(1, int(ROUND_SECONDS / _seconds(run, calls[name]))) for name, run in rivals.items()}
    best = dict.fromkeys(rivals, float("inf"))
    start = time.perf_counter()
    for turn in range(ROUNDS):
        if turn >= 5 and time.perf_counter() - start > LIMIT_SECONDS:
            break
        for name, run in rivals.items():
            best[name] = min(best[name], _seconds(run, calls[name]))
    return best


def _seconds(run: Run, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def _on_gpu(rivals: dict[str, Run]) -> dict[str, float]:
    graphs = {name: _captured(run) for name, run in rivals.items()}
    cache_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    flush = torch.empty(2 * cache_bytes, dtype=torch.uint8, device="cuda")
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            seconds[name].append(start.elapsed_time(end) / 1e3)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _captured(run: Run) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph
