"""The compiled extension: whether it loads, which kernels it has, and the sentences if it cannot be used."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import available_backends

from rmcla_fast.ops import dispatch, extension

EXTENSION_BUILT = importlib.util.find_spec("rmcla_fast._C") is not None
INSTALL = "pip install --no-build-isolation . (from a checkout, with torch installed)"
VERSION = torch.__version__.partition("+")[0]


def test_the_built_extension_loads() -> None:
    if not EXTENSION_BUILT:
        pytest.skip(f"backend 'cpu': {extension.missing_reason}")
    assert extension.build_config is not None, extension.missing_reason
    assert extension.has_kernels("cpu")
    assert "cpu" in available_backends()
    assert dispatch.resolve("cpu", "cpu") == "cpu"
    operators = ("joint_gradient", "redistribute_labels", "soft_cross_entropy")
    for name in (*operators, "perturb_step", "random_start", "augment"):
        registered = torch._C._dispatch_dump(f"rmcla_fast::{name}")
        assert "\nCPU:" in registered, f"{name} has no CPU kernel:\n{registered}"


class _Extension(types.ModuleType):
    """A replacement of the compiled extension that does not load, or was built for a given torch."""

    def __init__(self, built_for: str | None) -> None:
        super().__init__("rmcla_fast._C")
        self.built_for = built_for
        self.__spec__ = importlib.machinery.ModuleSpec("rmcla_fast._C", None)

    def build_config(self) -> dict[str, str]:
        if self.built_for is None:
            raise ImportError("undefined symbol: _ZN3c10\nthe second line of the loader's message")
        return {"torch": self.built_for, "compiler": "", "cuda": ""}


@pytest.mark.parametrize(
    ("built_for", "reason"),
    [
        (None, "the compiled extension does not load (undefined symbol: _ZN3c10)"),
        ("1.0.0", f"the compiled extension was built for torch 1.0.0, and this is torch {torch.__version__}"),
        (
            f"1.{VERSION}",
            f"the compiled extension was built for torch 1.{VERSION}, and this is torch {torch.__version__}",
        ),
    ],
)
def test_an_extension_that_cannot_be_used_says_why(
    monkeypatch: pytest.MonkeyPatch, built_for: str | None, reason: str
) -> None:
    monkeypatch.setitem(sys.modules, "rmcla_fast._C", _Extension(built_for))
    assert extension._load() == (None, f"{reason}; rebuild it with: {INSTALL}")


@pytest.mark.parametrize("built_for", [VERSION, f"{VERSION}+another"])
def test_an_extension_for_the_same_version_of_torch_loads(monkeypatch: pytest.MonkeyPatch, built_for: str) -> None:
    monkeypatch.setitem(sys.modules, "rmcla_fast._C", _Extension(built_for))
    monkeypatch.setattr(torch, "__version__", f"{VERSION}+of.this.machine")
    assert extension._load() == ({"torch": built_for, "compiler": "", "cuda": ""}, "")


def test_an_extension_that_was_not_built_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extension, "PACKAGE", tmp_path)
    assert extension._load() == (None, f"the compiled extension was not built in {tmp_path}; build it with: {INSTALL}")


def test_the_extension_has_the_kernels_that_it_was_built_with(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "the compiled extension has no cuda kernels; rebuild it with nvcc and a CUDA torch: " + INSTALL
    monkeypatch.setattr(extension, "build_config", {"cuda": ""})
    assert [extension.has_kernels(device) for device in ("cpu", "cuda", "meta")] == [True, False, False]
    assert extension.why_missing("cuda") == dispatch.why_not("cuda", "cuda") == missing
    monkeypatch.setattr(extension, "build_config", {"cuda": "12.8"})
    assert [extension.has_kernels(device) for device in ("cpu", "cuda", "meta")] == [True, True, False]
    assert dispatch.why_not("cuda", "cuda") == ""
    monkeypatch.setattr(extension, "build_config", None)
    monkeypatch.setattr(extension, "missing_reason", "it was not built")
    assert [extension.has_kernels(device) for device in ("cpu", "cuda", "meta")] == [False, False, False]
    assert extension.why_missing("cpu") == dispatch.why_not("cpu", "cpu") == "it was not built"


def test_another_checkout_does_not_lend_its_extension(tmp_path: Path) -> None:
    """The editable install of one checkout offers its extension to the import of another one, whose code may differ."""
    package = tmp_path / "rmcla_fast"
    shutil.copytree(Path(extension.__file__).parents[1], package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = "import torch, rmcla_fast as r; r.soft_cross_entropy(torch.rand(4, 9), torch.arange(4))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"the compiled extension was not built in {package}" in done.stderr


@pytest.mark.skipif(not EXTENSION_BUILT, reason="needs the compiled extension")
def test_an_extension_of_other_sources_is_said_in_one_sentence(tmp_path: Path) -> None:
    """As after an update of a checkout whose extension was not built again: an operator has another argument now."""
    package = tmp_path / "rmcla_fast"
    shutil.copytree(extension.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    operator = package / "ops" / "perturb_step.py"
    changed = operator.read_text().replace("float lower, float upper", "float lower, float upper, float later", 1)
    operator.write_text(changed)
    done = subprocess.run([sys.executable, "-c", "import rmcla_fast"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: the compiled extension in {package} was built from other sources; rebuild it")
