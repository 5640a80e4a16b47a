"""The runs and caches that faults are injected into. They are small, so that a command takes a fraction of a second."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from children import Ended, rmcla
from PIL import Image
from sklearn.datasets import load_digits

OPTIONS = (
    *("--model", "small-cnn", "--recipe", "r-mc-la", "--epochs", "2", "--batch-size", "16", "--monitor-images", "8"),
    *("--ema", "0.9", "--epsilon-warmup", "1", "--checkpoint-every", "3", "--log-every", "2", "--threads", "1"),
    *("--device", "cpu", "--quiet"),
)
EVALUATION = ("--attacks", "clean,fgsm,ce20,apgd", "--images", "40", "--device", "cpu")


def image_folder(root: Path) -> Path:
    """Write handwritten digits as a folder of images with four classes, 64 for training and 16 for test in each."""
    digits = load_digits()
    for label in range(4):
        rows = np.flatnonzero(digits.target == label)[:80]
        for place, row in enumerate(rows):
            path = root / ("train" if place < 64 else "test") / "abcd"[label] / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[row] * 255 / 16).astype(np.uint8)).save(path)
    return root


def train(out: Path, data: Path, *more: object) -> tuple[object, ...]:
    """Return the command that trains the small run, or resumes it."""
    return ("train", "--data", "folder", "--data-dir", data, *OPTIONS, "--resume", "--out", out, *more)


def succeeded(ended: Ended) -> Ended:
    """Return how a child ended; exit if it failed, since the faults that follow would show nothing."""
    if ended.code:
        raise SystemExit(f"a command without a fault failed with exit code {ended.code}: {ended.said}")
    return ended


class Samples:
    """A folder with an image folder, a finished run on it, and the same run stopped after its first checkpoint."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = image_folder(root / "images")
        self.finished, self.stopped = root / "finished", root / "stopped"
        succeeded(rmcla(*train(self.finished, self.data)))
        succeeded(rmcla("evaluate", self.finished, *EVALUATION))
        shutil.copytree(self.finished, self.stopped)
        for name in ("curves.png", "best.pt", "evaluation.json", "evaluation.npz", "evaluation.png"):
            (self.stopped / name).unlink()

    def copy(self, run: Path) -> Path:
        """Return a new copy of a run, which replaces the last one."""
        target = self.root / "copy"
        shutil.rmtree(target, ignore_errors=True)
        return shutil.copytree(run, target)
