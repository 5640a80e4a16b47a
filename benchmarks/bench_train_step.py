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
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from public_port import public_step  # noqa: E402

from rmcla_fast import Recipe, backend, models, native, random_start, recipes  # noqa: E402
from rmcla_fast.example import attack_mode  # noqa: E402
from rmcla_fast.training import TrainStep  # noqa: E402
from rmcla_fast.training.graph import CapturedUpdate  # noqa: E402
from rmcla_fast.training.passes import Passes  # noqa: E402

Run = Callable[[], Any]
TARGETS = {
    "r-mc-la step / its passes": ("at most", 1.03),
    "r-mc-la step / standard step": ("at most", 1.75),
    "public port / r-mc-la step": ("at least", 1.28),
    "r-mc-la memory / standard memory": ("at most", 1.10),
}


class Bench:
    """The network, the batch, and every rival as a function without arguments."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        generator = torch.Generator().manual_seed(0)
        shape = (options.batch, 3, options.size, options.size)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(self.device)
        self.labels = torch.randint(0, options.classes, (options.batch,), generator=generator).to(self.device)
        self.clean = self.images.float() / 255
        self.noise = random_start(
            torch.zeros_like(self.clean), 8 / 255, rng=torch.zeros(2, dtype=torch.int64).to(self.clean.device)
        )

    def network(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = models.create(self.options.model, self.options.classes).to(self.device)
        if self.options.channels_last:
            model.to(memory_format=torch.channels_last)
        groups = models.weight_groups(model, 2e-4)
        return model, torch.optim.SGD(groups, lr=0.01, momentum=0.9, fused=True)

    def step(self, recipe: Recipe) -> Run:
        model, optimizer = self.network()
        step = TrainStep(model, optimizer, recipe, precision=self.options.precision, capture=self.options.capture)
        return lambda: step(self.images, self.labels)

    def passes(self, recipe: Recipe) -> Run:
        """The recipe's forward and backward passes alone, on ready images with ready gradients, by the same means."""
        model, optimizer = self.network()
        options = self.options
        passes = Passes(model, options.precision, compiled=options.capture in ("compile", "cuda-graph"))
        images = passes.layout(self.clean)
        with torch.no_grad():
            gradient = (passes.attack(images) * 0 + 0.01).detach()

        def update(images: Tensor, *_: Any) -> Tensor:
            model.zero_grad(set_to_none=True)
            with attack_mode(model, "eval"):
                if recipe.clean_forward:
                    with torch.no_grad():
                        passes.attack(images)
                for _ in range(recipe.steps):
                    moved = images.detach().requires_grad_()
                    torch.autograd.grad(passes.attack(moved), moved, gradient)
            for _ in range(2 if recipe.outer_loss == "trades" else 1):
                logits = passes.update(images)
                logits.backward(gradient)
            return logits.detach().sum()

        model.train()
        if options.capture == "cuda-graph":
            captured = CapturedUpdate(update, optimizer, self.device)
            return lambda: captured(images, self.labels)
        return lambda: update(images)

    def port(self, compiled: bool) -> Run:
        """The public code's step: extra clean forward, weight gradients in the attack, labels in eager torch."""
        model, optimizer = self.network()
        network = torch.compile(model, dynamic=False) if compiled else model
        clean = self.clean.contiguous(memory_format=torch.channels_last) if self.options.channels_last else self.clean
        return lambda: public_step(network, optimizer, clean, self.labels, self.noise, epsilon=8 / 255)

    def unfused(self, recipe: Recipe) -> Run:
        """Our eager step with the plain-torch reference of every operator."""
        model, optimizer = self.network()
        step = TrainStep(model, optimizer, recipe, precision=self.options.precision, capture="eager")

        def run() -> None:
            chosen, known = backend._from_environment, dict(backend._resolved)
            backend._from_environment = "reference"
            backend._resolved.clear()
            try:
                step(self.images, self.labels)
            finally:
                backend._from_environment = chosen
                backend._resolved.clear()
                backend._resolved.update(known)

        return run

    def torchattacks_pgd(self, steps: int) -> Run | None:
        """torchattacks' PGD in a plain loop; None where it is not installed (pip install --no-deps torchattacks)."""
        try:
            import torchattacks
        except ImportError:
            return None
        model, optimizer = self.network()
        attack = torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=steps)

        def run() -> None:
            model.train()
            moved = attack(self.clean, self.labels)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(moved), self.labels).backward()
            optimizer.step()

        return run

    def check(self) -> float:
        """The step's loss against the port's over two updates in float32, before anything is timed."""
        (ours, first), (theirs, second) = self.network(), self.network()
        step = TrainStep(ours, first, recipes.get("r-mc-la+"), capture="eager")
        worst = 0.0
        for n in range(2):
            rng = torch.tensor([0, n], device=self.device)
            noise = random_start(torch.zeros_like(self.clean), 8 / 255, rng=rng)
            if self.options.channels_last:  # the noise follows memory order
                noise = random_start(torch.zeros_like(self.clean, memory_format=torch.channels_last), 8 / 255, rng=rng)
            expected = public_step(theirs, second, self.clean, self.labels, noise, epsilon=8 / 255)
            worst = max(worst, float((step(self.images, self.labels) - expected).abs() / expected))
        if worst > 2e-3:
            raise SystemExit(f"the step and the independent port disagree by {worst:.1e}: nothing is timed")
        return worst


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
    bench = Bench(options)
    name = options.memory_of
    run = bench.port(compiled=False) if name == "public port" else bench.step(recipes.get(name))
    if bench.device.type == "cuda":
        before = torch.cuda.memory_allocated(bench.device)
        for _ in range(5):
            run()
        print((torch.cuda.max_memory_allocated(bench.device) - before) / 2**20)
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        run()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)


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
    parser.add_argument("--capture", default="eager", choices=("eager", "compile", "cuda-graph"))
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--recipes", default=",".join(recipes.names()))
    parser.add_argument("--rivals", default="port,unfused,torchattacks", help="of r-mc-la; an empty word for none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--output", type=Path, help="the folder for the raw figures; default benchmarks/results")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print_peak_memory(options)
        return

    bench = Bench(options)
    agreement = bench.check()
    names = options.recipes.split(",")
    rivals: dict[str, Run] = {}
    for name in names:
        rivals[f"{name} step"] = bench.step(recipes.get(name))
        rivals[f"{name} passes"] = bench.passes(recipes.get(name))
    wanted = options.rivals.split(",")
    if "port" in wanted:
        rivals["public port"] = bench.port(compiled=False)
        if options.capture != "eager":
            rivals["public port compiled"] = bench.port(compiled=True)
    if "unfused" in wanted:
        rivals["r-mc-la unfused"] = bench.unfused(recipes.get("r-mc-la"))
    if "torchattacks" in wanted and (pgd := bench.torchattacks_pgd(7)):
        rivals["torchattacks PGD7"] = pgd

    load_before = os.getloadavg()
    samples = measure(rivals, options.rounds, bench.device)
    memory = {}
    if not options.no_memory:
        memory = {name: peak_memory(options, name) for name in ("standard", "r-mc-la", "public port")}
    report = {
        "context": {**context(options, bench.device), "load_before": load_before},
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
    for rival in ("public port", "public port compiled", "r-mc-la unfused"):
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
    print(f"\n{'seconds':32} {'fastest':>9} {'median':>9} {'processor':>10}")
    for name, seconds in report["seconds"].items():
        wall, processor = seconds["wall"], seconds["processor"]
        print(f"{name:32} {min(wall):9.4f} {statistics.median(wall):9.4f} {min(processor):10.4f}")
    print(f"\n{'ratio':46} {'fastest':>8} {'median':>8} {'processor':>10}   target")
    for name, ratio in report["ratios"].items():
        columns = [f"{ratio[key]:.3f}" if key in ratio else "" for key in ("of_fastest", "median_of_rounds")]
        processor = f"{ratio['of_least_processor_time']:.3f}" if "of_least_processor_time" in ratio else ""
        target = "{} {}".format(*TARGETS[name]) if name in TARGETS else ""
        print(f"{name:46} {columns[0]:>8} {columns[1]:>8} {processor:>10}   {target}")


if __name__ == "__main__":
    main()
