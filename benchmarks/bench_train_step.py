"""What one update costs over the network's passes alone, over standard training, and over the plain ways to write it.

    python benchmarks/bench_train_step.py                                        # preact-resnet18, 64 images of 32x32
    python benchmarks/bench_train_step.py --capture compile --recipes standard,r-mc-la
    python benchmarks/bench_train_step.py --device cuda --capture cuda-graph --precision bf16 --batch 128 --rounds 100

Rivals run in turn, round after round, so that a busy neighbour slows all of them; ratios are of the fastest rounds, and
the median of the rounds' own ratios stands beside. It times nothing before the step agrees with an independent port.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from step_rivals import Rivals, Run

from rmcla_fast import native, recipes

ROOT = Path(__file__).parents[1]
DEFAULT_RECIPES = "standard,r-mc-la,r-mc-la+,r-mc-la9,fgsm-rs,n-mc-la,madry-pgd7-2,trades"
TARGETS = {
    "r-mc-la step / its passes": ("at most", 1.03),
    "r-mc-la step / standard step": ("at most", 1.75),
    "public port / r-mc-la step": ("at least", 1.28),
    "r-mc-la memory / standard memory": ("at most", 1.10),
}


def timed(run: Run, device: torch.device) -> tuple[float, float]:
    """Seconds of the wall and of this process's processors."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, processor = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - processor


def measure(rivals: dict[str, Run], rounds: int, device: torch.device) -> dict[str, list[tuple[float, float]]]:
    warm_up = 5 if device.type == "cuda" else 1
    for name, run in rivals.items():
        print(f"warming up {name}", file=sys.stderr, flush=True)
        for _ in range(warm_up):
            run()
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
    for number in range(rounds):
        for name, run in rivals.items():
            samples[name].append(timed(run, device))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return samples


def peak_memory(options: argparse.Namespace, name: str) -> float:
    """MiB that updates add, at their peak, to what the process held before; measured in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name]
    for option in ("device", "model", "batch", "size", "classes", "precision", "capture", "threads"):
        command += [f"--{option}", str(getattr(options, option))]
    command += ["--channels-last"] if options.channels_last else []
    # glibc then gives large blocks back when they are freed, so that the resident peak is the peak of live tensors.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise SystemExit(f"measuring the memory of {name} failed:\n{result.stderr}")
    return float(result.stdout.splitlines()[-1])


def print_peak_memory(options: argparse.Namespace) -> None:
    rivals_of = Rivals(options)
    name = options.memory_of
    run = rivals_of.port(compiled=False) if name == "public port" else rivals_of.step(recipes.get(name))
    if rivals_of.device.type == "cuda":
        before = torch.cuda.memory_allocated(rivals_of.device)
        for _ in range(5):
            run()
        print((torch.cuda.max_memory_allocated(rivals_of.device) - before) / 2**20)
        return
    run()  # makes the optimizer's state and the libraries' own buffers
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident_kib("VmRSS")
    for _ in range(2):
        run()
    print((resident_kib("VmHWM") - before) / 2**10)


def resident_kib(field: str) -> int:
    """This process's resident memory, now ("VmRSS") or at its peak ("VmHWM"); Linux only."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


def context(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        processor = next(
            (s.split(":")[1].strip() for s in cpuinfo.read_text().splitlines() if "model name" in s), processor
        )
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernels": native.has_kernels(device.type),
        "commit": commit.stdout.strip(),
        "load": os.getloadavg(),
        "options": {key: value for key, value in vars(options).items() if key not in ("output", "memory_of")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default="preact-resnet18")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--capture", choices=("eager", "compile", "cuda-graph"), help="default: eager; GPU: cuda-graph")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--recipes", default=DEFAULT_RECIPES, help='names, or "all"')
    parser.add_argument("--rivals", default="port,unfused,torchattacks", help="of r-mc-la; also plain, fed; or none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--output", type=Path, help="the folder for the raw figures; default benchmarks/results")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.capture = options.capture or ("cuda-graph" if options.device.startswith("cuda") else "eager")
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print_peak_memory(options)
        return

    rivals_of = Rivals(options)
    agreement = rivals_of.check()
    names = list(recipes.names()) if options.recipes == "all" else options.recipes.split(",")
    rivals: dict[str, Run] = {}
    for name in names:
        rivals[f"{name} step"] = rivals_of.step(recipes.get(name))
        rivals[f"{name} passes"] = rivals_of.passes(recipes.get(name))
    wanted = options.rivals.split(",")
    if "port" in wanted:
        rivals["public port"] = rivals_of.port(compiled=False)
        if options.capture != "eager":
            rivals["public port compiled"] = rivals_of.port(compiled=True)
    if "plain" in wanted:
        rivals["plain step"] = rivals_of.plain()
    if "fed" in wanted:
        rivals["public port, DataLoader"] = rivals_of.fed()
    if "unfused" in wanted:
        rivals["r-mc-la unfused"] = rivals_of.unfused(recipes.get("r-mc-la"))
    if "torchattacks" in wanted and (pgd := rivals_of.torchattacks_pgd(7)):
        rivals["torchattacks PGD7"] = pgd

    load_before = os.getloadavg()
    samples = measure(rivals, options.rounds, rivals_of.device)
    memory = {}
    if not options.no_memory and (rivals_of.device.type == "cuda" or sys.platform == "linux"):
        memory = {name: peak_memory(options, name) for name in ("standard", "r-mc-la", "public port")}
    report = {
        "context": {**context(options, rivals_of.device), "load_before": load_before},
        "loss_agreement_with_port": agreement,
        "seconds": {name: {"wall": [w for w, _ in s], "processor": [p for _, p in s]} for name, s in samples.items()},
        "peak_memory_mib": memory,
        "ratios": ratios(names, samples, memory),
    }
    show(report)
    folder = options.output or ROOT / "benchmarks" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"train_step_{options.device}_{options.capture}_{options.precision}_{options.model}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"raw figures in {path}")


def ratios(names: list[str], samples: dict[str, list[tuple[float, float]]], memory: dict[str, float]) -> dict[str, Any]:
    pairs = [(f"{name} step / its passes", f"{name} step", f"{name} passes") for name in names]
    pairs += [(f"{name} step / standard step", f"{name} step", "standard step") for name in names if name != "standard"]
    for rival in ("public port", "public port compiled", "public port, DataLoader", "plain step", "r-mc-la unfused"):
        pairs.append((f"{rival} / r-mc-la step", rival, "r-mc-la step"))
    pairs.append(("torchattacks PGD7 / madry-pgd7-2 step", "torchattacks PGD7", "madry-pgd7-2 step"))
    pairs.append(("torchattacks PGD7 / r-mc-la step", "torchattacks PGD7", "r-mc-la step"))
    found = {}
    for title, above, below in pairs:
        if above in samples and below in samples:
            both = list(zip(samples[above], samples[below], strict=True))
            found[title] = {
                "of_fastest": min(samples[above])[0] / min(samples[below])[0],
                "median_of_rounds": statistics.median(a[0] / b[0] for a, b in both),
                "of_least_processor_time": min(a[1] for a, _ in both) / min(b[1] for _, b in both),
            }
    if memory:
        for name in ("r-mc-la", "public port"):
            found[f"{name} memory / standard memory"] = {"of_fastest": memory[name] / memory["standard"]}
    return found


def show(report: dict[str, Any]) -> None:
    context = report["context"]
    print(f"\n{context['gpu'] or context['processor']}, {context['threads']} threads, torch {context['torch']}, "
          f"commit {context['commit']}, load {context['load_before'][0]:.1f} to {context['load'][0]:.1f}")  # fmt: skip
    print(f"\n{'seconds':32} {'fastest':>9} {'median':>9} {'processor':>10} {'images/s':>10}")
    images = context["options"]["batch"]
    for name, seconds in report["seconds"].items():
        wall, processor = seconds["wall"], seconds["processor"]
        median = statistics.median(wall)
        print(f"{name:32} {min(wall):9.4f} {median:9.4f} {min(processor):10.4f} {images / median:10.0f}")
    print(f"\n{'ratio':46} {'fastest':>8} {'median':>8} {'processor':>10}   target")
    for name, ratio in report["ratios"].items():
        columns = [f"{ratio[key]:.3f}" if key in ratio else "" for key in ("of_fastest", "median_of_rounds")]
        processor = f"{ratio['of_least_processor_time']:.3f}" if "of_least_processor_time" in ratio else ""
        target = "{} {}".format(*TARGETS[name]) if name in TARGETS else ""
        print(f"{name:46} {columns[0]:>8} {columns[1]:>8} {processor:>10}   {target}")


if __name__ == "__main__":
    main()
