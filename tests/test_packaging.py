"""The source distribution has all files that the build and the tests need."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


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
    assert not [name for name in packed if name.endswith((".so", ".pyc"))]
