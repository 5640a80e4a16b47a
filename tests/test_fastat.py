"""`rmcla reproduce fastat`: the published figures, the table and picture beside ours, and what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import write_image
from matplotlib.text import Text
from run_cases import rmcla

from rmcla_fast import recipes
from rmcla_fast.attacks.suite import TITLES
from rmcla_fast.evaluation.run import open_run
from rmcla_fast.paper import fastat, fastat_plot, fastat_report, reproduce
from rmcla_fast.paper.plan import Plan, ReproducedRow, attack_epsilon
from rmcla_fast.training import TrainConfig, train
from rmcla_fast.training.metrics import as_line, read_metrics


def rows_of(plan: Plan) -> list[ReproducedRow]:
    """Return the rows of our recipes before anything is trained."""
    return [reproduce._row(plan, source) for source in reproduce._sources(plan)]


def test_the_published_figures_are_complete_and_sorted() -> None:
    names = {data: [row.name for row in fastat.published_rows(data)] for data in ("cifar10", "cifar100")}
    assert len(names["cifar10"]) == 21
    assert sorted(names["cifar10"]) == sorted(names["cifar100"])
    tiny = {row.name for row in fastat.published_rows("tiny-imagenet")}
    assert tiny == set(names["cifar10"]) - {"N-AAER"}  # the benchmark has no figures of it
    for data in ("cifar10", "cifar100", "tiny-imagenet"):
        rows = fastat.published_rows(data)
        assert [row.figures["autoattack"] for row in rows] == sorted(
            (row.figures["autoattack"] for row in rows), reverse=True
        )
        for row in rows:
            assert tuple(row.figures) == tuple(row.deviations) == fastat.FIGURES
            assert row.figures["autoattack"] < row.figures["ce50"] < row.figures["clean"] < 100
            assert row.figures["ce50"] <= row.figures["ce20"] <= row.figures["ce10"]
    assert fastat.published_rows("digits") == ()


@pytest.mark.parametrize(
    ("data", "name", "means", "deviations"),
    [
        (
            "cifar10",
            "N-FGSM",
            [78.59, 53.64, 53.13, 53.07, 47.77, 1940.75, 1.39],
            [2.34, 0.25, 0.27, 0.28, 0.41, 42.25, 0.0],
        ),
        (
            "cifar100",
            "LIET",
            [50.47, 32.64, 32.46, 32.44, 26.64, 2343.7, 1.4],
            [0.69, 0.53, 0.46, 0.51, 0.13, 8.93, 0.01],
        ),
        (
            "tiny-imagenet",
            "PGD-10 with averaging",
            [48.07, 26.38, 26.19, 26.15, 19.77, 28572.77, 4.56],
            [0.97, 0.22, 0.21, 0.22, 0.16, 24.98, 0.0],
        ),
    ],
)
def test_the_published_figures_are_as_printed(
    data: str, name: str, means: list[float], deviations: list[float]
) -> None:
    (row,) = [row for row in fastat.published_rows(data) if row.name == name]
    assert list(row.figures.values()) == means
    assert list(row.deviations.values()) == deviations


def test_the_recipes_exist_and_are_one_step() -> None:
    for name in (*fastat.RECIPES, *fastat.PUBLISHED_AS):
        assert recipes.get(name).steps == 1
    assert set(fastat.ATTACKS) <= set(TITLES)
    assert fastat.source_of("n-fgsm", "cifar10").name == "N-FGSM"
    assert not fastat.source_of("r-mc-la", "cifar10").figures


def test_the_models_are_trained_by_the_protocol() -> None:
    assert Plan("fastat").data == "cifar10"
    for row in rows_of(Plan("fastat", epochs=3, precision="bf16")):
        chosen = row.config
        assert (chosen.model, chosen.epochs, chosen.precision) == ("resnet18", 3, "bf16")
        assert (chosen.label_smoothing, chosen.ema, chosen.monitor_images) == (0.4, 0.9995, 1000)
    assert attack_epsilon(Plan("fastat", "digits")) == 0.15  # 8/255 hardly changes a digit
    assert attack_epsilon(Plan("fastat", "imagenet")) == 8 / 255


def test_on_digits_the_table_says_that_nothing_was_published_and_a_second_call_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fastat, "RECIPES", (fastat.RECIPES[0], fastat.RECIPES[-1]))
    options = ("--data", "digits", "--model", "small-cnn", "--epochs", 1, "--device", "cpu", "--no-autoattack")
    command = ("reproduce", "fastat", *options, "--out", tmp_path)
    assert rmcla(*command) == 0
    table = tmp_path / "fastat-digits.json"
    document = json.loads(table.read_text())
    assert [row["recipe"] for row in document["rows"]] == list(fastat.RECIPES)
    assert document["published"] == []
    assert document["published_data"] is None
    assert document["epsilon"] == "0.15"
    for row in document["rows"]:
        assert list(row["figures"]) == ["clean", "ce10", "ce20", "ce50", "seconds"]  # no memory on a CPU
        assert row["figures"]["seconds"]["ours"] == pytest.approx(60 * row["training_minutes"])
        assert row["passes_per_image"] == 5
    text = table.with_suffix(".md").read_text()
    for said in ("Data: digits, for which the FastAT Benchmark published nothing", "not run", "AutoAttack was not run"):
        assert said in text
    for option in ("--model resnet18; the run takes small-cnn", "--epochs 100; the run takes 1"):
        assert option in text
    assert "--monitor-images 1,000 are more than a tenth of the training images, so 143 are held out" in text
    assert "so the average stays equal to the weights" in text
    assert "published figure" not in text
    assert "| method | recipe | clean | PGD-10 | PGD-20 | PGD-50 | AutoAttack | seconds of training |" in text
    assert text in capsys.readouterr().out
    assert table.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    checkpoints = sorted((tmp_path / "runs").glob("*/checkpoint.pt"))
    assert len(checkpoints) == len(fastat.RECIPES)
    before = [path.stat().st_mtime_ns for path in checkpoints]
    assert rmcla(*command) == 0
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
    assert json.loads(table.read_text()) == document
    run = checkpoints[0].parent
    known = json.loads((run / "evaluation.json").read_text())["settings"]
    assert known["checkpoint_sha256"] == open_run(run, which="best", device="cpu").identity["checkpoint_sha256"]


def write_cifar_classes(root: Path, left_out: str = "") -> Path:
    for split in ("train", "test"):
        for number, name in enumerate(sorted(fastat_report.CIFAR10_CLASSES - {left_out})):
            write_image(root / split / name / "0.png", number)
    return root


def test_a_folder_with_the_classes_of_cifar10_is_set_beside_it(tmp_path: Path) -> None:
    plan = Plan("fastat", "folder", data_dir=str(write_cifar_classes(tmp_path / "copy")))
    rows = rows_of(plan)
    assert fastat_report.published_data(plan) == "cifar10"
    assert rows[0].source.name == "N-FGSM"
    assert "JPEG copies have lost detail" in fastat_report.differences(plan, rows)[0]
    other = Plan("fastat", "folder", data_dir=str(write_cifar_classes(tmp_path / "other", "cat")))
    assert fastat_report.published_data(other) == ""
    assert not any(row.source.figures for row in rows_of(other))


def filled(plan: Plan) -> list[ReproducedRow]:
    """Return the rows with made up figures: those of the first one are the published ones and 1 more."""
    rows = rows_of(plan)
    figures = rows[0].source.figures
    for number, row in enumerate(rows[:3]):
        for name, value in figures.items():
            row.ours[name] = [value + number + seed for seed in (0, 1, 2)]
        row.minutes = [seconds / 60 for seconds in row.ours["seconds"]]
    return rows


def test_published_rows_stand_below_ours_without_the_methods_that_are_ours(tmp_path: Path) -> None:
    plan = Plan("fastat", seeds=(0, 1, 2))
    rows = filled(plan)
    path = tmp_path / "fastat-cifar10.md"
    fastat_report.write(plan, rows, path)
    table = [line for line in path.read_text().splitlines() if line.startswith("| ")][1:]
    ours, published = table[: len(rows)], table[len(rows) :]
    assert ours[0].startswith("| **N-FGSM, ours** | `n-fgsm` | **79.59 ± 1.00** / 78.59 ± 2.34 / +1.00 | ")
    assert "| **1942 ± 1** / 1941 ± 42 | " in ours[0]
    assert ours[1].startswith("| **ours** | `n-mc-la` | **80.59 ± 1.00** | ")
    assert ours[3].count("pending") == len(fastat.FIGURES)
    names = [line.split(" | ")[0].removeprefix("| ") for line in published]
    assert names == [row.name for row in fastat.published_rows("cifar10") if row.name != "N-FGSM"]
    document = json.loads(path.with_suffix(".json").read_text())
    assert [row["name"] for row in document["published"]] == names
    figure = document["rows"][0]["figures"]["autoattack"]
    assert (figure["published"], figure["published_deviation"]) == (47.77, 0.41)
    assert figure["difference"] == pytest.approx(1)


def test_where_autoattack_was_not_run_its_published_figures_are_still_there() -> None:
    plan = Plan("fastat", autoattack=False)
    rows = filled(plan)
    for row in rows:
        row.ours.pop("autoattack", None)
    text = fastat_report.as_markdown(plan, rows, fastat.published_rows("cifar10"))
    assert "| not run / 47.77 ± 0.41 |" in text
    assert "| 49.99 ± 0.15 |" in text


class Drawn(Exception):
    """Carries the figure that would have been saved."""


def figure_of(plan: Plan, rows: list[ReproducedRow], monkeypatch: pytest.MonkeyPatch) -> Any:
    def caught(figure: Any, path: Path) -> Path:
        raise Drawn(figure)

    monkeypatch.setattr(fastat_plot.plots, "save", caught)
    published = fastat.published_rows(fastat_report.published_data(plan))
    with pytest.raises(Drawn) as found:
        fastat_plot.draw(Path("none"), plan, rows, published, title="title")
    return found.value.args[0]


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_the_picture_names_every_published_method_and_no_name_covers_another(
    data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan("fastat", data)
    figure = figure_of(plan, filled(plan), monkeypatch)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {row.name for row in fastat.published_rows(data)}
    boxes = [Text.get_window_extent(text).padded(-1) for text in axes.texts]  # without the lines to their markers
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert [text.get_text() for text in figure.legends[0].get_texts()][:3] == [
        "ours: n-fgsm",
        "ours: n-mc-la",
        "ours: r-mc-la",
    ]
    assert "AutoAttack" in axes.get_ylabel()


def test_the_picture_shows_pgd_where_autoattack_was_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan("fastat", autoattack=False)
    (axes,) = figure_of(plan, filled(plan), monkeypatch).axes
    assert "PGD-20" in axes.get_ylabel()
    assert 53.13 + 1 in [line.get_ydata()[0] for line in axes.lines]  # the mean of our first row


@pytest.mark.parametrize("seconds", [(0.31, 0.33), (31.0, 33.0), (2.0, 7.0), (900.0, 3000.0)])
def test_the_axis_of_seconds_has_numbers(monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float]) -> None:
    plan = Plan("fastat", "digits")
    rows = rows_of(plan)[:2]
    for row, time in zip(rows, seconds, strict=True):
        row.ours = {"autoattack": [50.0], "seconds": [time]}
    (axes,) = figure_of(plan, rows, monkeypatch).axes
    low, high = axes.get_xlim()
    texts = [text.get_text() for text in axes.get_xticklabels() if low <= text.get_position()[0] <= high]
    assert len(set(texts)) > 1, texts


def test_nothing_is_drawn_where_there_is_nothing(tmp_path: Path) -> None:
    plan = Plan("fastat", "digits")
    assert fastat_plot.draw(tmp_path / "a.png", plan, rows_of(plan), (), title="title") is None
    assert not list(tmp_path.iterdir())


def test_the_cost_of_a_run_is_its_seconds_and_the_most_memory(tmp_path: Path) -> None:
    epoch = {"kind": "epoch", "loss": 1.0, "lr": 0.1}
    logged = [
        {**epoch, "step": 3, "epoch": 1, "seconds": 40.0, "memory_gib": 1.5},
        {**epoch, "step": 6, "epoch": 2, "seconds": 90.0, "memory_gib": 1.25},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(map(as_line, logged)))
    plan = Plan("fastat")
    row = rows_of(plan)[0]
    reproduce._add_cost(plan, row, tmp_path, 5000)
    assert row.minutes == [1.5]
    assert row.ours == {"seconds": [90.0], "memory_gib": [1.5]}
    assert [said.partition(" ")[0] for said in row.remarks] == ["--monitor-images", "--ema"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_run_on_a_gpu_logs_its_memory(tmp_path: Path) -> None:
    config = TrainConfig(data="digits", epochs=1, device="cuda", out=str(tmp_path / "run"))
    epochs = [row for row in read_metrics(train(config) / "metrics.jsonl") if row["kind"] == "epoch"]
    assert 0 < epochs[-1]["memory_gib"] <= torch.cuda.get_device_properties(0).total_memory / 2**30
