"""Compare every operator on every backend with the float64 oracle, for random arguments that are as bad as allowed.

    python tests/stress/fuzz.py --cases 20000 --seed 0 --backends reference,cpu --json results.json
    python tests/stress/fuzz.py --seed 0 --backends cpu --case 123

A case is a function of the seed and its number alone, so that the second form repeats it; a failure prints this line.
The backends are those of the package, "cpu-avx2" and "cpu-baseline" for other instruction sets, and "emulated" for the
CUDA kernels compiled for the CPU. On a CPU, "triton" runs in its interpreter, and its cases are small.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import shutil
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS.parent / "benchmarks")]

import conftest  # noqa: E402
import cuda_emulation  # noqa: E402
import torch  # noqa: E402
from machine import describe_machine  # noqa: E402
from stress import fuzz_elements, fuzz_rows  # noqa: E402
from stress.fuzz_elements import Target  # noqa: E402

OPERATORS: tuple[Callable[[random.Random, Target], None], ...] = (
    fuzz_rows.joint_gradient,
    fuzz_rows.joint_objective,
    fuzz_rows.redistribute_labels,
    fuzz_rows.soft_cross_entropy,
    fuzz_elements.perturb_step,
    fuzz_elements.random_start,
    fuzz_elements.augment,
)
# The kernels for the processor's other instruction sets, and the value of ATEN_CPU_CAPABILITY that chooses them.
INSTRUCTION_SETS = {"cpu-avx2": "avx2", "cpu-baseline": "default"}
SLOWER = {"triton": 100, "emulated": 100}  # these backends are slow, and get one in so many of the cases
MOST_LINES = 20  # of failures


def available() -> list[str]:
    """Return the names of the backends that run on this machine."""
    names = conftest.available_backends()
    if "cpu" in names:
        narrower = {"AVX512": ["cpu-avx2", "cpu-baseline"], "AVX2": ["cpu-baseline"]}
        names += narrower.get(torch.backends.cpu.get_cpu_capability(), [])
        names += ["emulated"] if shutil.which(os.environ.get("CXX", "g++")) else []
    return names


def target_named(name: str) -> Target:
    """Return what to test for the name of a backend, and make this process ready for it."""
    if name == "emulated":
        cuda_emulation.register("rmcla_fast")  # in place of the CPU kernels
        return Target("cpu", torch.device("cpu"), small=False, checks_labels=False)
    if name in INSTRUCTION_SETS:
        os.environ["ATEN_CPU_CAPABILITY"] = INSTRUCTION_SETS[name]
        if torch.backends.cpu.get_cpu_capability().lower() != INSTRUCTION_SETS[name]:
            raise RuntimeError(f"{name} must be the first backend of its process")
        name = "cpu"
    backend = conftest.backend_named(name)
    return Target(name, backend.device, backend.interpreted, backend.checks_label_values)


def drawn_case(seed: int, number: int) -> tuple[Callable[[random.Random, Target], None], random.Random]:
    """Set the number of threads of a case; return its operator, and what the arguments are drawn with."""
    draw = random.Random(f"{seed}/{number}")
    torch.set_num_threads(draw.choice((1, 1, 2, 3)))
    return OPERATORS[number % len(OPERATORS)], draw


def run_case(target: Target, seed: int, number: int) -> tuple[str, str]:
    """Run one case; return the name of its operator, and what went wrong or ""."""
    operator, draw = drawn_case(seed, number)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of Triton's interpreter, for NaN
            operator(draw, target)
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "stress" in frame.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
        return operator.__name__, f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:400]}"
    return operator.__name__, ""


def work(name: str, seed: int, numbers: range, results: Connection) -> None:
    """Run the cases and send the result of each."""
    target = target_named(name)
    for number in numbers:
        results.send(run_case(target, seed, number))


class Run:
    """The cases of one seed on one backend after the other, and the results so far."""

    def __init__(self, seed: int, processes: int, work: Callable[..., None] = work) -> None:
        self.seed, self.processes, self.work = seed, processes, work
        self.counts: dict[str, Counter[str]] = {}  # cases by backend and operator
        self.failures: list[dict[str, Any]] = []
        self.context: Any = multiprocessing.get_context("spawn")

    def backend(self, name: str, cases: int) -> None:
        """Run cases 0, ..., `cases` - 1 in several processes; a process that dies is a failure of its case."""
        counts = self.counts[name] = Counter()
        running = dict(self._start(name, range(cases)[i :: self.processes]) for i in range(min(self.processes, cases)))
        begin = last = time.monotonic()
        while running:
            for connection in multiprocessing.connection.wait(list(running)):
                process, left = running.pop(connection)
                try:
                    operator, message = connection.recv()
                except EOFError:
                    process.join()
                    if not left:
                        continue
                    operator = OPERATORS[left[0] % len(OPERATORS)].__name__
                    message = f"the process ended with exit code {process.exitcode}"
                    if len(left) > 1:
                        running.update([self._start(name, left[1:])])
                else:
                    running[connection] = process, left[1:]
                counts[operator] += 1
                if message:
                    self._fail(name, left[0], operator, message)
            if (now := time.monotonic()) - last > 5 or not running:
                last, done = now, counts.total()
                left_over = (cases - done) * (now - begin) / max(done, 1)
                failed = sum(failure["backend"] == name for failure in self.failures)
                print(f"{name}: {done:,} of {cases:,} cases, {failed} failed, {left_over:.0f} s left", flush=True)

    def _start(self, name: str, numbers: range) -> tuple[Connection, tuple[Any, range]]:
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=self.work, args=(name, self.seed, numbers, theirs), daemon=True)
        process.start()
        theirs.close()
        return ours, (process, numbers)

    def _fail(self, name: str, number: int, operator: str, message: str) -> None:
        repeat = f"python tests/stress/fuzz.py --seed {self.seed} --backends {name} --case {number}"
        self.failures.append(
            {"operator": operator, "backend": name, "case": number, "message": message, "repeat": repeat}
        )
        if len(self.failures) <= MOST_LINES:
            print(f"FAILED {operator} on {name}: {message}; repeat with: {repeat}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000, help="cases of each backend; a slow one gets a hundredth")
    parser.add_argument("--seed", type=int, default=0, help="cases of another seed are other cases")
    parser.add_argument("--backends", help="names with commas between them; the default is all that run here")
    parser.add_argument("--case", type=int, help="run only the case of this number, and show where it fails")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="the file for the results")
    options = parser.parse_args()
    names = options.backends.split(",") if options.backends else available()
    if unknown := [name for name in names if name not in available()]:
        parser.error(f"these backends do not run here: {', '.join(unknown)}; choose from {', '.join(available())}")
    if options.case is not None:
        for name in names:
            operator, draw = drawn_case(options.seed, options.case)
            operator(draw, target_named(name))
        return 0
    if "emulated" in names:
        cuda_emulation.build("rmcla_fast")  # once, before several processes need it
    run, begin = Run(options.seed, options.processes), time.monotonic()
    for name in names:
        run.backend(name, -(-options.cases // SLOWER.get(name, 1)))
    report = {
        "seed": options.seed,
        "cases": {name: dict(sorted(counts.items())) for name, counts in run.counts.items()},
        "failures": run.failures,
        "seconds": round(time.monotonic() - begin, 1),
        "about": describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    total = sum(counts.total() for counts in run.counts.values())
    print(f"{total:,} cases in {report['seconds']} s: {len(run.failures)} failed")
    return int(bool(run.failures))


if __name__ == "__main__":
    sys.exit(main())
