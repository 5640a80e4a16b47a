"""Environments that nobody chose: a notebook's backend of matplotlib, no home, and folders that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rmcla_fast import pictures

ROOT = Path(__file__).parents[1]
NOTEBOOK = "module://a_package_that_is_not_installed.backend_inline"


def rmcla(folder: Path, *arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run a command in another process; a variable that is None is unset there."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-m", "rmcla_fast.cli", *arguments],
        cwd=folder,
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
    )


TRAIN = ("train", "--data", "digits", "--images-per-class", "20", "--epochs", "1", "--out", "run", "-q")


@pytest.mark.parametrize(
    "environment",
    [
        {"MPLBACKEND": NOTEBOOK},
        {"HOME": None, "MPLCONFIGDIR": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere"},
        {"TMPDIR": "/nowhere", "TERM": "dumb", "COLUMNS": "1"},
        {"TRITON_CACHE_DIR": "/proc/nowhere"},
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONWARNINGS": "error"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_a_run_and_its_picture_need_nothing_of_the_environment(
    tmp_path: Path, environment: dict[str, str | None]
) -> None:
    done = rmcla(tmp_path, *TRAIN, **environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "curves.png").exists()


def test_a_cache_that_torch_cannot_write_is_named_with_its_variable(tmp_path: Path) -> None:
    done = rmcla(tmp_path, *TRAIN, TORCHINDUCTOR_CACHE_DIR="/proc/nowhere")
    assert done.returncode == 2
    said = "rmcla: /proc/nowhere cannot be used: No such file or directory; set TORCHINDUCTOR_CACHE_DIR, which names it"
    assert done.stderr == f"{said}, to another one\n"


def test_pictures_of_an_evaluation_need_no_backend(tmp_path: Path) -> None:
    assert rmcla(tmp_path, *TRAIN).returncode == 0
    done = rmcla(tmp_path, "compare", "run", "--attacks", "clean,fgsm", "--out", "compared", MPLBACKEND=NOTEBOOK)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "compared").glob("*.png"))


def test_the_callers_backend_and_variable_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    loaded = pytest.importorskip("matplotlib.figure")

    def need(module: str, *_: str) -> ModuleType:
        asked.append(os.environ.get("MPLBACKEND"))
        if os.environ.get("MPLBACKEND") == NOTEBOOK:
            raise ValueError("Key backend is not a valid value")
        return ModuleType(module)

    monkeypatch.setattr(pictures, "need", need)
    monkeypatch.setenv("MPLBACKEND", "agg")
    pictures.import_matplotlib("a picture")
    monkeypatch.setenv("MPLBACKEND", NOTEBOOK)
    pictures.import_matplotlib("a picture")
    assert asked == ["agg", NOTEBOOK, None]
    assert os.environ["MPLBACKEND"] == NOTEBOOK
    assert sys.modules["matplotlib.figure"] is loaded


def test_a_run_does_not_choose_the_backend_of_the_process(tmp_path: Path) -> None:
    code = """
import matplotlib
matplotlib.use("svg")
from rmcla_fast.training import TrainConfig, train
train(TrainConfig(data="digits", images_per_class=20, epochs=1, out="run", device="cpu"))
print(matplotlib.get_backend())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().lower() == "svg", done.stderr
