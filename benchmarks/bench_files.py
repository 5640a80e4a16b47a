"""Time what a checksum adds: saving and reading a checkpoint, and opening a packed cache, against the same without it.

    python benchmarks/bench_files.py --json benchmarks/results/files.json

Both ways are timed alternately, and the medians are compared. The files are in the system's cache of pages, so reading
them costs no disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine

from rmcla_fast import models, sealed
from rmcla_fast.data import cache
from rmcla_fast.files import replacing
from rmcla_fast.training import TrainConfig, checkpoint
from rmcla_fast.training.record import Facts, RunRecord
from rmcla_fast.training.resolve import resolve

NETWORKS = ("small-cnn", "preact-resnet18", "wrn-28-10")
CACHES = {"digits": (1437, 1, 8, 8), "cifar10": (50_000, 3, 32, 32), "imagenet, 5,000 images": (5000, 3, 224, 224)}


def state_of(name: str) -> dict[str, Any]:
    """Return the checkpoint of a network with momentum and an average of the weights."""
    network = models.create(name, 10, 3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    options = resolve(TrainConfig(data="cifar10", model=name))
    facts = Facts(num_classes=10, channels=3, image_size=(32, 32), train_images=50_000)
    progress = {"name": "piecewise", "best": 1.0, "epoch_loss": 0.0, "recent": [], "warned": False}
    return {
        "model": network.state_dict(),
        "ema": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": {**progress, "total_steps": 10, "epoch_count": 0, "seconds": 0.5},
        "rng": {"step": {"step": 2}, "torch": torch.get_rng_state(), "cuda": [], "others": []},
        "epoch": 1,
        "step": 2,
        "config": RunRecord(options, facts).as_json(),
    }


def save_plain(path: Path, state: dict[str, Any]) -> None:
    with replacing(path) as file:
        torch.save(state, file)


def open_plain(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    with path.open("rb") as file:
        return np.memmap(file, np.uint8, "c", 0, shape)


def medians(pair: tuple[Callable[[], object], Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median milliseconds without and with the checksum."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + 1):
        for way, run in enumerate(pair):
            began = time.perf_counter()
            run()
            if round_:
                seconds[way].append(time.perf_counter() - began)
    without, with_checksum = (1e3 * statistics.median(one) for one in seconds)
    return {"without_ms": round(without, 3), "with_checksum_ms": round(with_checksum, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        for name in NETWORKS:
            state = state_of(name)
            save = partial(save_plain, path, state), partial(checkpoint.save, path, state)
            rows.append({"what": f"save a checkpoint of {name}", **medians(save, asked.rounds)})
            read = partial(torch.load, path, map_location="cpu", weights_only=True), partial(checkpoint.read, path)
            assert checkpoint.read(path).step == 2
            rows.append({"what": f"read it, {os.path.getsize(path) / 1e6:.1f} MB", **medians(read, asked.rounds)})
        for name, shape in CACHES.items():
            path = Path(folder) / "images"
            with replacing(path) as file:
                file.write(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8).tobytes())
                sealed.seal(file)
            opened = partial(open_plain, path, shape), partial(cache.open_cached, path, shape)
            megabytes = os.path.getsize(path) / 1e6
            rows.append({"what": f"open a packed cache, {name}, {megabytes:.1f} MB", **medians(opened, asked.rounds)})
    for row in rows:
        print(f"| {row['what']} | {row['without_ms']:.2f} | {row['with_checksum_ms']:.2f} |")
    if asked.json:
        document = {"context": describe_machine(torch.device("cpu")), "rounds": asked.rounds, "rows": rows}
        asked.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
