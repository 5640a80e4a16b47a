"""Compare `apgd` and `autoattack` with pyautoattack, part by part: the images that are left, and the seconds.

    python benchmarks/bench_autoattack.py RUN... [--images 1000] [--threads 2] [--epsilon 8/255] [--json FILE]
    python benchmarks/bench_autoattack.py --show FILE...      # the tables of docs/evaluation.md from earlier reports

Each rival attacks the same images of the same model with the same epsilon, in a process of its own, one after another.
If no epsilon is given, it is the one that the model was trained with. pyautoattack runs as its documentation shows it.
`--masked` adds the first model with its logits multiplied by 1,000, as a model that hides the gradient of its cross
entropy.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import re
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from bench_train_step import forward_flops
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from rmcla_fast.attacks import evaluate
from rmcla_fast.cli.options import bound
from rmcla_fast.evaluation.run import open_run

MASKED = ", logits x 1000"
RIVALS = ("rmcla_fast", "pyautoattack")
PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")


class Scaled(nn.Module):
    """The model with its logits multiplied, so that the softmax saturates."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.model(images)


class Counted(nn.Module):
    """The model, counting its passes: a forward pass of an image is 1, and a backward pass to the image another 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.passes = model, 0

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        self.passes += len(images)
        if logits.requires_grad:
            logits.register_hook(self._backward)
        return logits

    def _backward(self, gradient: Tensor) -> None:
        self.passes += len(gradient)


def opened(case: str, images: int, threads: int, epsilon: str | None) -> tuple[nn.Module, Tensor, Tensor, float]:
    """Return the model, its images, their labels and epsilon."""
    run = open_run(case.removesuffix(MASKED), images=images, device="cpu")
    torch.set_num_threads(threads)
    model = Scaled(run.model, 1000.0).eval() if case.endswith(MASKED) else run.model.eval()
    return model, run.images, run.labels, bound(epsilon, run)


def ours(*arguments: Any) -> dict[str, Any]:
    """Attack with `autoattack`, whose first two parts are `apgd`."""
    model, pixels, labels, epsilon = opened(*arguments)
    counted = Counted(model)
    passes: dict[str, int] = {}  # from the beginning to the end of an attack

    def count(attack: str, fraction: float) -> None:
        passes[attack] = counted.passes

    started, busy = time.perf_counter(), time.process_time()
    found = evaluate(counted, pixels, labels, attacks="clean,apgd,autoattack", epsilon=epsilon, progress=count)
    wall, processor = time.perf_counter() - started, time.process_time() - busy
    left = {"clean": round(found["clean"].accuracy / 100 * len(labels))}
    seconds = {}
    for part in found["autoattack"].parts:
        left[part.part], seconds[part.part] = part.attacked - part.fooled, part.seconds
    right = found["autoattack"].right
    assert right is not None
    return {
        "left": left,
        "seconds": seconds,
        "total": wall,
        "processor_seconds": processor,
        "passes": passes,
        "right": right.tolist(),
        "notes": list(found["autoattack"].notes),
        "epsilon": epsilon,
    }


class StageTimes(logging.Handler):
    """Reads pyautoattack's log: how many images each of its attacks left, and when."""

    def __init__(self, images: int) -> None:
        super().__init__(logging.DEBUG)
        self.images, self.left, self.seconds = images, dict[str, int](), dict[str, float]()
        self._at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        message, now = record.getMessage(), time.perf_counter()
        if found := re.match(r"initial accuracy: ([\d.]+)%", message):
            self.left["clean"] = round(float(found[1]) / 100 * self.images)
        elif message.startswith("running "):
            self._at = now
        elif found := re.match(r"robust accuracy after ([\w-]+): ([\d.]+)%", message):
            name = found[1].lower()
            self.left[name], self.seconds[name] = round(float(found[2]) / 100 * self.images), now - self._at


def library(*arguments: Any) -> dict[str, Any]:
    """Attack with pyautoattack's standard version."""
    import pyautoattack

    model, pixels, labels, epsilon = opened(*arguments)
    log = StageTimes(len(labels))
    logger = logging.getLogger("auto-attack")
    logger.addHandler(log)
    logger.setLevel(logging.DEBUG)
    started, busy = time.perf_counter(), time.process_time()
    attack = pyautoattack.AutoAttack(model, norm="Linf", eps=epsilon, seed=0, version="standard")
    _, answers = attack.run_standard_evaluation(pixels.float() / 255, labels, batch_size=250)
    return {
        "left": log.left,
        "seconds": log.seconds,
        "total": time.perf_counter() - started,
        "processor_seconds": time.process_time() - busy,
        "right": (answers == labels).tolist(),
    }


def measure(connection: Connection, rival: str, *arguments: Any) -> None:
    connection.send((ours if rival == "rmcla_fast" else library)(*arguments))


def in_a_process(*arguments: Any) -> dict[str, Any]:
    """Return the measurement of a rival in a new process, so that nothing that ran before matters."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=measure, args=(there, *arguments))
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
    except EOFError:
        raise SystemExit(f"{arguments[0]} failed on {arguments[1]}") from None
    process.join()
    return found


def summary(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return how the verdicts and the times compare; `apgd` and `autoattack` against all of pyautoattack."""
    pairs = list(zip(mine["right"], theirs["right"], strict=True))
    apgd = sum(mine["seconds"].get(name, 0.0) for name in PARTS[:2])
    return {
        "only_rmcla_fast_fooled": sum(b and not a for a, b in pairs),
        "only_pyautoattack_fooled": sum(a and not b for a, b in pairs),
        "apgd_times_as_fast": theirs["total"] / apgd,
        "autoattack_times_as_fast": theirs["total"] / mine["total"],
    }


def table(case: str, images: int, threads: int, mine: dict[str, Any], theirs: dict[str, Any]) -> Table:
    shown = Table(title=f"{case}: {images} images, {threads} threads", title_justify="left")
    for column in ("after", "left by rmcla_fast", "by pyautoattack", "seconds, rmcla_fast", "pyautoattack", "ratio"):
        shown.add_column(column, justify="left" if column == "after" else "right")
    for name in ("clean", *PARTS):
        if name in mine["left"]:
            a, b = mine["seconds"].get(name), theirs["seconds"].get(name)
            left = theirs["left"].get(name, theirs["left"][list(theirs["left"])[-1]])
            ratio = f"{b / a:.2f}" if a and b else ""
            cells = [f"{value:.1f}" if value is not None else "" for value in (a, b)]
            shown.add_row(name, str(mine["left"][name]), str(left), *cells, ratio)
    total = theirs["total"] / mine["total"]
    shown.add_row("total", "", "", f"{mine['total']:.1f}", f"{theirs['total']:.1f}", f"{total:.2f}")
    return shown


def verdicts_table(reports: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table with the images that are left after each part."""
    after = ("after APGD-CE", "after APGD-T: `apgd`", "after FAB-T", "after Square: `autoattack`")
    head = ("model", "images", "clean", *after, "fooled by pyautoattack alone", "by rmcla_fast alone")

    def cells(name: str, report: dict[str, Any], mine: Any, theirs: Any, compared: Any) -> list[str]:
        # The library skips the attacks that are left when no image is.
        left = [f"{mine['left'][part]} / {theirs['left'].get(part, 0)}" for part in ("clean", *PARTS)]
        alone = [str(compared[f"only_{rival}_fooled"]) for rival in reversed(RIVALS)]
        return [name, str(len(mine["right"])), *left, *alone]

    return markdown(head, reports, cells)


def times_table(reports: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table with the seconds of each part, and how many times as fast ours are."""
    ratios = ("`apgd`: times as fast as all of pyautoattack", "`autoattack`")
    head = ("model", "threads", "APGD-CE", "APGD-T", "FAB-T", "Square", "all", *ratios)

    def cells(name: str, report: dict[str, Any], mine: Any, theirs: Any, compared: Any) -> list[str]:
        pairs = [(mine["seconds"].get(part, 0.0), theirs["seconds"].get(part, 0.0)) for part in PARTS]
        seconds = [f"{a:.1f} / {b:.1f}" for a, b in [*pairs, (mine["total"], theirs["total"])]]
        fast = [f"{compared[f'{attack}_times_as_fast']:.1f}" for attack in ("apgd", "autoattack")]
        return [name, str(report["threads"]), *seconds, *fast]

    return markdown(head, reports, cells)


def estimate_table(reports: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table with the work for 10,000 images, if the network were preact-resnet18."""
    flop = forward_flops(argparse.Namespace(model="preact-resnet18", classes=10, size=32, batch=1))
    work = ("passes an image: `apgd`", "`autoattack`", "PFLOP: `apgd`", "`autoattack`")
    head = ("model", *work, "TFLOP/s for `apgd` in 90 s", "for `autoattack` in 5 minutes")

    def cells(name: str, report: dict[str, Any], mine: Any, theirs: Any, compared: Any) -> list[str]:
        passes = [mine["passes"][attack] / len(mine["right"]) for attack in ("apgd", "autoattack")]
        petaflop = [10_000 * flop * count / 1e15 for count in passes]
        rates = [1000 * one / seconds for one, seconds in zip(petaflop, (90, 300), strict=True)]
        return [
            name,
            *(f"{count:,.0f}" for count in passes),
            *(f"{one:.1f}" for one in petaflop),
            *(f"{rate:.0f}" for rate in rates),
        ]

    return markdown(head, reports, cells)


def markdown(head: tuple[str, ...], reports: list[dict[str, Any]], cells: Callable[..., list[str]]) -> list[str]:
    """Return the lines of a table with a row for each model of each report."""
    rows = [
        cells(name, report, *(case[key] for key in (*RIVALS, "compared")))
        for report in reports
        for name, case in report["cases"].items()
    ]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders of `rmcla train`; with --show, earlier reports")
    parser.add_argument("--show", action="store_true", help="print the tables of earlier reports")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--epsilon", help="such as 8/255")
    parser.add_argument("--masked", action="store_true", help="add the first model with its logits multiplied by 1,000")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.show:
        reports = [json.loads(Path(path).read_text()) for path in options.runs]
        tables = (verdicts_table, times_table, estimate_table)
        print("\n\n".join("\n".join(table(reports)) for table in tables))
        return
    cases = [*options.runs, *([options.runs[0] + MASKED] if options.masked else [])]
    report: dict[str, Any] = {**describe_machine(torch.device("cpu")), "threads": options.threads, "cases": {}}
    console = Console(width=120)
    for case in cases:
        asked = (case, options.images, options.threads, options.epsilon)
        mine, theirs = (in_a_process(rival, *asked) for rival in RIVALS)
        console.print(table(case, len(mine["right"]), options.threads, mine, theirs))
        compared = summary(mine, theirs)
        console.print(compared)
        name = "/".join(Path(case).parts[-2:])
        report["cases"][name] = {"rmcla_fast": mine, "pyautoattack": theirs, "compared": compared}
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
