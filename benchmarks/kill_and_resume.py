"""Kill a training run at random times, resume it, and check that it ends with the same bits as an uninterrupted run.

    python benchmarks/kill_and_resume.py --kills 50

Each process is killed (SIGKILL) at a random time within the duration of a whole run, so that the kills hit start-up,
updates, checkpoints and the end. After every kill, each checkpoint in the folder must be readable. A run that finishes
is compared with the uninterrupted run, and another one begins.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rmcla_fast.training import checkpoint
from rmcla_fast.training.run_folder import read_metrics

OPTIONS = [
    "--data",
    "digits",
    "--recipe",
    "r-mc-la",
    "--epochs",
    "30",
    "--ema",
    "0.9",
    "--epsilon-warmup",
    "1",
    "--monitor-every",
    "10",
    "--checkpoint-every",
    "5",
    "--log-every",
    "3",
    "--threads",
    "1",
    "--device",
    "cpu",
    "--quiet",
]
MEASURED_TIMES = ("seconds", "images_per_second")


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "rmcla_fast.cli", "train", *OPTIONS, "--resume", "--out", str(out)]


def run_and_kill(out: Path, after: float) -> bool:
    """Start or resume the run and kill it `after` seconds; return False if it had finished by then."""
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, said = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    if process.returncode:
        raise SystemExit(f"a resumed run failed with exit code {process.returncode}: {said.decode()}")
    return False


def differences(one: Any, other: Any, at: str = "checkpoint") -> list[str]:
    """Return the places where two checkpoints differ in any bit, except for measured times."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [at]
    if isinstance(one, dict):
        keys = (one.keys() | other.keys()) - {"out", "resume", *MEASURED_TIMES}
        return [
            found for key in sorted(keys, key=str) for found in differences(one.get(key), other.get(key), f"{at}.{key}")
        ]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [at]
        return [
            found
            for place, pair in enumerate(zip(one, other, strict=True))
            for found in differences(*pair, f"{at}[{place}]")
        ]
    return [] if one == other else [at]


def metrics(out: Path) -> list[dict[str, Any]]:
    rows = read_metrics(out / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in MEASURED_TIMES} for row in rows]


def compare(out: Path, whole: Path, checkpoints: Sequence[str] = (checkpoint.LAST, checkpoint.BEST)) -> list[str]:
    """Return the places where a run differs from the one that it should repeat: checkpoints and metrics.jsonl."""
    found = []
    for name in checkpoints:
        found += differences(checkpoint.read(whole / name), checkpoint.read(out / name), name)
    if metrics(out) != metrics(whole):
        found.append("metrics.jsonl")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random times")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="rmcla-kill-"))
    began = time.perf_counter()
    subprocess.run(command(folder / "whole"), check=True, stdout=subprocess.DEVNULL)
    duration = time.perf_counter() - began
    kills = runs = early = 0
    steps: list[int] = []
    while kills < arguments.kills or (folder / "run").exists():
        wanted = kills < arguments.kills
        if run_and_kill(folder / "run", draw.uniform(0, duration) if wanted else 3600):
            kills += 1
            last = folder / "run" / checkpoint.LAST
            for path in (last, folder / "run" / checkpoint.BEST):
                if path.exists():
                    checkpoint.read(path)
            steps.append(checkpoint.read(last)["step"] if last.exists() else 0)
            early += not last.exists()
            print(f"kill {kills} of {arguments.kills} at step {steps[-1]}", file=sys.stderr)
            continue
        found = compare(folder / "run", folder / "whole")
        if found:
            raise SystemExit(
                f"the resumed run differs in {', '.join(found[:5])} from the uninterrupted one; "
                f"killed at steps {steps}; see {folder}"
            )
        runs += 1
        shutil.rmtree(folder / "run")
    shutil.rmtree(folder)
    result = {
        "kills": kills,
        "before_first_checkpoint": early,
        "distinct_steps": len(set(steps)),
        "finished_runs": runs,
        "identical": runs,
        "whole_run_seconds": round(duration, 1),
        "torch": str(torch.__version__),
    }
    print(json.dumps(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
