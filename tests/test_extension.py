"""The files of compiled kernels: whether they load, each for itself, and the sentence if one cannot be used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import available_backends

from rmcla_fast.cli import info
from rmcla_fast.ops import dispatch, extension

INSTALL = extension.INSTALL
LISTS = """
const char* rmcla_operators(void) { return "first(Tensor) -> Tensor\\nsecond.out(int, Tensor) -> ()\\n"; }
void rmcla_register(const char* name) {}
"""
LISTED = {"first": "first(Tensor) -> Tensor", "second.out": "second.out(int, Tensor) -> ()"}
needs_kernels = pytest.mark.skipif(not extension.has_kernels("cpu"), reason=extension.why_missing("cpu"))
linux = pytest.mark.skipif(sys.platform != "linux", reason="the files of other systems are not ELF")


def listed(loaded: tuple[extension.Kernels | None, str]) -> tuple[dict[str, str] | None, str]:
    """Return the types of the kernels in place of the kernels."""
    kernels, reason = loaded
    return kernels and kernels.types, reason


@needs_kernels
def test_the_built_kernels_load() -> None:
    assert "cpu" in available_backends()
    assert dispatch.resolve("cpu", "cpu") == "cpu"
    operators = ("joint_gradient", "redistribute_labels", "soft_cross_entropy")
    for name in (*operators, "perturb_step", "random_start", "augment"):
        registered = torch._C._dispatch_dump(f"rmcla_fast::{name}")
        assert "\nCPU:" in registered, f"{name} has no CPU kernel:\n{registered}"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that compiles C into the file of a device's kernels, in a folder that is the package's here."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux")
    package = tmp_path / "rmcla_fast"
    package.mkdir()
    monkeypatch.setattr(extension, "PACKAGE", package)

    def build(source: str, device_type: str = "cpu", *arguments: object) -> Path:
        path = extension.path_of(device_type)
        command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-x", "none", "-o", path, *arguments]
        subprocess.run(command, input=source, text=True, check=True)
        return path

    return build


def test_a_file_lists_its_operators_and_their_types(compiled: Callable[..., Path]) -> None:
    compiled(LISTS)
    assert listed(extension._load("cpu")) == (LISTED, "")


def test_each_file_is_loaded_for_itself(compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    compiled(LISTS)
    needs = "rebuild it with nvcc and a CUDA torch"
    assert extension._load("cuda") == (None, f"the compiled extension has no cuda kernels; {needs}: {INSTALL}")
    compiled(LISTS, "cuda").write_text("half a file")
    loaded, reason = extension._load("cuda")
    assert loaded is None
    assert "_cuda_kernels.so: file too short" in reason
    assert listed(extension._load("cpu")) == (LISTED, "")
    compiled(LISTS, "cuda")
    extension.path_of("cpu").unlink()
    assert listed(extension._load("cuda")) == (LISTED, "")


def test_files_that_were_not_built_say_how_to_build_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extension, "PACKAGE", tmp_path)
    reason = f"the compiled extension was not built in {tmp_path}; build it with: {INSTALL}"
    assert extension._load("cpu") == extension._load("cuda") == (None, reason)


@pytest.mark.parametrize("version", ["2.9.1", "2.9.1+cu128", "2.10.0a0+git1", "1.13.1"])
def test_a_torch_below_the_floor_loads_nothing(
    compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    compiled("__attribute__((constructor)) void start(void) { __builtin_trap(); }" + LISTS)  # it must not run
    monkeypatch.setattr(torch, "__version__", version)
    reason = f"the compiled extension needs torch 2.10 or later, and this is torch {version}"
    assert extension._load("cpu") == (None, reason)


@pytest.mark.parametrize("version", ["2.10.0", "2.10.0+cpu", "2.14.1+cu130", "3.0.0"])
def test_every_torch_from_the_floor_on_loads_them(
    compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    compiled(LISTS)
    monkeypatch.setattr(torch, "__version__", version)
    assert listed(extension._load("cpu")) == (LISTED, "")


def test_a_torch_without_cuda_loads_no_cuda_kernels(
    compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(LISTS, "cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    reason = f"the CUDA kernels need a CUDA torch, and torch {torch.__version__} was built without CUDA"
    assert extension._load("cuda") == (None, reason)


@pytest.mark.parametrize(
    ("device_type", "source", "reason"),
    [
        ("cpu", "int nothing;", "{path}: undefined symbol: rmcla_operators"),
        ("cpu", "extern int of_torch; int* p = &of_torch;" + LISTS, "{path}: undefined symbol: of_torch"),
        (
            "cuda",
            "int cudaRuntimeGetVersion(int* version) { *version = 12080; return 0; }" + LISTS,
            "it was built with CUDA 12, and torch with CUDA 13.0",
        ),
    ],
)
def test_a_file_that_cannot_be_used_says_why(
    compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, device_type: str, source: str, reason: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    said = reason.format(path=compiled(source, device_type))
    assert extension._load(device_type) == (
        None,
        f"the compiled extension does not load ({said}); rebuild it with: {INSTALL}",
    )
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    assert (listed(extension._load(device_type))[0] == LISTED) == (device_type == "cuda")


def test_a_runtime_of_another_cuda_that_is_not_there_is_named(
    compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    runtime = compiled("int cuda_99;").rename(tmp_path / "libcudart.so.99")
    compiled("extern int cuda_99; int* p = &cuda_99;" + LISTS, "cuda", runtime)
    runtime.unlink()
    loaded, reason = extension._load("cuda")
    assert loaded is None
    assert f"({runtime}: cannot open shared object file: No such file or directory)" in reason


HALF_COPIED = """
import os, sys
from pathlib import Path
from rmcla_fast.ops import extension
whole, extension.PACKAGE = extension.path_of(sys.argv[1]).read_bytes(), Path(sys.argv[2])
path = extension.path_of(sys.argv[1])
size = len(whole)
lengths = sorted({0, 1, 63, 64, 65, 4096, size - 4096, size - 64, size - 1, *range(0, size, size // 24)})
for length in lengths:
    for content in (whole[:length], whole[:length] + bytes(size - length), b"text\\n" * (length // 5)):
        if len(content) == size and size - length < 64:
            continue  # the end of the last section's header, which no loader reads
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        child = os.fork()
        if child == 0:
            loaded, reason = extension._load(sys.argv[1])
            sane = loaded is None and reason.startswith("the compiled extension does not load") and "\\n" not in reason
            os._exit(0 if sane else 100)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(length, len(content), code)
"""


@linux
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_a_half_copied_file_never_ends_the_process(tmp_path: Path, device_type: str) -> None:
    """The real file is cut short at some 30 lengths, or zero from there on. Unchecked, many of them end in a signal."""
    if not extension.has_kernels(device_type):
        pytest.skip(extension.why_missing(device_type))
    command = [sys.executable, "-c", HALF_COPIED, device_type, tmp_path]
    environment = os.environ | {"PYTHONPATH": str(extension.PACKAGE.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len({length for length, _, _ in lines}) > 25
    assert {code for _, _, code in lines} == {"0"}, done.stdout


def test_the_kernels_of_a_device_are_there_if_its_file_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = extension.Kernels(LISTED, lambda name: None)
    monkeypatch.setattr(extension, "_loaded", {"cpu": (kernels, ""), "cuda": (None, "it was not built")})
    monkeypatch.setattr(extension, "build_config", None)
    monkeypatch.setattr(extension, "why_no_report", "there is no report")
    assert [extension.has_kernels(device) for device in ("cpu", "cuda", "meta")] == [True, False, False]
    assert extension.why_missing("cuda") == dispatch.why_not("cuda", "cuda") == "it was not built"
    assert dispatch.why_not("cpu", "cpu") == ""
    lines = info.report().splitlines()
    assert "build: there is no report" in lines
    assert f"compiled cpu kernels: {extension.path_of('cpu')}" in lines
    assert "compiled cuda kernels: none, since it was not built" in lines


def test_a_module_that_does_not_load_costs_only_the_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extension, "PACKAGE", tmp_path)
    assert extension._report() == (
        None,
        "no report, since rmcla_fast._C was not built for this Python (a wheel for every Python leaves it out)",
    )
    module = tmp_path / "_C.abi3.so" if sys.platform != "win32" else tmp_path / "_C.pyd"
    module.write_text("half a file")
    monkeypatch.setattr(extension.importlib, "import_module", lambda name: __import__("a_module_that_is_not_there"))
    assert extension._report() == (
        None,
        "no report, since rmcla_fast._C does not load (No module named 'a_module_that_is_not_there')",
    )


@pytest.mark.parametrize(
    ("schema", "line"),
    [
        ("(Tensor a, int? k, str s) -> Tensor", "probe(Tensor, Optional[int], str) -> Tensor"),
        ("(Tensor a, float[] f) -> (Tensor, Tensor?)", "probe(Tensor, List[float]) -> (Tensor, Optional[Tensor])"),
        ("(bool b, *, Tensor(a!) out) -> ()", "probe(bool, Tensor) -> ()"),
    ],
)
def test_kernels_of_other_types_are_given_up(monkeypatch: pytest.MonkeyPatch, schema: str, line: str) -> None:
    """PyTorch takes them as they are, and a float would be read as an integer."""
    for types, agrees in [
        ({"probe": line}, True),
        ({"probe": line.replace("(", "(List[int], ", 1)}, False),
        ({"probe": line.replace("Tensor", "complex", 1)}, False),
        ({"another": line}, False),
    ]:
        registered: list[bytes] = []
        kernels = extension.Kernels(types, registered.append)
        loaded = {"cpu": (kernels, ""), "cuda": (None, "it was not built")}
        monkeypatch.setattr(extension, "_loaded", loaded)
        extension.connect("probe", schema)
        assert extension.has_kernels("cpu") == agrees
        assert registered == ([b"probe"] if agrees else [])
        if not agrees:
            there = types.get("probe", "probe is not there")
            assert extension.why_missing("cpu") == (
                f"the compiled extension in {extension.PACKAGE} was built from other sources (its {there}, "
                f"here {line}); rebuild it with: {INSTALL}"
            )


def test_another_checkout_does_not_lend_its_kernels(tmp_path: Path) -> None:
    """The editable install of one checkout offers its kernels to the import of another one, whose code may differ."""
    package = tmp_path / "rmcla_fast"
    shutil.copytree(extension.PACKAGE, package, ignore=shutil.ignore_patterns("*.so", "*.dll", "*.pyd", "__pycache__"))
    code = "import torch, rmcla_fast as r; r.soft_cross_entropy(torch.rand(4, 9), torch.arange(4))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"the compiled extension was not built in {package}" in done.stderr


@needs_kernels
def test_kernels_of_other_sources_are_said_in_one_sentence(tmp_path: Path) -> None:
    """As after an update of a checkout whose kernels were not built again: an operator has another argument now."""
    package = tmp_path / "rmcla_fast"
    shutil.copytree(extension.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    operator = package / "ops" / "perturb_step.py"
    changed = operator.read_text().replace("float lower, float upper", "float lower, float upper, float later", 1)
    operator.write_text(changed)
    code = "import torch, rmcla_fast as r; print(r.soft_cross_entropy(torch.zeros(4, 9), torch.arange(4)).item())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(2.1972246)
    assert (
        done.stderr.count(f"the compiled extension in {package} was built from other sources (its perturb_step(") == 1
    )


@linux
def test_a_report_that_links_torch_is_of_an_older_version_and_is_not_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It would register kernels of its own in place of those that were loaded."""
    monkeypatch.setattr(extension, "PACKAGE", tmp_path)
    (tmp_path / "_C.abi3.so").write_bytes(b"a module that needs libtorch_cpu.so")
    assert extension._report() == (
        None,
        "no report, since rmcla_fast._C does not load (it is of an older version, whose kernels would replace these)",
    )


def test_a_second_copy_of_the_package_changes_no_kernel_of_the_first(tmp_path: Path) -> None:
    shutil.copytree(extension.PACKAGE, tmp_path / "rmcla_fast", ignore=shutil.ignore_patterns("__pycache__"))
    code = f"""
import sys, torch, rmcla_fast
first = torch._C._dispatch_dump("rmcla_fast::perturb_step")
for name in [name for name in sys.modules if name.startswith("rmcla_fast")]:
    del sys.modules[name]
sys.path.insert(0, {str(tmp_path)!r})
try:
    import rmcla_fast
except RuntimeError as error:
    assert "Only a single TORCH_LIBRARY" in str(error), error
else:
    raise SystemExit("a second copy was imported")
assert torch._C._dispatch_dump("rmcla_fast::perturb_step") == first
"""
    environment = os.environ | {"PYTHONPATH": str(extension.PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
