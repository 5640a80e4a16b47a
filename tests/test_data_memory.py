"""Hostile files cost little memory: a process that reads all of them hardly grows."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_cases import ROOT

pytest.importorskip("resource", reason="the peak of a process's memory is known on POSIX alone")
Image = pytest.importorskip("PIL.Image", reason="pip install 'rmcla-fast[train]'")
pytest.importorskip("scipy.io", reason="pip install 'rmcla-fast[train]'")

READ_ALL = """
import resource, sys
from pathlib import Path
import scipy.io
from PIL import Image
import numpy as np
from rmcla_fast.data.imagenet import middle, random_crop
from rmcla_fast.data.matlab import load_matlab
from rmcla_fast.data.pickles import load_pickle
from rmcla_fast.errors import UserError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)

before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    if path.suffix == ".png":
        middle(path)
        random_crop(path, np.random.default_rng(0))
    else:
        try:
            read = load_pickle(path) if path.suffix == ".pickle" else load_matlab(path, ("X",), "")
            print(path.name, type(read).__name__, peak() - before)
        except UserError as error:
            print(path.name, str(error), peak() - before)
print(peak() - before)
"""


def matlab(*variables: bytes) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"".join(variables)


def cells(depth: int) -> bytes:
    """Return a variable X of MATLAB, a cell of a cell of a cell and so on."""
    named, unnamed = struct.pack("<HH", 1, 1) + b"X\0\0\0", struct.pack("<II", 1, 0)
    kind = struct.pack("<IIII", 6, 8, 1, 0) + struct.pack("<IIii", 5, 8, 1, 1)
    sizes = range(48 * depth - 8, 0, -48)
    return b"".join(struct.pack("<II", 14, size) + kind + (unnamed if k else named) for k, size in enumerate(sizes))


def test_hostile_files_cost_little_memory(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    Image.fromarray(np.full((60000, 1, 3), 200, np.uint8)).save(folder / "narrow.png")
    Image.fromarray(np.full((1, 60000, 3), 200, np.uint8)).save(folder / "wide.png")
    long = b"X" + (10**6).to_bytes(4, "little") + b"a" * 10**6 + b"\x94"
    pickles = {
        "memo": b"}\x8c\x01aK\x01r\xff\xff\xff\x7fs.",
        "claim": b"}\x8c\x01aB\xff\xff\xff\xffa",
        "copies": b"}\x8c\x01a(" + long + b"c_codecs\nencode\nh\x00\x8c\x06latin1\x86R" * 1000 + b"ts.",
    }
    for name, text in pickles.items():
        (folder / f"{name}.pickle").write_bytes(b"\x80\x04" + text)
    (folder / "cells.mat").write_bytes(matlab(cells(200_000)))
    (folder / "claim.mat").write_bytes(matlab(struct.pack("<II", 14, 2**32 - 1)))
    command = [sys.executable, "-c", READ_ALL, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 150, done.stdout
