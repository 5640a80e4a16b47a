"""Ctrl-C, SIGTERM and SIGHUP, once and twice, at every stage of a command: exit code, one sentence, what is left."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import termios
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import write_folder
from run_cases import Batch, at_step, python, rmcla, small, wait_for_checkpoint

from rmcla_fast.attacks.suite import ModelUnderAttack
from rmcla_fast.data import folder as image_folder
from rmcla_fast.training import TrainConfig, checkpoint, loop, train
from rmcla_fast.training.interrupt import STOPPING, Stop, StopAtOnce, StopRequest
from rmcla_fast.training.metrics import read_metrics

QUICK = ("--data", "digits", "--images-per-class", 20, "--epochs", 2, "--device", "cpu", "--log-every", 2, "-q")


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def signalling(function: Callable[..., Any], *numbers: signal.Signals, at: int = 1) -> Callable[..., Any]:
    """Return the function, which sends the signals to this process when it is called for the `at`-th time."""
    calls = []

    def signalled(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == at:
            send(*numbers)
        return function(*args, **kwargs)

    return signalled


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Any:
    before = [signal.getsignal(number) for number in STOPPING]
    yield
    assert [signal.getsignal(number) for number in STOPPING] == before


@pytest.mark.parametrize("number", STOPPING)
def test_a_second_signal_finds_the_earlier_handlers(number: signal.Signals) -> None:
    with StopAtOnce() as outer:
        with StopRequest() as stop:
            send(number)
            assert (stop.signal, outer.signal) == (number, None)
            with pytest.raises(Stop) as stopped:
                send(number)
        assert outer.signal == stopped.value.number == number


@pytest.mark.parametrize("kind", [StopRequest, StopAtOnce])
def test_an_ignored_signal_stays_ignored(kind: type[StopRequest]) -> None:
    """This is how `nohup` keeps a run alive after the terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with kind() as stop:
            send(signal.SIGHUP)
        assert stop.signal is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", STOPPING)
def test_a_second_signal_ends_a_run_at_once(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def twice(batch: Batch) -> Batch:
        send(number, number)
        return batch

    at_step(monkeypatch, 7, twice)
    assert rmcla("train", *QUICK, "--checkpoint-every", 2, "--out", tmp_path / "a") == 128 + number
    kept = "--resume goes on from the last checkpoint, or starts if there is none"
    assert capsys.readouterr().err == f"rmcla: stopped by {number.name}; {kept}\n"
    assert checkpoint.read(tmp_path / "a" / checkpoint.LAST).step == 6
    monkeypatch.undo()
    train(TrainConfig(out=str(tmp_path / "a"), resume=True))
    train(small(tmp_path / "b", monitor_every=5))
    ended, whole = (checkpoint.read(tmp_path / name / checkpoint.LAST).model for name in "ab")
    assert all(torch.equal(ended[name], whole[name]) for name in whole)


def test_a_signal_at_the_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "_load", signalling(loop._load, signal.SIGTERM))
    assert rmcla("train", *QUICK, "--out", tmp_path / "a") == 143
    assert capsys.readouterr().err.startswith("rmcla: stopped by SIGTERM; ")
    assert not (tmp_path / "a").exists()


def test_a_signal_while_images_are_packed_leaves_no_part_of_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("PIL.Image", reason="pip install 'rmcla-fast[train]'")
    root = write_folder(tmp_path / "images")
    command = ("train", "--data", "folder", "--data-dir", root, "--model", "small-cnn", "--batch-size", 2, "-q")
    command += ("--epochs", 1, "--device", "cpu", "--monitor-images", 0, "--out", tmp_path / "run")
    monkeypatch.setattr(image_folder, "decode", signalling(image_folder.decode, signal.SIGTERM, at=2))
    assert rmcla(*command) == 143
    assert capsys.readouterr().err.startswith("rmcla: stopped by SIGTERM; ")
    assert not [path for path in root.rglob("*") if path.suffix in (".npy", ".tmp")]
    monkeypatch.undo()
    assert rmcla(*command) == 0


@pytest.mark.parametrize(("signals", "step"), [(1, 5), (2, 2)])
def test_a_signal_while_a_checkpoint_is_written_leaves_a_whole_one(
    signals: int, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one signal the run finishes the checkpoint of step 4 and the next update; after two, step 2 is kept."""
    numbers = [signal.SIGTERM] * signals
    monkeypatch.setattr(torch, "save", signalling(torch.save, *numbers, at=2))
    assert rmcla("train", *QUICK, "--checkpoint-every", 2, "--out", tmp_path / "a") == 143
    assert checkpoint.read(tmp_path / "a" / checkpoint.LAST).step == step
    assert not list((tmp_path / "a").glob("*.tmp"))


def test_a_signal_while_a_finished_run_is_drawn_lets_it_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "draw_curves", signalling(loop.draw_curves, signal.SIGTERM))
    assert rmcla("train", *QUICK, "--out", tmp_path / "a") == 0
    assert (tmp_path / "a" / "curves.png").exists()


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_in_an_evaluation_keeps_the_finished_attacks(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(small(tmp_path / "run", epochs=1))
    command = ("evaluate", run, "--images", 20, "--attacks", "clean,fgsm,ce20", "--device", "cpu")
    monkeypatch.setattr(ModelUnderAttack, "result", signalling(ModelUnderAttack.result, number, at=3))
    assert rmcla(*command) == 128 + number
    said = capsys.readouterr().err.splitlines()[-1]
    kept = f"what the attacks have found out is in {run / 'evaluation.npz'}, and the same command goes on from there"
    assert said == f"rmcla: stopped by {number.name}; {kept}"
    monkeypatch.undo()
    monkeypatch.setattr(ModelUnderAttack, "result", signalling(ModelUnderAttack.result, number))
    assert rmcla(*command, "--fresh") == 128 + number
    assert "the same command without --fresh goes on" in capsys.readouterr().err
    assert list(json.loads((run / "evaluation.json").read_text())["attacks"]) == []
    monkeypatch.undo()
    assert rmcla(*command) == 0
    assert list(json.loads((run / "evaluation.json").read_text())["attacks"]) == ["clean", "fgsm", "ce20"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_makes_another_error_is_still_reported(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code of matplotlib in C++ does this."""

    def draw() -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise ValueError("Invalid bounding box") from None

    monkeypatch.setattr("rmcla_fast.recipes.names", draw)
    assert rmcla("recipes") == 128 + number
    assert capsys.readouterr().err == f"rmcla: stopped at once by {number.name}\n"


@pytest.mark.parametrize("place", ["__enter__", "__exit__"])
def test_a_signal_at_the_very_beginning_or_end_is_reported(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    method = getattr(StopAtOnce, place)

    def and_signal(self: StopAtOnce, *arguments: object) -> None:
        if place == "__enter__":
            method(self, *arguments)
        signal.raise_signal(signal.SIGTERM)  # whose handler puts the earlier handlers back

    monkeypatch.setattr(StopAtOnce, place, and_signal)
    assert rmcla("recipes") == 143
    assert capsys.readouterr().err == "rmcla: stopped at once by SIGTERM\n"


def test_a_closed_terminal_stops_a_run_after_a_checkpoint(tmp_path: Path) -> None:
    """What a closed terminal does: SIGHUP arrives, and every later write to the terminal fails."""
    ours, theirs = pty.openpty()

    def take_the_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        for stream in (0, 1, 2):
            os.dup2(theirs, stream)

    def read() -> None:
        with suppress(OSError):
            while os.read(ours, 4096):
                pass

    out = tmp_path / "a"
    command = ("train", "--data", "digits", "--epochs", 9999, "--device", "cpu", "--out", out)
    with python("-m", "rmcla_fast.cli", *command, preexec_fn=take_the_terminal, pass_fds=(theirs,)) as process:
        os.close(theirs)
        threading.Thread(target=read, daemon=True).start()
        wait_for_checkpoint(out, process)
        os.close(ours)
        assert process.wait(timeout=120) == 129
    rows = read_metrics(out / "metrics.jsonl")
    assert checkpoint.read(out / checkpoint.LAST).step >= rows[-1]["step"]  # later than the end of the last epoch
