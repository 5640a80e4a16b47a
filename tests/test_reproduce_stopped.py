"""`rmcla reproduce` where a training fails or is stopped: what is said, and that nothing else is lost."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from run_cases import rmcla

from rmcla_fast.errors import Interrupted, NotFinite, UserError
from rmcla_fast.paper import fastat, reproduce
from rmcla_fast.paper.plan import Plan, ReproducedRow
from rmcla_fast.training import TrainConfig, train


def first_row(plan: Plan) -> ReproducedRow:
    return reproduce._row(plan, reproduce._sources(plan)[0])


def test_a_data_set_that_is_too_small_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The advice of the training, another batch size, is none for this command, whose batch size is that of attacks."""

    def too_small(config: TrainConfig, *, quiet: bool) -> Path:
        raise UserError("8 training images are left, fewer than a batch of 128; give --batch-size 8 or less")

    monkeypatch.setattr(reproduce, "train", too_small)
    plan = Plan("fastat", "digits", out=tmp_path)
    with pytest.raises(UserError, match="fewer than a batch of 128; the data set is too small for this table"):
        reproduce._train(plan, first_row(plan), 0, True)


@pytest.mark.parametrize("table", ["fastat", "recipes"])
def test_a_loss_that_is_not_finite_leaves_the_other_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], table: str
) -> None:
    """The table is printed with what could be trained, and the command fails."""
    if table == "recipes":  # its attacks include one of foolbox
        pytest.importorskip("foolbox", reason="pip install 'rmcla-fast[eval]'")

    def diverges(config: TrainConfig, *, quiet: bool) -> Path:
        if config.recipe in ("n-fgsm", "r-mc-la") and config.seed == 0:
            raise NotFinite("the loss of step 3 is nan at learning rate 0.1; there is no checkpoint yet; start another")
        return train(config, quiet=quiet)

    monkeypatch.setattr(reproduce, "train", diverges)
    monkeypatch.setattr(reproduce, "RECIPES", ("standard", "n-fgsm", "r-mc-la"))
    monkeypatch.setattr(fastat, "RECIPES", ("n-fgsm", "r-mc-la", "n-mc-la"))
    seeds = ("--seeds", "0,1") if table == "recipes" else ()
    command = ("reproduce", table, "--data", "digits", "--model", "small-cnn", "--epochs", 1, "--no-autoattack")
    assert rmcla(*command, *seeds, "--out", tmp_path) == 1
    shown = capsys.readouterr()
    why = "n-fgsm, seed 0: the loss of step 3 is nan at learning rate 0.1"
    markdown = tmp_path / f"{table}-digits.md"
    assert f"{markdown} has no figures of the trainings that failed: {why}; r-mc-la, seed 0: " in shown.err.replace(
        "\n", " "
    )
    assert f"* {why}." in shown.out
    assert shown.out.count(" failed |") == (0 if seeds else 12)
    rows = json.loads(markdown.with_suffix(".json").read_text())["rows"]
    by_recipe = {row["recipe"]: row for row in rows}
    assert by_recipe["n-fgsm"]["failures"] == {"0": "the loss of step 3 is nan at learning rate 0.1"}
    other = by_recipe["standard" if seeds else "n-mc-la"]
    assert not other["failures"]
    assert len(other["figures"]["clean"]["seeds"]) == (2 if seeds else 1)


def test_a_stopped_training_names_the_command_that_goes_on_with_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(config: TrainConfig, *, quiet: bool) -> Path:
        raise Interrupted("stopped by SIGINT at step 3 of 90; go on with: rmcla train --resume", signal.SIGINT)

    monkeypatch.setattr(reproduce, "train", stopped)
    plan = Plan("fastat", "digits", out=tmp_path)
    with pytest.raises(
        Interrupted, match=r"^stopped by SIGINT at step 3 of 90 of \S+; the same command goes on"
    ) as caught:
        reproduce._train(plan, first_row(plan), 0, True)
    assert caught.value.exit_code == 130
    assert "rmcla train" not in str(caught.value)
