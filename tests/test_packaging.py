"""What `setup.py` builds, with which tags, and what it says about the rest; and what a source distribution holds."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.utils import cpp_extension

from rmcla_fast.ops import extension

ROOT = Path(__file__).resolve().parent.parent
FRAME = re.compile(r"\*{100}\nrmcla_fast: (.*)\n  because: (.*)\n\*{100}\n")
REFERENCE = "the compiled kernels are NOT built; the plain-torch reference (on a GPU: Triton) runs instead"
NO_CUDA = "the CUDA kernels are NOT built; a GPU runs Triton or the plain-torch reference"
MISSING_COMPILER = shutil.which("c++") is None or sys.platform == "win32"
needs_compiler = pytest.mark.skipif(MISSING_COMPILER, reason="needs a C++ compiler, on Linux or macOS")
KERNELS = """
extern "C" __attribute__((visibility("default"))) const char* rmcla_operators() { return ""; }
"""
MODULE = """#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", RMCLA_CUDA_ARCHITECTURES, -1, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
"""


def test_a_source_distribution_holds_every_source(tmp_path: Path) -> None:
    """This includes a distribution made without torch, in which setup.py does not list the sources."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path]
    environment = os.environ | {"RMCLA_SKIP_NATIVE": "1"}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        packed = {Path(*Path(name).parts[1:]).as_posix() for name in opened.getnames()}
    wanted = [*ROOT.glob("csrc/**/*"), *ROOT.glob("rmcla_fast/**/*.py"), *ROOT.glob("tests/**/*.py")]
    wanted += [ROOT / name for name in ("setup.py", "pyproject.toml", "Makefile", "LICENSE", "rmcla_fast/py.typed")]
    assert not [path for path in wanted if path.is_file() and path.relative_to(ROOT).as_posix() not in packed]
    assert not [name for name in packed if name.endswith((".so", ".dll", ".pyd", ".pyc"))]


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return setup.py as a module, in an environment that chooses nothing."""
    for name in ("CUDA_HOME", "CUDA_PATH", "RMCLA_WITH_CUDA", "RMCLA_SKIP_NATIVE", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS"):
        monkeypatch.setenv(name, "")  # so that what setup.py sets is restored after the test
        monkeypatch.delenv(name)
    spec = importlib.util.spec_from_file_location("setup_of_rmcla_fast", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def toolkit(folder: Path, release: str) -> Path:
    """Return a CUDA toolkit whose nvcc says that it is of this release, and compiles nothing."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    said = f"Cuda compilation tools, release {release}, V{release}.1"
    nvcc.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo "{said}"; exit 0; fi\necho "stand-in"; exit 1\n')
    nvcc.chmod(0o755)
    (folder / "lib64").mkdir()
    (folder / "lib64" / "libcudart.so").touch()
    return folder


def test_the_oldest_torch_is_the_same_everywhere(setup_py: ModuleType) -> None:
    floor = ".".join(map(str, setup_py.FLOOR))
    assert floor == extension.FLOOR
    assert f'dependencies = ["torch>={floor}", "numpy"]' in (ROOT / "pyproject.toml").read_text()
    for page in ("README.md", "docs/quick-start.md"):
        assert f"torch {floor} or later" in (ROOT / page).read_text(), page


def test_what_builds_nothing_says_why(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RMCLA_SKIP_NATIVE", "1")
    assert setup_py.native() == {}
    left_out = "the compiled kernels are left out; the plain-torch reference runs instead"
    assert FRAME.findall(capsys.readouterr().err) == [(left_out, "RMCLA_SKIP_NATIVE=1")]
    monkeypatch.delenv("RMCLA_SKIP_NATIVE")
    isolated = "torch cannot be imported in this build; install torch, then: pip install --no-build-isolation ."
    old = "they need torch 2.10 or later, and this is torch 2.9.1+cpu"
    for stand_in, reason in ((None, isolated), (SimpleNamespace(__version__="2.9.1+cpu"), old)):
        monkeypatch.setitem(sys.modules, "torch", stand_in)
        assert setup_py.native() == {}
        assert FRAME.findall(capsys.readouterr().err) == [(REFERENCE, reason)]
        monkeypatch.setenv("RMCLA_WITH_CUDA", "1")
        with pytest.raises(SystemExit) as stopped:
            setup_py.native()
        monkeypatch.delenv("RMCLA_WITH_CUDA")
        assert str(stopped.value) == f"RMCLA_WITH_CUDA=1, but the CUDA kernels cannot be built: {reason}"


def test_cuda_is_built_if_torch_and_the_toolkit_agree(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def names() -> list[str]:
        return [extension.name for extension in setup_py.native()["ext_modules"]]

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    nowhere = tmp_path / "nowhere"
    reasons = {nowhere: "no CUDA toolkit with nvcc and libcudart was found (set CUDA_HOME to its folder)"}
    for release in ("12.8", "14.1"):
        home = toolkit(tmp_path / release, release)
        reasons[home] = f"nvcc in {home} is release {release[:2]} and torch was built with CUDA 13.0"
    for home, reason in reasons.items():
        monkeypatch.setenv("CUDA_HOME", str(home))
        assert names() == ["rmcla_fast._cpu_kernels", "rmcla_fast._C"]
        assert FRAME.findall(capsys.readouterr().err) == [(NO_CUDA, reason)]
        monkeypatch.setenv("RMCLA_WITH_CUDA", "1")
        with pytest.raises(SystemExit) as stopped:
            names()
        monkeypatch.delenv("RMCLA_WITH_CUDA")
        assert str(stopped.value) == f"RMCLA_WITH_CUDA=1, but the CUDA kernels cannot be built: {reason}"
    home = toolkit(tmp_path / "13.2", "13.2")
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(home))  # a torch without CUDA does not read the variable
    assert names() == ["rmcla_fast._cpu_kernels", "rmcla_fast._cuda_kernels", "rmcla_fast._C"]
    assert not FRAME.findall(capsys.readouterr().err)
    monkeypatch.setenv("RMCLA_WITH_CUDA", "0")
    assert names() == ["rmcla_fast._cpu_kernels", "rmcla_fast._C"]
    assert FRAME.findall(capsys.readouterr().err) == [(NO_CUDA, "RMCLA_WITH_CUDA=0")]


def test_kernels_know_no_python_and_no_torch_but_the_oldest(setup_py: ModuleType) -> None:
    (kernels,) = [one for one in setup_py.native()["ext_modules"] if one.name == "rmcla_fast._cpu_kernels"]
    assert kernels.libraries == ["torch_cpu"]
    assert ("TORCH_TARGET_VERSION", "0x020a000000000000ULL") in kernels.define_macros
    assert kernels.export_symbols == ["rmcla_operators", "rmcla_register"]
    assert kernels.sources == sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/cpu/*.cpp"))


def test_compilers_run_side_by_side_as_far_as_the_memory_goes(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16), raising=False)
    monkeypatch.setattr(setup_py.Path, "exists", lambda path: str(path) in files)
    monkeypatch.setattr(setup_py.Path, "read_text", lambda path: files[str(path)])
    assert setup_py.jobs(2.5e9) == 16
    files["/proc/meminfo"] = f"MemTotal: {2**30} kB\nMemAvailable:    {20 * 2**20} kB\n"
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert setup_py.jobs(2.5e9) == 8
    files["/sys/fs/cgroup/memory.max"] = "6000000000\n"
    assert setup_py.jobs(2.5e9) == 2
    files["/sys/fs/cgroup/memory.max"] = "1000000000\n"
    assert setup_py.jobs(2.5e9) == 1


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project with this setup.py whose kernels compile in a moment, in a folder with spaces."""
    folder = tmp_path / "a project"
    for name, content in {
        "csrc/cpu/kernels.cpp": KERNELS,
        "csrc/cuda/kernels.cu": KERNELS,
        "csrc/module.cpp": MODULE,
        "rmcla_fast/__init__.py": "",
        "README.md": "",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def build(project: Path, *arguments: str, cuda: str | None = None, **environment: str) -> list[tuple[str, str]]:
    """Run setup.py with a torch that says it was built with this CUDA; return what it warns of."""
    code = (
        "import os, runpy, torch.utils.cpp_extension as builder; builder.CUDA_HOME = os.environ.get('CUDA_HOME');"
        f"builder.torch.version.cuda = {cuda!r}; runpy.run_path('setup.py', run_name='__main__')"
    )
    variables = {**os.environ, "MAX_JOBS": "1", "CXX": "c++", **environment}
    for name in {"CUDA_HOME", "CUDA_PATH", "RMCLA_WITH_CUDA", "RMCLA_SKIP_NATIVE"} - environment.keys():
        variables.pop(name, None)
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return FRAME.findall(done.stderr)


def built(project: Path) -> list[str]:
    """Return the names of the compiled files in the package."""
    return sorted(path.name for path in project.glob("rmcla_fast/*.so"))


TAGGED = "_C" + (sysconfig.get_config_var("EXT_SUFFIX") or "")


@needs_compiler
def test_each_file_is_built_for_itself_and_nothing_old_stays(project: Path, tmp_path: Path) -> None:
    in_place = ("build_ext", "--inplace")
    (_, reason) = build(project, *in_place)[0]
    assert reason == f"torch {torch.__version__} is a build without CUDA"
    assert built(project) == [TAGGED, "_cpu_kernels.so"]
    home = str(toolkit(tmp_path / "13.0", "13.0"))
    (project / "rmcla_fast/_cuda_kernels.so").write_text("of an earlier build")
    ((what, why),) = build(project, *in_place, cuda="13.0", CUDA_HOME=home)
    assert what == NO_CUDA
    assert why.startswith("the compiler failed (")
    assert built(project) == [TAGGED, "_cpu_kernels.so"], "the CPU kernels stay, and the old CUDA kernels do not"
    module = (project / "rmcla_fast" / TAGGED).read_bytes()
    assert b"9.0+PTX" not in module, "the report has no architectures of kernels that were not built"
    (project / "csrc/cpu/kernels.cpp").write_text("#error it does not compile")
    frames = build(project, *in_place)
    assert frames[1][0] == "the CPU kernels are NOT built; the plain-torch reference runs instead"
    assert built(project) == [TAGGED]
    nowhere = str(tmp_path / "no-compiler")
    frames = build(project, *in_place, CXX=nowhere, CC=nowhere)
    assert [why for _, why in frames[1:]] == [
        f"there is no C++17 compiler (no {nowhere} on PATH; CXX names another one)"
    ] * 2
    assert built(project) == []


@needs_compiler
def test_a_wheel_for_every_python_has_only_what_knows_no_python(project: Path) -> None:
    limited = ("bdist_wheel", "--py-limited-api=cp310")
    build(project, *limited, RMCLA_WITH_CUDA="0")
    build(project, "bdist_wheel", RMCLA_WITH_CUDA="0")
    names = {}
    for path in (project / "dist").glob("*.whl"):
        with zipfile.ZipFile(path) as wheel:
            names[path.name.split("-", 2)[2]] = {Path(name).name for name in wheel.namelist() if ".so" in name}
    this = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert names == {
        f"cp310-abi3-{platform}.whl": {"_cpu_kernels.so"},
        f"{this}-{this}-{platform}.whl": {"_cpu_kernels.so", TAGGED},
    }
