"""Inject faults into training, packing, evaluating and reproducing, and count what the user sees and what is lost.

    python tests/stress/faults.py --kills 200 --disks 20 --flips 400 --malformed 1000 --pairs 12 --json FILE

The exit code is 1 if anything was lost, wrong in silence, or a traceback. Only Linux has what this needs.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported; a forked process needs its own threads

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import disks
import flips
import kills
import malformed
import report
import torch
import writers
from machine import describe_machine
from samples import Samples

PARTS = {
    "kills": kills.kill,
    "disks": disks.fill,
    "readonly": disks.forbid,
    "flips": flips.flip,
    "truncations": flips.truncate,
    "malformed": malformed.malform,
    "pairs": writers.write_together,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in PARTS:
        parser.add_argument(f"--{name}", type=int, default=0, help="number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    asked = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="rmcla-faults-"))
    root.chmod(0o755)
    began, found = time.perf_counter(), []
    samples = Samples(root)
    for name, part in PARTS.items():
        count = getattr(asked, name)
        if count:
            found += [one.as_json() for one in part(samples, count, asked.seed)]
            print(f"{name}: {count} cases after {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    wrong = [
        f"{one['fault']}: {kind}: {what}"
        for one in found
        for kind in ("lost", "silent", "tracebacks")
        for what in one[kind]
    ]
    document = {
        "command": " ".join(["python tests/stress/faults.py", *sys.argv[1:]]),
        "seconds": round(time.perf_counter() - began),
        "about": describe_machine(torch.device("cpu")),
        "faults": found,
    }
    print("\n".join(report.faults(document)))
    for line in wrong:
        print(line, file=sys.stderr)
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(document, indent=2) + "\n")
    shutil.rmtree(root, ignore_errors=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
