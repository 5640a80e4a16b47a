"""Change the source in small ways and count how many of these changes, the mutants, make a test fail.

mutmut's operators make the mutants. Each runs in a copy of the repository with the test files that TESTS names, until
the first failure. A child forked from a process that has imported torch runs them, which saves seconds per mutant.

A mutant that cannot be imported is broken and does not count, and neither does one that equivalent_mutants.json lists
with the reason why no test can tell it from the original. A mutant that runs out of time counts as killed.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import hashlib
import importlib
import itertools
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import libcst
import pytest
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

ROOT = Path(__file__).parents[2]
# What the package and its tests import; the parent imports it once.
PRELOADED = (
    "numpy",
    "triton.language",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.distributed.fsdp",
    "torch.testing._internal.optests",
    "torch.utils.data",
)
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.json")
BROKEN = 99  # the exit status of a child that cannot import the package
SLOWEST = 120.0  # seconds that a mutant may take beyond five times the time of the original
LEAST = 85.0  # percent of the mutants that the tests must kill
COLUMNS = ("mutants", "tested", "killed", "timed out", "survived", "equivalent", "broken")
PACKAGES = ("mutmut", "torch", "pytest", "hypothesis")
SECONDS = itertools.count()  # times of change
# The tests of each file, those that find most mutants first.
TESTS = {
    "ops/__init__.py": "signatures",
    "ops/augment.py": "signatures meta bad_input_images augment",
    "ops/checks.py": "checks bad_input_rows bad_input_images out adversarial_example",
    "ops/dispatch.py": "extension meta signatures dispatch bad_input_rows",
    "ops/extension.py": "extension dispatch",
    "ops/joint_gradient.py": "signatures meta bad_input_rows joint_objective redistribute_labels joint_gradient out",
    "ops/perturb_step.py": "signatures meta bad_input_images perturb_step mask out",
    "ops/philox.py": "reference random_start target_classes",
    "ops/random_start.py": "signatures meta bad_input_images random_start mask out",
    "ops/soft_cross_entropy.py": "signatures meta bad_input_rows soft_cross_entropy",
    "ops/tensors.py": "tensors perturb_step random_start redistribute_labels",
    "reference/__init__.py": "signatures",
    "reference/augment.py": "signatures reference augment",
    "reference/joint_gradient.py": "signatures reference redistribute_labels joint_gradient",
    "reference/labels.py": "reference soft_cross_entropy redistribute_labels joint_gradient",
    "reference/perturb_step.py": "signatures reference perturb_step mask out",
    "reference/random_start.py": "signatures reference random_start mask out",
    "reference/soft_cross_entropy.py": "signatures reference soft_cross_entropy",
    "adversarial_example.py": "adversarial_parts adversarial_example target_classes step",
    "recipes.py": "recipes adversarial_example",
    "training/checkpoint.py": "checkpoint files",
}


class Mutant(NamedTuple):
    """One changed file: `change` shows the function and the lines before and after."""

    file: str
    line: int
    change: str
    source: str

    @property
    def key(self) -> str:
        """Return a name that stays when other parts of the file change."""
        return hashlib.sha256(f"{self.file} {self.change}".encode()).hexdigest()[:10]


class Visitor(MutationVisitor):
    """mutmut's visitor; it enters decorated functions too, which mutmut leaves out for a reason of its own."""

    def _skip_node_and_children(self, node: libcst.CSTNode) -> bool:
        if isinstance(node, libcst.FunctionDef):
            return False
        return super()._skip_node_and_children(node)


class Mutants:
    """All mutants of a file of the package, which are rendered one by one since each takes tens of milliseconds."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.code = (ROOT / "rmcla_fast" / file).read_text()
        wrapper = MetadataWrapper(libcst.parse_module(self.code))
        visitor = Visitor(mutation_operators, IgnoredCode(set(), set(), set()))
        self.module = wrapper.visit(visitor)
        self.mutations = visitor.mutations
        self.positions = wrapper.resolve(PositionProvider)

    def render(self, number: int) -> Mutant:
        mutation = self.mutations[number]
        source = self.module.deep_replace(mutation.original_node, mutation.mutated_node).code
        before, after = self.code.splitlines(), source.splitlines()
        change = [line for line in difflib.unified_diff(before, after, n=0, lineterm="") if line[0] in "-+"][2:]
        function = mutation.contained_by_top_level_function
        where = function.name.value if isinstance(function, libcst.FunctionDef) else "module"
        text = "\n".join([where, *(f"{line[0]} {line[1:].strip()}" for line in change)])
        return Mutant(self.file, self.positions[mutation.original_node].start.line, text, source)


class Plugin:
    """Leave out the tests of Triton's interpreter, which never runs these files, and note the first failure."""

    def __init__(self, keep_triton: bool) -> None:
        self.keep_triton = keep_triton
        self.failure = ""

    def pytest_configure(self) -> None:
        profile = hypothesis.settings(hypothesis.settings.get_profile("operators"), phases=["explicit", "generate"])
        hypothesis.settings.register_profile("mutants", profile)  # a failure need not be made small
        hypothesis.settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if not self.keep_triton:
            items[:] = [item for item in items if "triton" not in item.nodeid.partition("[")[2]]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failure:
            self.failure = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.failure:
            self.failure = report.nodeid


def start(folder: Path, file: str) -> int:
    """Fork a child that tests the copy in `folder`; it writes the failed test into `folder`.log."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path[:] = [str(folder), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
    status = BROKEN
    try:
        importlib.import_module("rmcla_fast." + file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        tests = [f"tests/test_{name}.py" for name in TESTS[file].split()]
        plugin = Plugin(keep_triton=file == "ops/dispatch.py")
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark"]
        options += ["-m", "not gpu", "-W", "ignore", "--no-header", "--tb=line"]
        status = int(pytest.main([*options, *tests], plugins=[plugin]))
        Path(f"{folder}.failure").write_text(plugin.failure)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}")
    finally:
        sys.stdout.flush()
        os._exit(status)


def copies(place: Path, count: int) -> list[Path]:
    """Copy the repository so often into a folder, without what the tests do not need."""
    left_out = shutil.ignore_patterns(".git", ".venv", "build", "runs", ".*_cache", "results")
    return [Path(shutil.copytree(ROOT, place / str(number), ignore=left_out)) for number in range(count)]


def write(path: Path, source: str) -> None:
    """Write a source with a time of change of its own, so that Python takes no bytecode of another source."""
    path.write_text(source)
    second = next(SECONDS)
    os.utime(path, (second, second))


def outcomes(
    mutants: list[Mutant], folders: list[Path], allowed: dict[str, float]
) -> Iterator[tuple[Mutant, str, str, float]]:
    """Run each mutant in one of the copies; give its outcome, the test that failed, and the seconds that it took."""
    free, waiting, running = list(folders), list(reversed(mutants)), {}
    while waiting or running:
        while waiting and free:
            mutant, folder = waiting.pop(), free.pop()
            path = folder / "rmcla_fast" / mutant.file
            original = path.read_text()
            write(path, mutant.source)
            Path(f"{folder}.failure").write_text("")
            running[start(folder, mutant.file)] = mutant, folder, original, time.monotonic()
        time.sleep(0.02)
        for child, (mutant, folder, original, begin) in list(running.items()):
            seconds = time.monotonic() - begin
            late = seconds > allowed.get(mutant.file, 3600.0)
            if late:
                os.killpg(child, signal.SIGKILL)
            done, status = os.waitpid(child, 0 if late else os.WNOHANG)
            if not done:
                continue
            del running[child]
            free.append(folder)
            write(folder / "rmcla_fast" / mutant.file, original)
            code = os.waitstatus_to_exitcode(status)
            outcome = "timed out" if late else {0: "survived", BROKEN: "broken"}.get(code, "killed")
            yield mutant, outcome, Path(f"{folder}.failure").read_text() or f"exit {code}", seconds


def sample(found: dict[str, Mutants], count: int | None, seed: int) -> list[Mutant]:
    """Return `count` mutants, from each file in proportion but at least 10 (all of them for None)."""
    total = sum(len(mutants.mutations) for mutants in found.values())
    chosen = []
    for file, mutants in found.items():
        whole = len(mutants.mutations)
        size = whole if count is None else min(whole, max(10, round(count * whole / total)))
        chosen += [mutants.render(number) for number in random.Random(f"{seed} {file}").sample(range(whole), size)]
    return chosen


def share(counts: dict[str, dict[str, int]]) -> tuple[float, float]:
    """Return the share of killed mutants and its standard error, each file weighted by the number of its mutants."""
    weights, parts, variances = [], [], []
    for row in counts.values():
        drawn = row["tested"] - row["broken"] - row["equivalent"]
        if drawn:
            part = (row["killed"] + row["timed out"]) / drawn
            weights.append(row["mutants"] * drawn / row["tested"])
            parts.append(part)
            variances.append((1 - row["tested"] / row["mutants"]) * part * (1 - part) / max(drawn - 1, 1))
    whole = sum(weights)
    mean = sum(w * p for w, p in zip(weights, parts, strict=True)) / whole
    return mean, sum((w / whole) ** 2 * v for w, v in zip(weights, variances, strict=True)) ** 0.5


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="files of rmcla_fast, for example ops/checks.py; all of TESTS without")
    parser.add_argument("--count", type=int, help="how many mutants to draw at random; all of them without")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", type=Path, help="a result of this script; run again only what survived there")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "mutants.json")
    return parser.parse_args()


def main() -> int:
    given = options()
    os.environ |= {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # so that the children share the memory of what is loaded
    found = {file: Mutants(file) for file in given.files or TESTS}
    chosen = sample(found, given.count, given.seed)
    if given.only:
        again = {survivor["key"] for survivor in json.loads(given.only.read_text())["survivors"]}
        chosen = [mutant for mutant in chosen if mutant.key in again]
    equivalent = {entry["key"] for entry in json.loads(EQUIVALENT.read_text())}
    table = {file: dict.fromkeys(COLUMNS, 0) | {"mutants": len(found[file].mutations)} for file in found}
    for mutant in chosen:
        table[mutant.file]["tested"] += 1
        table[mutant.file]["equivalent"] += mutant.key in equivalent
    pending = [mutant for mutant in chosen if mutant.key not in equivalent]
    survivors: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        folders = copies(Path(place), given.jobs)
        allowed = {}
        files = dict.fromkeys(mutant.file for mutant in pending)
        originals = [Mutant(file, 0, "", found[file].code) for file in files]
        for original, outcome, failure, seconds in outcomes(originals, folders, {}):
            if outcome != "survived":
                sys.exit(f"The tests of {original.file} fail without a mutant: {failure}")
            allowed[original.file] = SLOWEST + 5 * seconds
        for number, (mutant, outcome, failure, seconds) in enumerate(outcomes(pending, folders, allowed), 1):
            table[mutant.file][outcome] += 1
            where = f"{number}/{len(pending)} {outcome} {mutant.file}:{mutant.line} {seconds:.1f} s"
            print(where, mutant.change if outcome == "survived" else failure, flush=True)
            if outcome == "survived":
                survivors.append({"key": mutant.key, "file": mutant.file, "line": mutant.line, "change": mutant.change})
    killed, error = share(table)
    result = {
        "killed_percent": round(100 * killed, 2),
        "standard_error_percent": round(100 * error, 2),
        "seed": given.seed,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "files": table,
        "survivors": survivors,
    }
    gc.unfreeze()
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(result, indent=1) + "\n")
    for file, row in table.items():
        print(f"{file:32}" + "".join(f"{column} {row[column]:4}  " for column in COLUMNS))
    print(f"killed {100 * killed:.1f} %, standard error {100 * error:.1f} %; {given.json}")
    return int(100 * killed < LEAST)


if __name__ == "__main__":
    sys.exit(main())
