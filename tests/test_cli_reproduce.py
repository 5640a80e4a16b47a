"""`rmcla reproduce` on digits: the tables that it writes, and the command that makes a table again."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
from run_cases import rmcla

from rmcla_fast.errors import UserError
from rmcla_fast.paper.plan import Plan
from rmcla_fast.paper.report import command


def test_table2_has_every_row_and_a_second_call_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("reproduce", "table2", "--data", "digits", "--epochs", 1, "--no-autoattack", "--out", tmp_path)
    assert rmcla(*command) == 0
    document = json.loads((tmp_path / "table2-digits.json").read_text())
    text = (tmp_path / "table2-digits.md").read_text()
    assert [row["name"] for row in document["rows"]] == ["R-MC-LA 5K", "R-MC-LA 2K", "R-MC-LA 0.5K"]
    for row in document["rows"]:
        figure = row["figures"]["ce20"]
        assert figure["difference"] == pytest.approx(figure["ours"] - figure["published"])
        assert row["passes_per_image"] == 5
        assert row["training_minutes"] > 0
    assert "| AutoAttack |" in text
    assert "not run" in text
    for difference in ("Data: digits", "Network: small-cnn", "Epochs: 1", "AutoAttack was not run", "Epsilon:"):
        assert difference in text
    checkpoints = sorted((tmp_path / "runs").glob("*/checkpoint.pt"))
    assert len(checkpoints) == 3
    before = [path.stat().st_mtime_ns for path in checkpoints]
    assert rmcla(*command) == 0
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
    assert json.loads((tmp_path / "table2-digits.json").read_text()) == document


def test_table4_has_a_figure_for_each_seed(tmp_path: Path) -> None:
    command = ("reproduce", "table4", "--data", "digits", "--epochs", 1, "--seeds", "0,1", "--out", tmp_path)
    assert rmcla(*command) == 0
    rows = json.loads((tmp_path / "table4-digits.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["undefended", "madry", "ours"]
    assert all(len(row["figures"]["max"]["seeds"]) == 2 for row in rows)
    assert "±" in (tmp_path / "table4-digits.md").read_text()


def test_the_command_under_a_table_makes_the_table_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def caught(plan: Plan, *, quiet: bool) -> tuple[Path, Path]:
        plans.append(plan)
        raise UserError("not now")

    monkeypatch.setattr("rmcla_fast.cli.reproduce.reproduce", caught)
    plan = Plan("table2", "cifar10", "wrn-34-10", 3, (0, 2), "/somewhere", device="cpu", batch_size=64)
    for wanted in (dataclasses.replace(plan, autoattack=False, precision="bf16"), Plan("table4", "digits")):
        line = command(wanted)
        assert "/somewhere" not in line
        assert rmcla(*shlex.split(line.replace("PATH_TO_CIFAR10", "/somewhere"))[1:], "--out", wanted.out) == 2
        assert plans.pop() == wanted
