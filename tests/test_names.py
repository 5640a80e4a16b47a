"""Names are text: a run, a class or a data set may have any name, and every command shows it and finds its files."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import write_image
from hostile_names import NAMES, nested
from run_cases import Batch, at_step, rmcla, small
from torch import Tensor, nn

from rmcla_fast import cli
from rmcla_fast.errors import Interrupted
from rmcla_fast.evaluation import gallery, plots
from rmcla_fast.evaluation.progress import Bars
from rmcla_fast.evaluation.run import Run
from rmcla_fast.text import markdown, markdown_code, printable, shell_word
from rmcla_fast.training import TrainConfig, train
from rmcla_fast.training.record import Facts, RunRecord
from rmcla_fast.training.resolve import resolve

for package in ("typer", "matplotlib", "PIL.Image", "tensorboard"):
    pytest.importorskip(package, reason="pip install 'rmcla-fast[train]'")
pytestmark = pytest.mark.filterwarnings("error::UserWarning")  # such as that of a missing glyph
save = plots.save
every_name = pytest.mark.parametrize("name", NAMES, ids=ascii)


def words_in_bash(command: str) -> list[str]:
    """Return the words that bash takes the command for."""
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True).stdout
    return [os.fsdecode(word) for word in printed.split(b"\0")[:-1]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train one run with each name; each is interrupted, and resumed by the command that the message has."""
    root = tmp_path_factory.mktemp("runs")
    folders = {name: root / name for name in NAMES}
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 1, interrupted)
        for folder in folders.values():
            with pytest.raises(Interrupted) as stopped:
                train(small(folder, images_per_class=10, epochs=1))
            message = printable(stopped.value)
            assert message == str(stopped.value)
            program, *arguments = words_in_bash(message.partition("go on with: ")[2])
            assert program == "rmcla"
            assert rmcla(*arguments, "--quiet") == 0
    return folders


def interrupted(batch: Batch) -> Batch:
    os.kill(os.getpid(), signal.SIGINT)
    return batch


@every_name
def test_a_run_of_any_name_is_trained_and_resumed_in_its_folder(name: str, runs: dict[str, Path]) -> None:
    folder = runs[name]
    written = {path.name.partition(".")[0] for path in folder.iterdir()}
    assert written == {"config", "metrics", "checkpoint", "best", "curves", "events"}
    assert json.loads((folder / "config.json").read_text())["out"] == str(folder)


@every_name
def test_a_finished_run_of_any_name_says_so_and_prints_its_path_as_it_is(
    name: str, runs: dict[str, Path], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert rmcla("train", "--resume", "--out", runs[name]) == 0
    printed = capfdbinary.readouterr()
    assert printed.out == os.fsencode(runs[name]) + b"\n"
    assert printed.err.decode() == f"{printable(runs[name])} is finished: 1 epochs; nothing is left to resume\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout.isatty", lambda: True)
        assert rmcla("train", "--resume", "--quiet", "--out", runs[name]) == 0
    assert capfdbinary.readouterr().out.decode() == f"{printable(runs[name])}\n"


@every_name
def test_a_run_of_any_name_is_evaluated(
    name: str, runs: dict[str, Path], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    command = ("--images", 12, "--device", "cpu", "--json", runs[name].parent / f"{name[:60]}.json")
    assert rmcla("evaluate", runs[name], *command, "--attacks", "clean,fgsm", "--gallery") == 0
    assert rmcla("gradients", runs[name], *command) == 0
    printed = capfdbinary.readouterr()
    assert printable(name) in printed.out.decode().splitlines()[0]  # the title is on one line
    assert printed.err.decode().count(printable(runs[name])) == 4
    assert json.loads((runs[name] / "evaluation.json").read_text())["attacks"]["clean"]["images"] == 12
    for picture in ("evaluation.png", "gallery.png", "gradients.png"):
        assert (runs[name] / picture).stat().st_size > 10_000


@pytest.mark.parametrize("first", range(0, len(NAMES), 8))
def test_runs_of_any_names_are_compared(
    first: int, runs: dict[str, Path], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    chosen, out = list(runs.values())[first : first + 8], tmp_path / NAMES[first]
    command = ("--attacks", "clean,fgsm", "--images", 4, "--device", "cpu", "--out", out)
    assert rmcla("compare", *chosen, *command) == 0
    printed = capfdbinary.readouterr()
    lines = printed.out.decode().splitlines()
    assert f"Pictures: {printable(out / 'comparison.png')}, {printable(out / 'details.png')}" in lines
    for folder in chosen:
        name = printable(folder.name)
        verdicts = [line for line in lines if line.startswith(f"{name}: ")]
        rows = [line for line in lines if line.lstrip().startswith(f"{name.strip()} ") and line not in verdicts]
        assert (len(verdicts), len(rows)) == (1, 1)
        assert f"{name}: over iterations done" in printed.err.decode()
    assert [one["run"] for one in json.loads((out / "comparison.json").read_text())] == list(map(str, chosen))
    assert all((out / picture).stat().st_size > 10_000 for picture in ("comparison.png", "details.png"))


def test_classes_and_data_sets_may_have_any_names(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    root, out = nested(tmp_path), tmp_path / "run"
    for split in ("train", "test"):
        for number, name in enumerate(NAMES):
            for image in range(2):
                write_image(root / split / name / f"{name[:60]}{image}.png", 5 * number + image)
    config = TrainConfig(data="folder", data_dir=root, model="small-cnn", epochs=1, batch_size=16, out=out)
    assert train(config, quiet=False) == out
    assert json.loads((out / "config.json").read_text())["classes"] == sorted(NAMES)
    assert rmcla("evaluate", out, "--attacks", "clean", "--gallery", "--device", "cpu") == 0
    assert (out / "gallery.png").exists()
    damaged = root / "train" / NAMES[5] / f"{NAMES[5]}0.png"
    damaged.write_bytes(b"")
    capfdbinary.readouterr()
    assert rmcla("train", "--data", "folder", "--data-dir", root, "--out", tmp_path / "other") == 2
    assert f"unreadable image: {printable(damaged)};" in capfdbinary.readouterr().err.decode()


class NearestGrey(nn.Module):
    """A model whose classes are levels of grey, from black to white."""

    def forward(self, images: Tensor) -> Tensor:
        return -100 * (images.mean((1, 2, 3))[:, None] - torch.linspace(0, 1, len(NAMES))).abs()


@pytest.mark.parametrize("first", range(0, len(NAMES), 8))
def test_a_gallery_has_the_names_of_its_classes(first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(first, first + 8)
    images = torch.linspace(0, 1, len(NAMES))[labels].mul(255).round().byte()[:, None, None, None].expand(8, 1, 8, 8)
    options = resolve(TrainConfig(data="folder", model=NAMES[first], epochs=1))
    facts = Facts(num_classes=len(NAMES), channels=1, image_size=(8, 8), train_images=1, classes=NAMES)
    network = NearestGrey()
    run = Run(
        tmp_path / NAMES[first],
        "last",
        1,
        "average",
        RunRecord(options, facts),
        network,
        images,
        labels,
        len(NAMES),
        NAMES,
        {},
    )
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure) or save(figure, path))
    gallery.draw(run, 0.2, tmp_path / "gallery.png")
    shown = {axes.get_title() for axes in figures[0].axes}
    assert {plots.label(name, 16) for name in NAMES[first : first + 8]} <= shown


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a factory whose module has a name that would act as something else."""
    module = "a|b `c` $d$ [red]\n'e\" \udcff"
    (tmp_path / f"{module}.py").write_text("from rmcla_fast.models import SmallCNN as net")
    monkeypatch.syspath_prepend(tmp_path)
    return f"{module}:net"


def test_a_network_may_have_any_name(network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 1, interrupted)
        with pytest.raises(Interrupted) as stopped:
            train(small(tmp_path / "run", model=network, images_per_class=10, epochs=1))
    _, *arguments = words_in_bash(str(stopped.value).partition("go on with: ")[2])
    assert rmcla(*arguments) == 0
    command = ("--model", network, "--attacks", "clean", "--images", 4, "--device", "cpu")
    assert rmcla("evaluate", tmp_path / "run", *command) == 0


def test_a_table_is_reproduced_in_a_folder_of_any_name_with_a_network_of_any_name(
    network: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    out = nested(tmp_path)
    command = ("reproduce", "table4", "--data", "digits", "--epochs", 1, "--device", "cpu", "--batch-size", 64)
    assert rmcla(*command, "--model", network, "--out", out) == 0
    printed = capfdbinary.readouterr()
    table = (out / "table4-digits.md").read_text(encoding="utf-8")
    assert printed.out.decode().rstrip("\n") == table.rstrip("\n")
    assert f"writes {printable(out)}/table4-digits.md" in printed.err.decode()
    assert json.loads((out / "table4-digits.json").read_text())["model"] == network
    assert f"Network: {markdown(network)}, while" in table
    assert network in words_in_bash(table.partition("Made by ``")[2].partition("``.\n")[0])


@every_name
def test_a_progress_bar_shows_a_name_as_it_is(
    name: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", "400")
    with Bars(f"{name}: ") as bars:
        bars.say(name)
        bars("ce20", 0.5)
    shown = capfdbinary.readouterr().err.decode()
    assert f"{printable(name)}: ce20" in shown
    assert f"{printable(name)}\n" in shown


def test_a_command_does_not_end_because_its_output_takes_only_ascii(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, written = NAMES[8], io.BytesIO()
    command = ("evaluate", runs[name], "--attacks", "clean", "--images", 4, "--device", "cpu")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    monkeypatch.setattr(sys, "argv", ["rmcla", *map(str, command)])
    monkeypatch.setattr(sys, "path", [*sys.path])  # `main` changes these three
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    sys.stdout.flush()
    assert name.encode("ascii", "backslashreplace") in written.getvalue()


@every_name
def test_an_error_shows_a_name_on_one_line(
    name: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert rmcla("evaluate", tmp_path / name) == 2
    said = capfdbinary.readouterr().err.decode()
    assert said.startswith(f"rmcla: there is no run folder {printable(tmp_path / name)}; train one first with: ")
    assert said[:-1].isprintable()
    assert words_in_bash(said.partition("with: ")[2]) == [
        *("rmcla", "train", "--data", "digits", "--out"),
        str(tmp_path / name),
    ]


def test_a_name_that_is_too_long_for_the_system_is_an_error_of_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (("evaluate",), ("train", "--data", "digits", "--out")):
        assert rmcla(*command, tmp_path / ("x" * 300)) == 2
        assert capsys.readouterr().err.rstrip().endswith("cannot be used: File name too long")


@every_name
def test_a_picture_shows_every_character_of_a_name(name: str) -> None:
    figure = plots.new_figure(6, 4)
    axes = figure.subplots()
    plots.lines(axes, {name: ([0.0], [1.0]), "other": ([0.0], [1.0])})
    plots.legend_above(figure, axes)
    legend = figure.legends[0].get_texts()
    assert len(legend) == 2
    with warnings.catch_warnings(action="error"):
        figure.canvas.draw()
    drawn = [legend[0]._preprocess_math(line) for line in legend[0].get_text().split("\n")]
    assert not any(is_mathematics for _, is_mathematics in drawn)
    shown = "".join(line for line, _ in drawn).replace(" ", "")
    glyphs = {*map(chr, range(32, 127)), *"éعربي"}
    expected = printable(name, glyphs.__contains__).replace(" ", "")
    if len(shown) < len(expected):
        start, end = shown.split("...")
        assert min(len(start), len(end)) > 90
        assert expected.startswith(start)
        assert expected.endswith(end)
    else:
        assert shown == expected


@every_name
def test_a_printable_name_is_one_line_of_utf_8(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    assert shown.encode()
    assert (shown == name) == name.isprintable()


def test_bash_reads_each_shell_word_as_the_name() -> None:
    assert words_in_bash(" ".join(map(shell_word, NAMES))) == list(NAMES)


def test_markdown_shows_names_as_they_are() -> None:
    assert markdown("a|b `c` *d*\n") == r"a\|b \`c\` \*d\*\\n"
    assert markdown_code("rmcla --model a:b") == "`rmcla --model a:b`"
    assert markdown_code("``a`") == "``` ``a` ```"
