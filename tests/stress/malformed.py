"""Malformed files: other types, numbers and encodings, missing entries and deep nesting, with valid checksums too."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from children import Ended, rmcla
from samples import Samples
from tally import Tally

from rmcla_fast import sealed
from rmcla_fast.training import checkpoint
from rmcla_fast.training.metrics import as_line

WRONG: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 0,
    lambda: 3,
    lambda: 10**30,
    lambda: 10**400,
    lambda: 0.5,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: -1e308,
    lambda: "",
    lambda: "x",
    lambda: "[red]$\n\udc80",
    lambda: "y" * 5000,
    lambda: [],
    lambda: [1],
    lambda: {},
    lambda: {"a": 1},
    lambda: nested(200),
)
TENSORS: tuple[Callable[[torch.Tensor], Any], ...] = (
    lambda tensor: tensor[:0],
    lambda tensor: tensor.double().flatten()[:1],
    lambda tensor: torch.zeros(3, 1, 4),
    lambda tensor: tensor.to(torch.int64),
    lambda tensor: torch.sparse_coo_tensor(size=(2, 2)),
    lambda tensor: torch.empty(tensor.shape, device="meta"),
    lambda tensor: torch.zeros(2, dtype=torch.complex64),
)
BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    lambda whole, draw: b"",
    lambda whole, draw: b"\n\n \n",
    lambda whole, draw: whole[: draw.randrange(len(whole))],
    lambda whole, draw: whole[draw.randrange(len(whole)) :],
    lambda whole, draw: whole + whole,
    lambda whole, draw: b"\0" * len(whole),
    lambda whole, draw: bytes(draw.randrange(256) for _ in range(300)),
    lambda whole, draw: whole.decode("latin1").encode("utf-16"),
    lambda whole, draw: b"\xef\xbb\xbf" + whole,
    lambda whole, draw: whole.replace(b"e", b"\xff"),
    lambda whole, draw: b"[" * 100_000,
    lambda whole, draw: b'{"a":' * 100_000,
    lambda whole, draw: b"[1, 2]\n",
    lambda whole, draw: b"5\n",
    lambda whole, draw: b'"text"\n',
    lambda whole, draw: b"null\n",
    lambda whole, draw: b"1" * 10_000,
)


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


def changed(document: Any, draw: random.Random) -> Any:
    """Return a copy with one or two entries, anywhere in it, replaced, removed or added."""
    document = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 2))):
        containers = [part for part in parts(document) if part]
        inside = draw.choice(containers)
        key = draw.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
        what = draw.random()
        if what < 0.15:
            del inside[key]
        elif what < 0.2 and isinstance(inside, dict):
            inside["unknown"] = draw.choice(WRONG)()
        elif isinstance(inside[key], torch.Tensor) and what < 0.7:
            inside[key] = draw.choice(TENSORS)(inside[key])
        else:
            inside[key] = draw.choice(WRONG)()
    return document


def parts(document: Any) -> Iterator[Any]:
    """Yield every dictionary and list in a document."""
    if isinstance(document, (dict, list)):
        yield document
        for part in document.values() if isinstance(document, dict) else document:
            yield from parts(part)


def malform(samples: Samples, count: int, seed: int) -> list[Tally]:
    """Read `count` malformed files in all, a fifth of them of each kind, by the commands that read them."""
    draw = random.Random(seed)
    each = -(-count // 5)
    return [
        _each(samples, each, draw, "checkpoint.pt", _checkpoint, evaluate),
        _each(samples, each, draw, "checkpoint.pt of a run that goes on", _stopped_checkpoint, resume),
        _each(samples, each, draw, "config.json", _json("config.json"), resume),
        _each(samples, each, draw, "evaluation.json", _json("evaluation.json"), evaluate),
        _each(samples, each, draw, "metrics.jsonl", _metrics, resume),
    ]


def resume(run: Path) -> Ended:
    return rmcla("train", "--resume", "--device", "cpu", "--quiet", "--out", run, signals=((8, signal.SIGKILL),))


def evaluate(run: Path) -> Ended:
    return rmcla("evaluate", run, "--attacks", "clean,fgsm", "--images", "40", "--device", "cpu")


def _each(
    samples: Samples,
    count: int,
    draw: random.Random,
    name: str,
    write: Callable[[Samples, random.Random], Path],
    command: Callable[[Path], Ended],
) -> Tally:
    tally = Tally(f"a malformed {name}")
    for _ in range(count):
        state = draw.getstate()
        run = write(samples, draw)
        ended = command(run)
        if ended.crashed:
            tally.seen["traceback"] += 1
            tally.tracebacks.append(f"state {hash(state)}: {ended.said[-500:]}")
        elif ended.code == 2 and ended.sentence:
            tally.seen["one sentence, exit code 2"] += 1
        elif ended.code == 0 or ended.code == -signal.SIGKILL:  # a run with many epochs is stopped
            tally.seen["a warning" if "warning: " in ended.said else "accepted"] += 1
        elif ended.code == 1 and ended.sentence:
            tally.seen["one sentence, exit code 1"] += 1
        else:
            tally.seen[f"exit code {ended.code}"] += 1
            tally.silent.append(f"exit code {ended.code}: {ended.said[-500:]}")
    return tally


def _checkpoint(samples: Samples, draw: random.Random) -> Path:
    run = samples.copy(samples.finished)
    _change_checkpoint(run, draw)
    return run


def _stopped_checkpoint(samples: Samples, draw: random.Random) -> Path:
    run = samples.copy(samples.stopped)
    _change_checkpoint(run, draw, epoch=0, step=0)
    return run


def _change_checkpoint(run: Path, draw: random.Random, **entries: int) -> None:
    path = run / checkpoint.LAST
    if draw.random() < 0.2:
        path.write_bytes(draw.choice(BYTES)(path.read_bytes(), draw))
        return
    state = torch.load(path, weights_only=True) | entries
    if entries:
        state["rng"]["step"]["step"] = 0
    checkpoint.save(path, changed(state, draw))


def _json(name: str) -> Callable[[Samples, random.Random], Path]:
    def write(samples: Samples, draw: random.Random) -> Path:
        run = samples.copy(samples.finished)
        path = run / name
        if name == "config.json":
            for other in (checkpoint.LAST, checkpoint.BEST):
                (run / other).unlink()
        if draw.random() < 0.3:
            path.write_bytes(draw.choice(BYTES)(path.read_bytes(), draw))
            return run
        document = changed(sealed.load(path), draw)
        if draw.random() < 0.8:
            path.write_bytes(sealed.dumps(document))
        else:
            path.write_text(json.dumps(document))
        return run

    return write


def _metrics(samples: Samples, draw: random.Random) -> Path:
    run = samples.copy(samples.finished)
    path = run / "metrics.jsonl"
    os.unlink(run / "curves.png")  # so that the lines are read
    lines = path.read_bytes().splitlines(keepends=True)
    place = draw.randrange(len(lines))
    if draw.random() < 0.4:
        lines[place] = draw.choice(BYTES)(lines[place], draw)
    else:
        row = json.loads(lines[place])
        checksum = row.pop("crc32")
        row = changed(row, draw)
        if draw.random() < 0.8:
            lines[place] = as_line(row).encode()
        else:
            lines[place] = json.dumps({**row, "crc32": checksum}).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    return run
