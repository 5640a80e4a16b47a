"""Profile one captured update: its kernels by class, its launches, and each of our own kernels.

    python benchmarks/profile_step.py --batch 128 --channels-last --precision bf16 --recipe r-mc-la

The profiler slows the kernels down, so their sum is not the time of the step without it. On a CPU, the operators of an
eager step are shown in place of kernels.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from step_rivals import Rivals
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from rmcla_fast import recipes

OURS = r"\b(warp_rows|block_rows|long_rows|step_elements|start_elements|augment_bytes)\b|rmcla_fast::|^_kernel$"
CLASSES = (  # a kernel belongs to the first class whose pattern its name matches
    ("ours", OURS),
    ("fused by torch.compile", r"^triton_"),  # their names are triton_{poi,red,per}_fused_OPERATORS
    ("copies", r"memcpy|memset|copy|fill|nchwTo|nhwcTo"),
    ("convolution, matrix product", r"conv|gemm|cudnn|cutlass|wgrad|dgrad|fprop|addmm|aten::mm|nchw|nhwc|splitK|xmma"),
    ("optimizer, average", r"multi_tensor|fused_sgd|FusedSgd|lerp|foreach"),
    ("batch norm", r"batch_norm|bn_"),
    ("the rest", r""),
)


def class_of(name: str) -> str:
    return next(title for title, pattern in CLASSES if re.search(pattern, name, re.IGNORECASE))


def profile_kernels(run: Callable[[], object], steps: int, device: torch.device) -> dict[str, Any]:
    """Profile `steps` calls of `run`; print and return the milliseconds and kernels per step by name and class."""
    on_gpu = device.type == "cuda"

    def all_steps() -> float:
        started = time.perf_counter()
        for _ in range(steps):
            run()
        if on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / steps * 1e3

    all_steps()  # compile and capture
    wall = min(all_steps() for _ in range(3))
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as profiler:
        all_steps()
    milliseconds: dict[str, float] = defaultdict(float)
    calls: dict[str, float] = defaultdict(float)
    launches = 0.0
    for event in profiler.events():
        if on_gpu and event.device_type == DeviceType.CUDA and getattr(event, "is_user_annotation", False):
            continue  # spans of kernels are skipped, because the kernels are counted
        if event.device_type == (DeviceType.CUDA if on_gpu else DeviceType.CPU):
            taken = event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total
            milliseconds[event.name] += taken / 1e3 / steps
            calls[event.name] += 1 / steps
        elif re.match(r"cu(da)?(LaunchKernel|GraphLaunch|Memcpy|Memset)", event.name):
            launches += 1 / steps
    if not milliseconds:
        print("the profiler recorded no kernel")
        return {}
    total = sum(milliseconds.values())
    print(f"{wall:.3f} ms a step; {sum(calls.values()):.0f} kernels in {launches:.0f} launches")
    by_class: dict[str, list[float]] = {title: [0.0, 0.0] for title, _ in CLASSES}
    for name, taken in milliseconds.items():
        found = by_class[class_of(name)]
        found[0] += taken
        found[1] += calls[name]
    for title, (taken, count) in by_class.items():
        print(f"  {title:32} {taken:9.3f} ms {taken / total:6.1%} {count:7.0f} kernels")
    slowest = sorted(milliseconds, key=milliseconds.__getitem__, reverse=True)
    for title, names in (("ours", [n for n in slowest if class_of(n) == "ours"]), ("the slowest", slowest[:15])):
        print(f"{title}, microseconds each:")
        for name in names:
            print(f"  {milliseconds[name] / calls[name] * 1e3:10.1f} x {calls[name]:5.1f}  {name[:110]}")
    return {
        "milliseconds_a_step": wall,
        "by_class": by_class,
        "kernels": {name: [milliseconds[name], calls[name]] for name in slowest},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default="preact-resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--recipe", default="r-mc-la")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    options.capture = "cuda-graph" if options.device.startswith("cuda") else "eager"
    rivals = Rivals(options)
    print(f"{options.model}, {options.batch} images, {options.recipe}, {options.precision}")
    profile_kernels(rivals.step(recipes.get(options.recipe)), options.steps, rivals.device)


if __name__ == "__main__":
    main()
