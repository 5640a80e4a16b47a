"""`rmcla train`, `recipes` and `info`: what they print, and one sentence and an exit code for each error."""

from __future__ import annotations

import dataclasses
import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import python, read_checkpoint, wait_for_checkpoint

from rmcla_fast import cli, recipes, training
from rmcla_fast.epsilon import format_epsilon, parse_epsilon
from rmcla_fast.errors import UserError
from rmcla_fast.options import flag, help_text
from rmcla_fast.training import TrainConfig

QUICK = ["--data", "digits", "--images-per-class", "20", "--epochs", "1", "--batch-size", "32", "--device", "cpu"]


def test_train_writes_the_folder_and_prints_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["train", *QUICK, "--recipe", "r-mc-la9+", "--epsilon", "8/255", "--seed", "3", "--out", str(out)]
    assert cli.run(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out)
    assert "training small-cnn with r-mc-la9+" in printed.err
    config = json.loads((out / "config.json").read_text())
    assert (config["recipe"], config["epsilon"], config["epsilon_text"], config["seed"]) == (
        "r-mc-la9+",
        8 / 255,
        "8/255",
        3,
    )
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert cli.run(arguments) == 2
    assert "is not empty; go on with --resume" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert cli.run([*arguments, "--resume"]) == 0
    assert "is finished: 1 epochs; nothing is left to resume" in capsys.readouterr().err


def test_quiet_is_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", *QUICK, "--quiet", "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("train", "--data is missing; one of: digits"),
        ("train --data mnist", "unknown data set 'mnist'"),
        ("train --data digits --recipe magic", "no recipe is called 'magic'"),
        ("train --data digits --model magic", "no model is called 'magic'"),
        ("train --data digits --model nowhere:factory", "cannot be found"),
        ("train --data digits --epsilon 8", "write 8/255 or 0.031373"),
        ("train --data digits --epsilon big", "such as 8/255"),
        ("train --data digits --epochs 0", "--epochs must be at least 1"),
        ("train --data digits --epochs many", "valid integer"),
        ("train --data digits --images-per-class 20 --batch-size 500", "fewer than a batch"),
        ("train --data digits --precision fp8", "--precision must be one of fp32, bf16, fp16"),
        ("train --data cifar10 --data-dir /nowhere", "cs.toronto.edu"),
        ("train --data folder --data-dir /nowhere", "there is no /nowhere"),
        ("train --resume --out /nowhere/run", "there is no run"),
        ("train --magic", "No such option"),
        ("magic", "No such command"),
    ],
)
def test_errors_are_one_sentence_and_exit_code_2(
    arguments: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("rmcla: ")
    assert sentence in printed.err
    assert not list(tmp_path.iterdir())


def test_a_factory_in_the_working_folder_is_found(tmp_path: Path) -> None:
    """Python looks for modules beside the installed script, so `rmcla` adds the working folder itself."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "rmcla").write_text("from rmcla_fast.cli import main\nmain()\n")
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef net(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    command = ["train", *QUICK, "-q", "--model", "mine:net", "--out", "run"]
    process = python("bin/rmcla", *command, cwd=tmp_path)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_run_that_fails_midway_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.run(["train", *QUICK, "--lr", "1e30", "--schedule", "piecewise", "-q", "--out", str(tmp_path / "run")]) == 1
    )
    assert "at learning rate 1e+30" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("largest_file", "code", "sentence"),
    [
        (1000, 2, "run cannot be written: File too large"),  # config.json
        (1500, 1, "could not be written (File too large); --resume goes on"),  # metrics.jsonl or TensorBoard's events
        (100_000, 1, "best.pt could not be written (File too large); there is no earlier one"),
    ],
)
def test_a_full_disk_is_one_sentence(tmp_path: Path, largest_file: int, code: int, sentence: str) -> None:
    """A limit on the size of files stands for the full disk: it raises the same kind of error at the same calls."""
    out = tmp_path / "run"
    command = ("-m", "rmcla_fast.cli", "train", *QUICK, "--log-every", "1", "--quiet", "--out", out)
    limits = (largest_file, largest_file)
    process = python(*command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
    _, said = process.communicate(timeout=240)
    assert process.returncode == code
    assert said.count("\n") == 1, said
    assert sentence in said
    assert not list(out.glob("*.tmp"))
    if code == 1:  # the run had begun, and continues when there is room again
        assert cli.run(["train", "--resume", "--quiet", "--out", str(out)]) == 0
        assert read_checkpoint(out / "checkpoint.pt")["epoch"] == 1


def test_a_missing_extra_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert cli.run(["train", *QUICK, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "needs sklearn, which is not installed; pip install 'rmcla-fast[train]'" in said
    assert not (tmp_path / "run").exists()


def test_every_field_of_the_configuration_is_an_option_with_its_help_and_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "500")  # one line an option
    assert cli.run(["train", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for field in dataclasses.fields(TrainConfig):
        assert any(f"{flag(field.name)} " in line and help_text(field) in line for line in lines)


def test_an_option_reaches_the_field_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[TrainConfig] = []

    def caught(config: TrainConfig, *, quiet: bool) -> str:
        configs.append(config)
        return "run"

    monkeypatch.setattr(training, "train", caught)
    given = "--epsilon 8/255 --lr 1 --epochs 3 --no-augment --resume --skip-unreadable --data-dir D --out RUN"
    assert cli.run(["train", *given.split()]) == 0
    assert cli.run(["train"]) == 0
    asked = TrainConfig(
        epsilon="8/255", lr=1.0, epochs=3, augment=False, resume=True, skip_unreadable=True, data_dir="D", out="RUN"
    )
    assert configs == [asked, TrainConfig()]


@pytest.mark.parametrize("command", ["train", "evaluate", "compare", "gradients", "reproduce", "recipes", "info"])
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, "--help"]) == 0
    assert f"Usage: rmcla {command}" in capsys.readouterr().out


def test_recipes_lists_all_with_their_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes"]) == 0
    rows = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]}
    assert rows == {name: f"{recipes.get(name).cost}F" for name in recipes.names()}
    assert (rows["standard"], rows["r-mc-la"], rows["r-mc-la+"], rows["trades"]) == ("3F", "5F", "6F", "27F")


def test_info_names_every_operator_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["info"]) == 0
    text = capsys.readouterr().out
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for name in ("joint_gradient", "perturb_step", "random_start", "soft_cross_entropy", "augment"):
        lines = [line.split() for line in text.splitlines() if line.startswith(f"  {name} ")]
        for device, line in zip(devices, lines, strict=True):
            assert line[1] in ({"cpu", "reference"} if device == "cpu" else {"cuda", "triton", "reference"})
            assert len(line) > 3
    assert "torch" in text


def test_without_arguments_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 0
    assert "Usage: rmcla" in capsys.readouterr().out


def test_control_c_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("train", "--data", "digits", "--epochs", "9999", "--device", "cpu", "--out", out)
    process = python("-m", "rmcla_fast.cli", *command)
    wait_for_checkpoint(out, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("rmcla: stopped by SIGINT at step")
    assert said.splitlines()[-1].endswith(f"go on with: rmcla train --resume --out {out}")
    assert read_checkpoint(out / "checkpoint.pt")["step"] > 0


def test_control_c_outside_the_updates_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    assert cli.run(["train", *QUICK]) == 130
    assert capsys.readouterr().err.startswith("rmcla: stopped at once; the last checkpoint is kept")


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.031", 0.031), (" 4/255 ", 4 / 255), ("0", 0.0), ("1", 1.0), (0.15, 0.15)],
)
def test_epsilon_is_read(text: str | float, value: float) -> None:
    assert parse_epsilon(text) == value


@pytest.mark.parametrize("text", ["8", "255", "-0.1", "nan", "inf", "1/0", "300/255", "", "8/", "eight"])
def test_a_bad_epsilon_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="epsilon"):
        parse_epsilon(text)


def test_epsilon_is_written() -> None:
    assert [format_epsilon(value) for value in (8 / 255, 0.15, 0.031, 1 / 255, 0.0)] == [
        "8/255",
        "0.15",
        "0.031",
        "1/255",
        "0",
    ]
