"""Install the package in every way that should work, or should say in one sentence why not; print a line for each.

    python tests/install/matrix.py --list
    python tests/install/matrix.py --base VENV --base ANOTHER_VENV --json runs/install.json

A base is a virtual environment with pip, torch, ninja, pybind11, setuptools and the extra `train`. Each cell gets an
environment of its own, which sees the packages of its base. Without --base, the environment of this Python is the base.
A cell without a base of its Python and torch is skipped. What is built is in build/install-matrix.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from cells import CELLS, Cell

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build/install-matrix"
COPIED = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "csrc", "rmcla_fast")
COMPILERS = re.compile(r"(.+-)?(cc|gcc|g\+\+|c\+\+|c89|c99|cpp|clang|clang\+\+|nvcc|ld|ninja-build)(-[\d.]+)?(\.exe)?$")
TRAIN = "train --data digits --recipe r-mc-la --epsilon 0.15 --images-per-class 20 --epochs 2 --out RUN -q"
FACTS = """
import json, os, sys, torch
folders = [path for path in sys.path if "-packages" in path]
version = ".".join(map(str, sys.version_info[:2]))
print(json.dumps({"python": version, "torch": torch.__version__, "cuda": torch.version.cuda, "folders": folders}))
"""
FAILS_HALFWAY = """#!/bin/sh
case " $* " in
*" -c "*) [ ! -e "$0.once" ] || { echo "fatal error: no space left on device" >&2; exit 1; }; touch "$0.once" ;;
esac
exec {compiler} "$@"
"""
NVCC = """#!/bin/sh
if [ "$1" = --version ]; then echo "Cuda compilation tools, release {release}, V{release}.1"; exit 0; fi
echo "nvcc fatal: this is a stand-in" >&2
exit 1
"""


@dataclass(frozen=True)
class Base:
    """A virtual environment with torch, which cells use the packages of."""

    interpreter: str
    python: str
    torch: str
    cuda: str | None
    folders: tuple[str, ...]

    @classmethod
    def of(cls, interpreter: Path) -> Base:
        """Return what the environment of this interpreter holds."""
        done = subprocess.run([interpreter, "-W", "ignore", "-c", FACTS], capture_output=True, text=True, check=True)
        facts = json.loads(done.stdout)
        return cls(str(interpreter), facts["python"], facts["torch"], facts["cuda"], tuple(facts["folders"]))

    def suits(self, cell: Cell) -> bool:
        """Return whether the cell is about this Python and this torch."""
        release = ".".join(self.torch.split(".")[:2])
        floor = release == cell.torch if cell.torch else tuple(map(int, release.split("."))) >= (2, 10)
        return floor and cell.python in ("", self.python) and cell.cuda in (None, self.cuda is not None)


class Failed(Exception):
    """What a cell said instead of what it should have said."""


class Place:
    """A folder with a copy of the sources, an environment that sees its base's packages, and the cell's variables."""

    def __init__(self, cell: Cell, base: Base) -> None:
        self.folder = WORK / cell.name / cell.folder
        shutil.rmtree(WORK / cell.name, ignore_errors=True)
        self.sources, self.venv = self.folder / "sources", self.folder / "venv"
        self.sources.mkdir(parents=True)
        for name in COPIED:
            if (ROOT / name).is_dir():
                left_out = shutil.ignore_patterns("*.so", "__pycache__")
                shutil.copytree(ROOT / name, self.sources / name, ignore=left_out)
            elif (ROOT / name).exists():
                shutil.copy(ROOT / name, self.sources)
        subprocess.run([base.interpreter, "-m", "venv", "--without-pip", self.venv], check=True)
        packages = next(self.venv.glob("lib/python*/site-packages"))
        (packages / "base.pth").write_text("".join(f"{path}\n" for path in base.folders))
        self.said = ""
        dropped = ("RMCLA_", "CUDA_", "PYTHONPATH", "CXX", "CC", "VIRTUAL_ENV", "TORCH_CUDA_ARCH_LIST")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        self.environment |= {"OMP_NUM_THREADS": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}
        self.choose_compiler(cell.compiler.format(cuda=base.cuda), Path(base.interpreter).parent)
        for name, value in cell.environment.items():
            self.environment.pop(name, None)
            if value is not None:
                self.environment[name] = value

    def choose_compiler(self, compiler: str, of_the_base: Path) -> None:
        """Set PATH and the compiler's variables; without a compiler PATH has links to all other programs."""
        path = [str(self.venv / "bin"), str(of_the_base), *os.environ["PATH"].split(os.pathsep)]
        tools = self.folder / "tools"
        tools.mkdir()
        if compiler == "none":
            for folder in path[2:]:
                for program in Path(folder).glob("*"):
                    if not COMPILERS.match(program.name) and not (tools / program.name).exists():
                        (tools / program.name).symlink_to(program)
            path[2:] = [str(tools)]
        if compiler in ("none", "no nvcc"):
            self.environment["CUDA_HOME"] = str(tools)
        if compiler == "fails halfway":
            self.environment["CXX"] = self.program(tools / "c++", FAILS_HALFWAY.format(compiler=shutil.which("c++")))
        if compiler.startswith("nvcc "):
            self.program(tools / "bin/nvcc", NVCC.format(release=compiler.split()[1]))
            (tools / "lib64").mkdir()
            (tools / "lib64/libcudart.so").touch()
            self.environment["CUDA_HOME"] = str(tools)
        self.environment["PATH"] = os.pathsep.join(path)

    @staticmethod
    def program(path: Path, text: str) -> str:
        """Write a shell script that can be run, and return its path."""
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def run(self, *arguments: object, check: bool = True) -> str:
        """Run the environment's Python in the place's folder; return what it prints."""
        command = [str(self.venv / "bin/python"), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.said += done.stdout
        if check and done.returncode != 0:
            raise Failed(f"`{' '.join(command[1:4])}` ended with {done.returncode}: {done.stdout[-1500:]}")
        return done.stdout

    def install(self, cell: Cell, wheel: Path | None) -> str:
        """Install the package; return the output of pip."""
        options = [] if "isolated" in cell.how else ["--no-build-isolation"]
        options += ["--no-deps"] if cell.torch == "2.9" else []  # pip would install a newer torch
        what = [str(wheel)] if wheel else [*(["--editable"] if "editable" in cell.how else []), str(self.sources)]
        pip = ("-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-v", *options, *what)
        return self.run(*pip, check=not cell.stops)

    def damage(self, what: str) -> None:
        """Do to the installed kernels what a full disk, an upgrade or another machine could have done."""
        name, _, kind = what.partition(": ")
        path = next(self.venv.glob(f"lib/python*/site-packages/rmcla_fast/{name}.so"))
        whole = path.read_bytes()
        path.unlink()
        if kind == "missing":
            return
        other = whole.replace(b"rmcla_operators", b"rmcla_operator_")
        if kind == "of a missing library":
            other = whole.replace(b"libtorch_cpu.so", b"libtorch_gone.s")
        if kind == "of another CUDA":
            other = re.sub(rb"libcudart\.so\.\d\d", b"libcudart.so.77", whole)
        contents = {"empty": b"", "text": b"version https://git-lfs\n", "cut short": whole[: len(whole) * 2 // 3]}
        path.write_bytes(
            contents.get(kind, whole[: len(whole) // 2] + bytes(len(whole) // 2) if kind.startswith("zero") else other)
        )


def wheel_of(bases: list[Base]) -> Path:
    """Return a wheel for every Python, built once, with the last base: the newest torch, and with CUDA if it can be."""
    found = list(WORK.glob("wheel/here/*.whl"))
    if not found:
        place = Place(Cell("wheel"), bases[-1])
        option = "--config-settings=--build-option=--py-limited-api=cp310"
        pip = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-v", option)
        place.run(*pip, "--wheel-dir", place.folder, place.sources)
        found = list(place.folder.glob("*.whl"))
    return found[0]


def frames(said: str) -> list[str]:
    """Return the reasons that setup.py printed in frames."""
    return sorted(set(re.findall(r"rmcla_fast: (.*)\n\s*because: (.*)", said)))


def run_cell(cell: Cell, base: Base, bases: list[Base]) -> str:
    """Install the package in the way of the cell and use it; return what it said in a line."""
    wheel = wheel_of(bases) if cell.how == "wheel" else None
    place = Place(cell, base)
    lines = [f"{what}: {why}" for what, why in frames(place.install(cell, wheel))]
    if not cell.stops:
        if cell.damage:
            place.damage(cell.damage)
        info = place.run("-m", "rmcla_fast.cli", "info")
        lines += [line for line in info.splitlines() if line.startswith("compiled ")]
        lines.append(place.run(Path(__file__).with_name("check_operators.py")).splitlines()[-1])
        if cell.train:
            place.run("-m", "rmcla_fast.cli", *TRAIN.split())
            lines.append("trained" if (place.folder / "RUN/curves.png").exists() else "not trained")
    else:
        lines = [line.strip() for line in place.said.splitlines() if re.search(cell.says[0], line)][:1]
    missing = [pattern for pattern in cell.says if not re.search(pattern, place.said)]
    if missing:
        raise Failed(f"it did not say {missing}; it said {lines or place.said[-1500:]}")
    shutil.rmtree(WORK / cell.name)
    return re.sub(r"; (re)?build it with: .*?torch installed\)", "", "; ".join(lines)).replace(str(place.folder), "…")


def main() -> int:
    """Run the cells and return how many failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, action="append", help="a virtual environment with torch")
    parser.add_argument("--cells", help="the names of cells, with commas; all of them if left out")
    parser.add_argument("--list", action="store_true", help="print the names of all cells")
    parser.add_argument("--json", type=Path, help="write what the cells said, and the machine")
    options = parser.parse_args()
    names = options.cells.split(",") if options.cells else [cell.name for cell in CELLS]
    if unknown := set(names) - {cell.name for cell in CELLS}:
        parser.error(f"there is no cell {', '.join(sorted(unknown))}; --list names all")
    if options.list:
        print("\n".join(cell.name for cell in CELLS))
        return 0
    interpreters = [folder.absolute() / "bin/python" for folder in options.base or []] or [Path(sys.executable)]
    bases = [Base.of(interpreter) for interpreter in interpreters]
    bases.sort(key=lambda base: (base.cuda is not None, [int(part) for part in re.findall(r"\d+", base.torch)[:3]]))
    shutil.rmtree(WORK / "wheel", ignore_errors=True)
    results = []
    for cell in (cell for cell in CELLS if cell.name in names):
        base = next((base for base in reversed(bases) if base.suits(cell)), None)
        began, outcome = time.time(), "ok"
        if base is None:
            outcome, said = "skipped", "no base has its Python and its torch"
        else:
            try:
                said = run_cell(cell, base, bases)
            except Failed as error:
                outcome, said = "FAILED", str(error)
        on = f"Python {base.python}, torch {base.torch}" if base else ""
        seconds = time.time() - began
        print(f"{cell.name:<30} {outcome:<7} {seconds:4.0f} s  {on}: {said}", flush=True)
        results.append({"cell": cell.name, "outcome": outcome, "seconds": round(seconds, 1), "base": on, "said": said})
    if options.json:
        machine = {"system": platform.platform(), "cores": os.cpu_count(), "compiler": shutil.which("c++") is not None}
        found = [
            {name: value for name, value in asdict(base).items() if name in ("python", "torch", "cuda")}
            for base in bases
        ]
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": machine, "bases": found, "cells": results}, indent=1) + "\n")
    return sum(result["outcome"] == "FAILED" for result in results)


if __name__ == "__main__":
    sys.exit(main())
