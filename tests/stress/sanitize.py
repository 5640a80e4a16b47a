"""Run the operators' tests and the fuzzer on CPU kernels built with AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/stress/sanitize.py --cases 20000 --json results.json

The sanitizers report reads and writes outside of memory, and what C++ leaves undefined, such as a signed overflow. The
build is in a copy of the checkout in build/sanitize, so that the installed extension stays as it is. It first commits
faults on purpose, and fails if one of them is not reported. It needs gcc and its libraries libasan and libubsan.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from machine import describe_machine  # noqa: E402
from stress import fuzz  # noqa: E402

FOLDER = ROOT / "build/sanitize"
CHECKOUT, LOGS = FOLDER / "checkout", FOLDER / "logs"
COPIED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "rmcla_fast", "tests", "benchmarks")
FLAGS = [
    "-fsanitize=address,undefined",
    "-fsanitize-recover=address,undefined",
    "-fno-omit-frame-pointer",
    "-O1",  # the vectors are inlined as at -O3, and compile in a third of the time
]
LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so.6")  # the last one, so that exceptions reach the first one
REPORTS = {"AddressSanitizer": "ERROR: AddressSanitizer", "UndefinedBehaviorSanitizer": "runtime error:"}
TESTS = (
    "augment",
    "cpu_kernels",
    "joint_gradient",
    "joint_objective",
    "mask",
    "out",
    "perturb_step",
    "random_start",
    "redistribute_labels",
    "soft_cross_entropy",
)
BUILD = f"""
import setuptools, setup
arguments = setup.native()
module, _ = arguments["ext_modules"]  # the CPU kernels, and the report of the build
module.sources.append("tests/stress/faults.cpp")
module.extra_compile_args["cxx"] += {FLAGS}
module.extra_link_args += {FLAGS}
setuptools.setup(script_args=["-q", "build_ext", "--inplace"], **arguments)
"""
FAULTS = """
import ctypes, torch
from rmcla_fast.ops import extension
faults = ctypes.CDLL(str(extension.path_of("cpu")))
ones = torch.ones(8)
faults.write_float(ctypes.c_void_p(ones.data_ptr()), ctypes.c_int64(8))
faults.next_integer(2**31 - 1)
faults.next_lane(2**31 - 1)
"""


def library(name: str) -> str:
    """Return the path of one of gcc's libraries, or "" if it is not installed."""
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    return os.path.realpath(found) if os.path.isabs(found) else ""


def why_not() -> str:
    """Return why the sanitizers cannot run on this machine; "" if they can."""
    if sys.platform != "linux" or shutil.which("gcc") is None or shutil.which("g++") is None:
        return "the sanitizers need gcc and g++ on Linux"
    missing = [name for name in LIBRARIES if not library(name)]
    return f"gcc's libraries {', '.join(missing)} are not installed" if missing else ""


def build() -> None:
    """Copy the checkout and build its extension with the sanitizers; a second build compiles only what has changed."""
    for name in COPIED:
        copy = CHECKOUT / name
        if (ROOT / name).is_dir():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(ROOT / name, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            CHECKOUT.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy)
    environment = os.environ | {"RMCLA_WITH_CUDA": "0", "CC": "gcc", "CXX": "g++"}
    command = [sys.executable, "-c", BUILD]
    built = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    if not (CHECKOUT / "rmcla_fast/_cpu_kernels.so").exists():
        raise RuntimeError(f"the extension was not built with the sanitizers:\n{built.stdout}{built.stderr}")


def run(*arguments: str, show: bool = False) -> tuple[str, Counter[str]]:
    """Run Python with the sanitized extension; return what it printed, and the number of reports of each sanitizer.

    With `show`, what it prints is also shown while it runs.
    """
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    common = f"log_path={LOGS}/report:print_stacktrace=1:halt_on_error=0"
    environment = os.environ | {
        "LD_PRELOAD": " ".join(library(name) for name in LIBRARIES),
        "ASAN_OPTIONS": f"{common}:detect_leaks=0",  # Python frees nothing at its end
        "UBSAN_OPTIONS": common,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(CHECKOUT),
    }
    printed = []
    command = [sys.executable, *arguments]
    with subprocess.Popen(
        command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line)
            if show:
                print(line, end="", flush=True)
    text = "".join(printed) + "".join(path.read_text(errors="replace") for path in LOGS.iterdir())
    reports = Counter({name: text.count(mark) for name, mark in REPORTS.items()})
    if process.returncode < 0:
        raise RuntimeError(f"{' '.join(arguments)} died of signal {-process.returncode}:\n{text[-4000:]}")
    return text, reports


def check_faults() -> None:
    """Raise unless the sanitizers report each of the faults in faults.cpp."""
    text, _ = run("-c", FAULTS)
    for fault in ("AddressSanitizer: heap-buffer-overflow", r"overflow: 2147483647 \+ 1"):
        if not re.search(fault, text):
            raise RuntimeError(f"the sanitizers do not report a fault ({fault}):\n{text}")
    lines = set(re.findall(r"faults\.cpp:(\d+)[^\n]*runtime error", text))
    if len(lines) != 2:
        raise RuntimeError(
            f"the sanitizers report signed overflows only in lines {sorted(lines)} of faults.cpp:\n{text}"
        )


def run_operator_tests() -> tuple[int, Counter[str]]:
    """Run the operators' tests; return the number that passed and the reports. Raise if a test failed."""
    files = [f"tests/test_{name}.py" for name in TESTS]
    # AddressSanitizer itself keeps memory that was freed.
    chosen = "cpu and not compile and not instruction_set and not avx512 and not keep_no_memory"
    text, reports = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files, show=True)
    passed = re.search(r"(\d+) passed", text)
    if passed is None or re.search(r"\d+ (failed|error)", text):
        raise RuntimeError(f"a test failed with the sanitized extension:\n{text[-4000:]}")
    return int(passed[1]), reports


def run_fuzzer(names: list[str], cases: int, seed: int, show: bool = False) -> tuple[dict[str, Any], Counter[str]]:
    """Run the fuzzer on the CPU kernels, by their `names` in fuzz.py; return its results and the reports."""
    results = FOLDER / "fuzz.json"
    results.unlink(missing_ok=True)
    options = ["--cases", str(cases), "--seed", str(seed), "--backends", ",".join(names), "--json", str(results)]
    text, reports = run("tests/stress/fuzz.py", *options, show=show)
    if not results.exists():
        raise RuntimeError(f"the fuzzer did not end:\n{text[-4000:]}")
    return json.loads(results.read_text()), reports


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000, help="cases of the fuzzer for each instruction set")
    parser.add_argument("--seed", type=int, default=0, help="cases of another seed are other cases")
    parser.add_argument("--json", type=Path, help="the file for the results")
    options = parser.parse_args()
    if reason := why_not():
        print(f"sanitize: not run, because {reason}", file=sys.stderr)
        return 2
    begin = time.monotonic()
    print(f"The extension is built with the sanitizers in {CHECKOUT}, which takes a few minutes.", flush=True)
    build()
    build_seconds = time.monotonic() - begin
    check_faults()
    print(f"It was built in {build_seconds:.0f} s, and the faults on purpose are reported.", flush=True)
    passed, reports = run_operator_tests()
    names = ["cpu", *(name for name in fuzz.INSTRUCTION_SETS if name in fuzz.available())]
    results, more = run_fuzzer(names, options.cases, options.seed, show=True)
    reports.update(more)
    report = {
        "build seconds": round(build_seconds, 1),
        "tests passed": passed,
        "fuzzed": results["cases"],
        "failures": results["failures"],
        "reports": {name: reports[name] for name in REPORTS},
        "seconds": round(time.monotonic() - begin, 1),
        "about": describe_machine(torch.device("cpu")),
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    fuzzed = sum(sum(counts.values()) for counts in results["cases"].values())
    counted = ", ".join(f"{count} of {name}" for name, count in report["reports"].items())
    print(f"{passed} tests passed, {fuzzed:,} cases, {len(results['failures'])} failed; reports: {counted}")
    return int(bool(results["failures"] or reports.total()))


if __name__ == "__main__":
    sys.exit(main())
