"""Time one update against the network's passes alone, against standard training, and against plain ways to write it.

    python benchmarks/bench_train_step.py                                        # preact-resnet18, 64 images of 32x32
    python benchmarks/bench_train_step.py --capture compile --recipes standard,r-mc-la
    python benchmarks/bench_train_step.py --precision bf16 --channels-last --batch 128 --rivals plain,lean --profile

The rivals take turns in every round, so that a busy neighbour slows all of them. A ratio is computed from the fastest
rounds, and a second one is the median of the ratios of all rounds. On a GPU a round is a block of steps between two
events, so that the host runs ahead as it does in training. Two checks come before any timing: in float32, our step must
agree with an independent port of the public code, and the step that is timed must agree with its own eager version.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from fastat_loop import DECAY, LABEL_SMOOTHING, fastat_rival
from machine import describe_machine
from profile_step import profile_kernels
from step_rivals import Rivals, Run
from step_tables import print_tables, ratios_of
from torch._dynamo import config as dynamo_config
from torch._inductor import config as inductor_config
from torch.utils.flop_counter import FlopCounterMode

from rmcla_fast import models, recipes
from rmcla_fast.precision import PRECISIONS

ROOT = Path(__file__).parents[1]
DEFAULT_RECIPES = "standard,r-mc-la,r-mc-la+,r-mc-la9,fgsm-rs,n-mc-la,madry-pgd7-2,trades"


def time_steps(run: Run, steps: int, device: torch.device) -> tuple[float, float]:
    """Return seconds per step: the time of the GPU or the wall clock, and the processor time of this process."""
    processor = time.process_time()
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(steps):
            run()
        end.record()
        end.synchronize()
        taken = start.elapsed_time(end) / 1e3
    else:
        started = time.perf_counter()
        for _ in range(steps):
            run()
        taken = time.perf_counter() - started
    return taken / steps, (time.process_time() - processor) / steps


def warm_up(rivals: dict[str, Run], device: torch.device) -> None:
    for name, run in rivals.items():
        started = time.perf_counter()
        for _ in range(6 if device.type == "cuda" else 1):  # the fourth call of a step captures it
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        print(f"{name} is warm after {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)


def time_rivals(
    rivals: dict[str, Run], rounds: int, steps: int, device: torch.device
) -> dict[str, list[tuple[float, float]]]:
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
    for number in range(rounds):
        for name, run in rivals.items():
            samples[name].append(time_steps(run, steps, device))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return samples


def forward_flops(options: argparse.Namespace) -> int:
    """Count the floating-point operations in one forward pass of a batch; a multiply-add counts as two."""
    with torch.device("meta"):
        model = models.create(options.model, options.classes).eval()
        image = torch.empty(1, 3, options.size, options.size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops() * options.batch


def matrix_rate(device: torch.device, precision: str) -> float:
    """Measure the FLOP/s of an 8192^3 matrix product on random numbers, an upper limit for the passes."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=PRECISIONS[precision]) for _ in range(2))
    seconds = [time_steps(lambda: a @ b, 10, device)[0] for _ in range(5)]
    return 2 * 8192**3 / statistics.median(seconds)


def peak_memory(options: argparse.Namespace, name: str) -> float:
    """Measure the peak memory of updates in MiB, beyond what their process held before, in a separate process."""
    command = [sys.executable, __file__, "--memory-of", name]
    for option in ("device", "model", "batch", "size", "classes", "precision", "capture", "threads"):
        command += [f"--{option}", str(getattr(options, option))]
    command += ["--channels-last"] if options.channels_last else []
    # glibc then returns large blocks as soon as they are freed, so that the peak is the peak of live tensors.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise SystemExit(f"measuring the memory of {name} failed:\n{result.stderr}")
    return float(result.stdout.splitlines()[-1])


def measure_memory_and_print(options: argparse.Namespace) -> None:
    all_rivals = Rivals(options)
    name = options.memory_of
    run = all_rivals.port() if name == "public step, fp32" else all_rivals.step(recipes.get(name))
    if all_rivals.device.type == "cuda":
        before = torch.cuda.memory_allocated(all_rivals.device)
        for _ in range(5):
            run()
        print((torch.cuda.max_memory_allocated(all_rivals.device) - before) / 2**20)
        return
    run()  # creates the optimizer's state and the buffers of the libraries
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident_kib("VmRSS")
    for _ in range(2):
        run()
    print((resident_kib("VmHWM") - before) / 2**10)


def resident_kib(field: str) -> int:
    """Return the resident memory of this process in KiB, now ("VmRSS") or at its peak ("VmHWM"), on Linux."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default="preact-resnet18")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument(
        "--capture", choices=("eager", "compile", "cuda-graph"), help="default: cuda-graph on a GPU, else eager"
    )
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--recipes", default=DEFAULT_RECIPES, help='names, or "all"')
    parser.add_argument(
        "--rivals",
        default="port,unfused,torchattacks",
        help="port: the public step in fp32; plain: the public step in PRECISION, eager and compiled; lean: our step "
        "written by hand, compiled; fed: port with a DataLoader; unfused: our step without its kernels; "
        "torchattacks: PGD by torchattacks; fastat: the FastAT Benchmark's N-FGSM loop, and our averaged step; none",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--block", type=int, help="steps that are timed together (20 on a GPU, 1 on a CPU)")
    parser.add_argument(
        "--inductor", default="", help="options of Inductor for all rivals, such as combo_kernels=1,..."
    )
    parser.add_argument(
        "--no-cudnn-benchmark", action="store_true", help="let cuDNN choose its algorithms without timing them"
    )
    parser.add_argument("--profile", action="store_true", help="also profile the kernels of the r-mc-la step")
    parser.add_argument("--wait-for", type=Path, help="wait for this file before timing, while others use the GPU")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--output", type=Path, help="the folder for the raw figures (benchmarks/results)")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.capture = options.capture or ("cuda-graph" if options.device.startswith("cuda") else "eager")
    torch.set_num_threads(options.threads)
    if options.memory_of:
        measure_memory_and_print(options)
        return

    on_gpu = options.device.startswith("cuda")
    steps = (20 if on_gpu else 1) if options.block is None else options.block
    wanted = options.rivals.split(",")
    if unknown := set(wanted) - {"port", "plain", "lean", "fed", "unfused", "torchattacks", "fastat", "none"}:
        parser.error(f"--rivals knows no {', '.join(sorted(unknown))}")
    if min(steps, options.rounds) < 1:
        parser.error("--block and --rounds must be at least 1")
    dynamo_config.fail_on_recompile_limit_hit = True  # otherwise a rival would silently run eagerly
    inductor = dict(option.split("=") for option in options.inductor.split(",") if option)
    for option, value in inductor.items():
        setattr(inductor_config, option, bool(int(value)))
    torch.backends.cudnn.benchmark = on_gpu and not options.no_cudnn_benchmark

    all_rivals = Rivals(options)
    agreement = {"port": all_rivals.compare_with_port(), "eager": all_rivals.compare_with_eager()}
    print(f"agreement: {agreement}", file=sys.stderr, flush=True)
    # A comma before FIELD=VALUE belongs to a recipe: "standard,n-fgsm,start_ratio=1.5,attack_mode=train".
    names = list(recipes.names()) if options.recipes == "all" else re.split(r",(?!\w+=)", options.recipes)
    rivals: dict[str, Run] = {}
    for name in names:
        rivals[f"{name} step"] = all_rivals.step(recipes.get(name))
        rivals[f"{name} passes"] = all_rivals.passes(recipes.get(name))
    compiled = options.capture != "eager"
    if "port" in wanted:
        rivals["public step, fp32"] = all_rivals.port()
    if "plain" in wanted:
        if on_gpu or options.precision != "fp32":
            rivals["public step"] = all_rivals.plain(compiled=False)
        if compiled:
            rivals["public step compiled"] = all_rivals.plain(compiled=True)
    if "lean" in wanted and compiled:
        rivals["lean step compiled"] = all_rivals.lean()
    if "fed" in wanted:
        rivals["public step, DataLoader"] = all_rivals.port_with_data_loader()
    if "unfused" in wanted:
        rivals["r-mc-la unfused"] = all_rivals.unfused(recipes.get("r-mc-la"))
    if "fastat" in wanted:
        smoothed = recipes.get("n-fgsm").replace(label_smoothing=LABEL_SMOOTHING)
        rivals["n-fgsm step, averaged"] = all_rivals.step(smoothed, decay=DECAY)
        rivals["FastAT N-FGSM loop"] = fastat_rival(all_rivals)
    if "torchattacks" in wanted and (pgd := all_rivals.torchattacks_pgd(7)):
        rivals["torchattacks PGD7"] = pgd

    warm_up(rivals, all_rivals.device)
    if options.wait_for:
        options.wait_for.with_suffix(".warm").touch()
        while not options.wait_for.exists():
            time.sleep(0.05)
    load_before = os.getloadavg()
    rate = matrix_rate(all_rivals.device, options.precision) if on_gpu else None
    samples = time_rivals(rivals, options.rounds, steps, all_rivals.device)
    memory = {}
    if not options.no_memory and (all_rivals.device.type == "cuda" or sys.platform == "linux"):
        memory = {name: peak_memory(options, name) for name in ("standard", "r-mc-la", "public step, fp32")}
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    report: dict[str, Any] = {
        "context": {**describe_machine(all_rivals.device), "load_before": load_before, "options": asked},
        "loss_agreement": agreement,
        "forward_flops": forward_flops(options),
        "matrix_flops_per_second": rate,
        "seconds": {name: {"wall": [w for w, _ in s], "processor": [p for _, p in s]} for name, s in samples.items()},
        "peak_memory_mib": memory,
        "ratios": ratios_of(names, samples, memory),
    }
    print_tables(report)
    folder = options.output or ROOT / "benchmarks" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"train_step_{options.device}_{options.capture}_{options.precision}_{options.model}"
    path = folder / ("_".join([stem, *(name.replace(".", "_") for name in inductor)]) + ".json")
    path.write_text(json.dumps(report, indent=1) + "\n")
    if options.profile and "r-mc-la step" in rivals:
        report["kernels"] = profile_kernels(rivals["r-mc-la step"], steps, all_rivals.device)
        path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"raw figures in {path}")


if __name__ == "__main__":
    main()
