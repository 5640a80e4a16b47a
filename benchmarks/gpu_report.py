"""The tables and the picture of a quarter of an hour on a GPU, from the raw files that `gpu_quarter.sh` brought back.

    python benchmarks/gpu_report.py benchmarks/results/nvidia-h100-80gb-hbm3-2026-11-26 --picture docs/h100.png

docs/h100.md has these tables; tests/test_gpu_report.py holds them to what this prints.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

from rmcla_fast import recipes
from rmcla_fast.errors import need

VARIANTS = {
    "default": "as it is",
    "no-cudnn-benchmark": "without `cudnn.benchmark`",
    "combo-kernels": "`combo_kernels`",
    "cooperative-reductions": "`triton.cooperative_reductions`",
    "combo-kernels-cooperative-reductions": "both of them",
    "pdl": "`TORCHINDUCTOR_ENABLE_PDL=1`",
}
RUNS = {"r-mc-la-plus": "r-mc-la+", "n-fgsm": "n-fgsm"}
ATTACKS = ("clean", "fgsm", "ce20", "cw100", "autoattack")


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def median(report: dict[str, Any], name: str) -> float:
    return statistics.median(report["seconds"][name]["wall"])


def tests(folder: Path) -> str:
    """Each selection of tests with its counts."""
    rows = []
    for path in sorted(folder.glob("tests-*.log")):
        last = re.findall(r"^((?:\d+ \w+, )*\d+ \w+) in ([\d.]+)s", path.read_text(), re.MULTILINE)[-1]
        counts = dict(reversed(count.split()) for count in last[0].split(", "))  # type: ignore[misc]
        kinds = [counts.get(kind, "0") for kind in ("passed", "failed", "skipped")]
        rows.append([path.stem.removeprefix("tests-"), *kinds, f"{float(last[1]):.0f}"])
    return table(["selection", "passed", "failed", "skipped", "seconds"], rows)


def step(report: dict[str, Any]) -> str:
    """Every rival: milliseconds, images a second, TFLOP/s of the passes, share of the matrix product, ratio to ours."""
    rows = []
    ours = median(report, "r-mc-la step")
    for name in report["seconds"]:
        seconds = median(report, name)
        recipe, _, kind = name.rpartition(" ")
        flops = share = ""
        if kind in ("step", "passes") and recipe in recipes.names():
            rate = recipes.get(recipe).cost * report["forward_flops"] / seconds
            flops, share = f"{rate / 1e12:.0f}", f"{rate / report['matrix_flops_per_second']:.0%}"
        images = report["context"]["options"]["batch"] / seconds
        rows.append([name, f"{seconds * 1e3:.2f}", f"{images:,.0f}", flops, share, f"{seconds / ours:.3f}"])
    head = ["one update", "ms", "images/s", "TFLOP/s", "of the matrix rate", "over the r-mc-la step"]
    return table(head, rows)


def classes(report: dict[str, Any]) -> str:
    """Where the time of the r-mc-la step goes."""
    found = report["kernels"]
    total = found["milliseconds_a_step"]
    rows = [
        [title, f"{count:.0f}", f"{taken:.3f}", f"{taken / total:.1%}"]
        for title, (taken, count) in found["by_class"].items()
        if count
    ]
    rest = max(0.0, total - sum(taken for taken, _ in found["by_class"].values()))
    rows.append(["between kernels", "", f"{rest:.3f}", f"{rest / total:.1%}"])
    return table(["kernels", "launches", "ms", "share"], rows)


def variants(folder: Path) -> str:
    """The r-mc-la step under each option of Inductor and cuDNN, in processes of their own."""
    reports = {name: json.loads((folder / f"step-{name}.json").read_text()) for name in VARIANTS}
    base = median(reports["default"], "r-mc-la step")
    rows = []
    for name, title in VARIANTS.items():
        seconds = median(reports[name], "r-mc-la step")
        rows.append([title, f"{seconds * 1e3:.2f}", f"{seconds / base:.3f}"])
    return table(["r-mc-la step", "ms", "over as it is"], rows)


def operators(folder: Path) -> str:
    """Every operator: microseconds, rivals over ours, share of a copy's bandwidth."""
    rows = []
    for row in json.loads((folder / "operators.json").read_text())["rows"]:
        seconds = row["seconds"]
        ours = seconds["ours"]

        def ratio(*names: str, seconds: dict[str, float] = seconds, ours: float = ours) -> str:
            known = [seconds[name] / ours for name in names if name in seconds]
            return f"{known[0]:.2f}x" if known else ""

        rows.append(
            [
                f"`{row['operator']}`",
                row["case"],
                f"{ours * 1e6:.1f}",
                ratio("plain", "by hand"),
                ratio("plain, compiled", "by hand, compiled"),
                ratio("eager"),
                ratio("compile"),
                f"{row['roof'] / ours:.0%}" if row["roof"] else "",
            ]
        )
    head = ["operator", "size", "ours, us", "plain", "plain, compiled", "reference", "reference, compiled", "of a copy"]
    return table(head, rows)


def epochs(folder: Path, run: str) -> list[dict[str, Any]]:
    lines = (folder / f"{run}-metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "epoch"]


def training(folder: Path) -> str:
    """Both runs: seconds of training and accuracy under each attack."""
    rows = []
    for run, name in RUNS.items():
        ended = epochs(folder, run)
        # The first epoch compiles and captures.
        each = (ended[-1]["seconds"] - ended[0]["seconds"]) / (len(ended) - 1)
        attacks = json.loads((folder / f"{run}-evaluation.json").read_text())["attacks"]
        accuracies = [f"{attacks[attack]['accuracy']:.1f}" for attack in ATTACKS]
        rows.append(
            [
                f"`{name}`",
                f"{recipes.get(name).cost}F",
                str(len(ended)),
                f"{ended[-1]['seconds']:.0f}",
                f"{each:.2f}",
                *accuracies,
            ]
        )
    head = ["recipe", "passes", "epochs", "seconds of training", "seconds an epoch"]
    return table([*head, "clean", "FGSM", "CE20", "CW100", "AutoAttack"], rows)


def tables(folder: Path) -> dict[str, str]:
    main, wide = (json.loads((folder / f"step-{name}.json").read_text()) for name in ("main", "wrn"))
    return {
        "Tests": tests(folder),
        "One update of preact-resnet18, batch 128": step(main),
        "Where its time goes": classes(main),
        "Options of Inductor and cuDNN": variants(folder),
        "One update of wrn-28-10, batch 128": step(wide),
        "Where its time goes, wrn-28-10": classes(wide),
        "Operators": operators(folder),
        "Training": training(folder),
    }


def picture(folder: Path, path: Path) -> None:
    """Left: accuracy over seconds of training. Right: milliseconds an update of every rival."""
    need("matplotlib", "train", "the picture").use("agg")
    figure = need("matplotlib.figure", "train", "the picture").Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, (run, name) in zip(("tab:blue", "tab:orange"), RUNS.items(), strict=True):
        watched = [row for row in epochs(folder, run) if "pgd" in row]
        seconds = [row["seconds"] for row in watched]
        left.plot(seconds, [row["clean"] for row in watched], color=colour, linestyle=":", label=f"{name}, clean")
        left.plot(seconds, [row["pgd"] for row in watched], color=colour, label=f"{name}, PGD, 1,000 held out")
        attacks = json.loads((folder / f"{run}-evaluation.json").read_text())["attacks"]
        end, accuracy = epochs(folder, run)[-1]["seconds"], attacks["autoattack"]["accuracy"]
        left.plot(end, accuracy, "*", color=colour, markersize=13, label=f"{name}, AutoAttack, 500 of the test set")
    left.set(xlabel="seconds of training", ylabel="accuracy in %", xlim=(0, None), ylim=(0, 100))
    left.set_title("CIFAR-10 (JPEG), epsilon 8/255, preact-resnet18", fontsize=10)
    left.legend(fontsize=8)
    report = json.loads((folder / "step-main.json").read_text())
    names = [name for name in report["seconds"] if not name.endswith("passes")]
    milliseconds = [median(report, name) * 1e3 for name in names]
    colours = [
        "tab:blue" if name.endswith(" step") and name.split()[0] in recipes.names() else "grey" for name in names
    ]
    bars = right.barh(names[::-1], milliseconds[::-1], color=colours[::-1])
    right.bar_label(bars, fmt="%.1f", padding=3)
    right.set(xlabel="milliseconds an update of 128 images (ours blue)", xlim=(0, 1.12 * max(milliseconds)))
    right.set_title(report["context"]["machine"], fontsize=10)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    for title, text in tables(options.folder).items():
        print(f"## {title}\n\n{text}\n")
    if options.picture:
        picture(options.folder, options.picture)


if __name__ == "__main__":
    main()
