"""Print the tables, and draw the picture, of what `gpu_quarter.sh` measured, from the files in its archive.

    python benchmarks/gpu_report.py benchmarks/results/nvidia-h100-80gb-hbm3-2026-11-26 --picture docs/h100.png
    python benchmarks/gpu_report.py benchmarks/results/train_step_cpu_eager_fp32_preact-resnet18.json  # of a CPU

docs/h100.md and docs/results.md hold these tables. tests/test_gpu_report.py checks that they equal what this prints.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # imports this checkout, even if another version is installed
from rmcla_fast import recipes
from rmcla_fast.pictures import new_figure

VARIANTS = {
    "default": "as it is",
    "no-cudnn-benchmark": "without `cudnn.benchmark`",
    "combo-kernels": "`combo_kernels`",
    "cooperative-reductions": "`triton.cooperative_reductions`",
    "combo-kernels-cooperative-reductions": "both of them",
    "pdl": "`TORCHINDUCTOR_ENABLE_PDL=1`",
}
STEPS = ("main", "recipes", "uncaptured", "preact-512", "wrn", "resnet50")
ATTACKS = {"clean": "clean", "fgsm": "FGSM", "ce20": "CE20", "cw100": "CW100", "autoattack": "AutoAttack"}
LATER_ATTACKS = {"apgd": "APGD"}  # the first runs did not have it


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def median(report: dict[str, Any], name: str) -> float:
    return statistics.median(report["seconds"][name]["wall"])


def tests_table(folder: Path) -> str:
    """Return a table with the counts of each selection of tests."""
    rows = []
    for path in sorted(folder.glob("tests-*.log")):
        ended = re.findall(r"^((?:\d+ \w+, )*\d+ \w+) in ([\d.]+)s", path.read_text(), re.MULTILINE)
        last = ended[-1] if ended else ("0 counted", "nan")  # the tests were stopped
        counts = dict(reversed(count.split()) for count in last[0].split(", "))  # type: ignore[misc]
        kinds = [counts.get(kind, "0") for kind in ("passed", "failed", "skipped")]
        rows.append([path.stem.removeprefix("tests-"), *kinds, f"{float(last[1]):.0f}"])
    return markdown_table(["selection", "passed", "failed", "skipped", "seconds"], rows)


def step_table(report: dict[str, Any]) -> str:
    """Return a table with one row for each rival of a step on a GPU.

    The columns are milliseconds, images per second, the TFLOP/s of the passes and their share of the rate of a matrix
    product. The last columns are ratios of medians to our r-mc-la step, and to our r-mc-la+ step, which is the method
    of the public step.
    """
    ours = [name for name in ("r-mc-la step", "r-mc-la+ step") if name in report["seconds"]]
    rows = []
    for name, samples in report["seconds"].items():
        seconds = median(report, name)
        recipe, _, kind = name.rpartition(" ")
        flops = share = ""
        if kind in ("step", "passes") and recipe in recipes.names():
            rate = recipes.get(recipe).cost * report["forward_flops"] / seconds
            flops = f"{rate / 1e12:.0f}"
            if report["matrix_flops_per_second"]:
                share = f"{rate / report['matrix_flops_per_second']:.0%}"
        images = report["context"]["options"]["batch"] / seconds
        ratios = [f"{seconds / median(report, step):.2f}" for step in ours]
        fastest = f"{min(samples['wall']) * 1e3:.2f}"
        rows.append([name, f"{seconds * 1e3:.2f}", fastest, f"{images:,.0f}", flops, share, *ratios])
    head = ["one update", "ms, median", "fastest", "images/s", "TFLOP/s", "of the matrix product's rate"]
    return markdown_table([*head, *(f"over the {name}" for name in ours)], rows)


def cpu_step_table(report: dict[str, Any]) -> str:
    """Return a table with one row for each rival of a step on a CPU: milliseconds, and ratios to our steps.

    A ratio is the median of the ratios of all rounds, because busy neighbours slow all rivals of a round.
    """
    ours = [name for name in ("r-mc-la step", "r-mc-la+ step") if name in report["seconds"]]
    walls = {name: samples["wall"] for name, samples in report["seconds"].items()}
    rows = []
    for name, wall in walls.items():
        ratios = [statistics.median(a / b for a, b in zip(wall, walls[step], strict=True)) for step in ours]
        rows.append([name, f"{median(report, name) * 1e3:.0f}", *(f"{ratio:.2f}" for ratio in ratios)])
    return markdown_table(["one update", "ms, median", *(f"over the {name}" for name in ours)], rows)


def kernels_table(report: dict[str, Any]) -> str:
    """Return a table of the kernels in an r-mc-la step by class, with their share of the time of all kernels."""
    found = {title: list(values) for title, values in report["kernels"]["by_class"].items()}
    casts = [
        taken
        for name, taken in report["kernels"]["kernels"].items()
        if re.fullmatch(r"triton_\w+_fused__to_copy(_\d+)?", name)
    ]
    found["of these, casts alone"] = [sum(column) for column in zip(*casts, strict=True)] if casts else [0.0, 0.0]
    total = sum(taken for title, (taken, _) in found.items() if title != "of these, casts alone")
    titles = list(found)
    titles.insert(titles.index("fused by torch.compile") + 1, titles.pop())
    rows = [
        [title, f"{found[title][1]:.0f}", f"{found[title][0]:.3f}", f"{found[title][0] / total:.1%}"]
        for title in titles
        if found[title][1]
    ]
    return markdown_table(["kernels", "in a step", "ms", "of all kernels"], rows)


def options_table(folder: Path) -> str:
    """Return a table of the r-mc-la step with each option of Inductor and cuDNN, each in a separate process."""
    medians = {}
    for name in VARIANTS:
        paths = sorted([*folder.glob(f"step-{name}.json"), *folder.glob(f"step-{name}-[2-9].json")])
        if paths:
            medians[name] = [median(json.loads(path.read_text()), "r-mc-la step") for path in paths]
    base = statistics.median(medians["default"])
    rows = []
    for name, processes in medians.items():
        seconds = statistics.median(processes)
        each = ", ".join(f"{one * 1e3:.2f}" for one in sorted(processes))
        several = f" (of {each})" if len(processes) > 1 else ""
        rows.append([VARIANTS[name], f"{seconds * 1e3:.2f}{several}", f"{seconds / base:.3f}"])
    return markdown_table(["r-mc-la step", "ms", "over as it is"], rows)


def operators_table(report: dict[str, Any]) -> str:
    """Return a table of the operators: microseconds, ratios of the rivals to ours, share of a copy's bandwidth."""
    rows = []
    for row in report["rows"]:
        if len(row["seconds"]) == 1:  # the overhead of a call, without rivals
            continue
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
    return markdown_table(head, rows)


def trained_recipes(folder: Path) -> dict[str, str]:
    """Return the recipes that were trained, by the beginnings of their file names."""
    runs = sorted(path.name.removesuffix("-evaluation.json") for path in folder.glob("*-evaluation.json"))
    return {run: json.loads((folder / f"{run}-config.json").read_text())["recipe"] for run in runs}


def epoch_rows(folder: Path, run: str) -> list[dict[str, Any]]:
    """Return what the run logged at the end of each epoch."""
    lines = (folder / f"{run}-metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "epoch"]


def training_table(folder: Path) -> str:
    """Return a table of the runs: seconds of training, and accuracy under each attack."""
    rows, reports = [], [json.loads(path.read_text()) for path in folder.glob("*-evaluation.json")]
    columns = ATTACKS | {
        name: title for name, title in LATER_ATTACKS.items() if any(name in r["attacks"] for r in reports)
    }
    for run, name in trained_recipes(folder).items():
        ended = epoch_rows(folder, run)
        later = len(ended) - 1  # the first epoch also compiles and captures
        each = f"{(ended[-1]['seconds'] - ended[0]['seconds']) / later:.2f}" if later else ""
        attacks = json.loads((folder / f"{run}-evaluation.json").read_text())["attacks"]
        accuracies = [f"{attacks[attack]['accuracy']:.1f}" if attack in attacks else "not run" for attack in columns]
        rows.append(
            [
                f"`{name}`",
                f"{recipes.get(name).cost}F",
                str(len(ended)),
                f"{ended[-1]['seconds']:.0f}",
                each,
                *accuracies,
            ]
        )
    head = ["recipe", "passes", "epochs", "seconds of training", "seconds an epoch"]
    return markdown_table([*head, *columns.values()], rows)


def tables(folder: Path) -> dict[str, str]:
    """Return all tables that can be made from the files in a folder, by title, or the table of a single file."""
    found: dict[str, str] = {}
    if folder.is_file():
        report = json.loads(folder.read_text())
        return {folder.stem: operators_table(report) if "rows" in report else cpu_step_table(report)}
    if list(folder.glob("tests-*.log")):
        found["Tests"] = tests_table(folder)
    for name in STEPS:
        path = folder / f"step-{name}.json"
        if path.exists():
            report = json.loads(path.read_text())
            options = report["context"]["options"]
            title = f"{options['model']}, batch {options['batch']}"
            title += "" if options["capture"] == "cuda-graph" else ", without a CUDA graph"
            found[f"One update of {title}"] = step_table(report)
            if report.get("kernels"):
                found[f"What an update of {title} is made of"] = kernels_table(report)
    if (folder / "step-default.json").exists():
        found["Options of Inductor and cuDNN"] = options_table(folder)
    if (folder / "operators.json").exists():
        found["Operators"] = operators_table(json.loads((folder / "operators.json").read_text()))
    if trained_recipes(folder):
        found["Training"] = training_table(folder)
    return found


def draw_picture(folder: Path, path: Path) -> None:
    """Draw accuracy over seconds of training on the left, and milliseconds per update of each rival on the right."""
    figure = new_figure(11, 4.2, "the picture")
    left, right = figure.subplots(1, 2)
    for number, (run, name) in enumerate(trained_recipes(folder).items()):
        colour = f"C{number}"
        watched = [row for row in epoch_rows(folder, run) if "pgd" in row]
        seconds = [row["seconds"] for row in watched]
        clean, pgd = ([row[name] for row in watched] for name in ("clean", "pgd"))
        left.plot(seconds, clean, color=colour, linestyle=":", label=f"{name}: clean, held-out images")
        left.plot(seconds, pgd, color=colour, label=f"{name}: PGD, held-out images")
        attacked = json.loads((folder / f"{run}-evaluation.json").read_text())["attacks"].get("autoattack")
        if attacked:
            end = epoch_rows(folder, run)[-1]["seconds"]
            label = f"{name}: AutoAttack, {attacked['images']} test images"
            left.plot(end, attacked["accuracy"], "*", color=colour, markersize=13, label=label)
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
    right.set(xlabel="milliseconds per update of 128 images (ours in blue)", xlim=(0, 1.12 * max(milliseconds)))
    right.set_title(report["context"]["machine"], fontsize=10)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="the unpacked archive, or one JSON file")
    parser.add_argument("--picture", type=Path, help="also draw this PNG file")
    options = parser.parse_args()
    found = tables(options.folder)
    if not found:
        sys.exit(f"{options.folder} has none of the files that gpu_quarter.sh puts into raw.tgz")
    for title, text in found.items():
        print(f"## {title}\n\n{text}\n")
    if options.picture:
        draw_picture(options.folder, options.picture)


if __name__ == "__main__":
    main()
