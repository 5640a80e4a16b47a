"""Tests of evaluation.json: which stored results are reused, and which runs may be compared."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import change_checkpoint

from rmcla_fast import cli, sealed
from rmcla_fast.attacks.attack_result import AttackResult
from rmcla_fast.attacks.suite import ModelUnderAttack
from rmcla_fast.errors import UserError
from rmcla_fast.evaluation import results
from rmcla_fast.evaluation.compare import common_epsilon
from rmcla_fast.evaluation.run import Run, evenly_spaced, open_run, own_factory
from rmcla_fast.training import TrainConfig, checkpoint, train

pil = pytest.importorskip("PIL.Image", reason="pip install 'rmcla-fast[train]'")
OPTIONS = {"data": "folder", "model": "small-cnn", "epochs": 1, "batch_size": 8, "threads": 1}


def make_images(folder: Path, *, shade: int = 10, mode: str = "L", count: int = 12) -> str:
    for split in ("train", "test"):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            for row in range(count):
                level = (shade * row + 100 * (name == "b")) % 256
                pil.new(mode, (8, 8), level if mode == "L" else (level,) * 3).save(folder / split / name / f"{row}.png")
    return str(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    return train(TrainConfig(data_dir=make_images(folder / "images"), out=str(folder / "run"), **OPTIONS), quiet=True)  # type: ignore[arg-type]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    return open_run(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def attacked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the names of the attacks that are run, and not read from the file."""
    names: list[str] = []
    result = ModelUnderAttack.result

    def spy(self: ModelUnderAttack, name: str, *args: Any) -> AttackResult:
        names.append(name)
        return result(self, name, *args)

    monkeypatch.setattr(ModelUnderAttack, "result", spy)
    return names


@pytest.mark.parametrize("what", ["checkpoint_sha256", "images_sha256", "network"])
def test_a_result_for_another_model_or_other_images_is_not_reused(run: Run, attacked: list[str], what: str) -> None:
    results.evaluate_run(run, "clean", epsilon=0.1)
    other = dataclasses.replace(run, identity={**run.identity, what: "another"})
    results.evaluate_run(other, "clean", epsilon=0.1)
    assert attacked == ["clean", "clean"]
    results.evaluate_run(other, "clean", epsilon=0.1)
    assert attacked == ["clean", "clean"]


def test_results_are_reused_only_for_the_same_images(run: Run, tmp_path: Path, attacked: list[str]) -> None:
    results.evaluate_run(run, "clean", epsilon=0.1)
    moved = open_run(run.folder, data_dir=make_images(tmp_path / "same"))
    results.evaluate_run(moved, "clean", epsilon=0.1)
    assert attacked == ["clean"]
    results.evaluate_run(open_run(run.folder, data_dir=make_images(tmp_path / "other", shade=9)), "clean", epsilon=0.1)
    assert attacked == ["clean", "clean"]


def test_a_short_evaluation_does_not_overwrite_a_long_one(run: Run, attacked: list[str]) -> None:
    long = results.evaluate_run(run, "clean,ce20", epsilon=0.1)
    few = open_run(run.folder, images=4)
    results.evaluate_run(few, "clean", epsilon=0.1)
    results.evaluate_run(run, "clean", epsilon=0.2)
    results.evaluate_run(run, "ce20", epsilon=0.1, restarts=2)
    assert attacked == ["clean", "ce20", "clean", "clean", "ce20"]
    again = results.evaluate_run(run, "clean,ce20", epsilon=0.1)
    assert {name: result.as_json() for name, result in again.items()} == {
        name: result.as_json() for name, result in long.items()
    }
    assert results.evaluate_run(few, "clean", epsilon=0.1)["clean"].images == 4
    assert results.evaluate_run(run, "ce20", epsilon=0.1, restarts=2)["ce20"].restarts == 2
    assert len(attacked) == 5
    document = json.loads((run.folder / "evaluation.json").read_text())
    assert document["epsilon"] == "0.1"  # the latest evaluation comes first
    assert list(document["attacks"]) == ["clean", "ce20", "ce20 x 2"]
    assert len(document["others"]) == 2


def test_results_of_each_precision_are_kept_apart(run: Run, attacked: list[str]) -> None:
    for precision in ("fp32", "bf16", "fp32", "bf16", "fp16"):
        for result in results.evaluate_run(run, "clean,fgsm", epsilon=0.1, precision=precision).values():
            assert result.precision == precision
    assert attacked == ["clean", "fgsm"] * 3
    document = json.loads((run.folder / "evaluation.json").read_text())
    kept = [document, *document["others"]]
    assert {one["settings"]["precision"] for one in kept} == {"fp32", "bf16", "fp16"}
    for one in kept:
        assert {entry.get("precision", "fp32") for entry in one["attacks"].values()} == {one["settings"]["precision"]}


@pytest.mark.parametrize("damaged", [5, None, "zz", ["bf16"], "fp32"])
def test_a_result_whose_precision_differs_from_the_settings_is_not_reused(
    run: Run, attacked: list[str], damaged: object
) -> None:
    results.evaluate_run(run, "clean", epsilon=0.1, precision="bf16")
    path = run.folder / "evaluation.json"
    document = sealed.load(path)
    document["attacks"]["clean"]["precision"] = damaged
    path.write_bytes(sealed.dumps(document))
    with pytest.warns(UserWarning, match="the attacks run again"):
        result = results.evaluate_run(run, "clean", epsilon=0.1, precision="bf16")["clean"]
    assert result.precision == "bf16"
    assert attacked == ["clean", "clean"]


def test_no_attack_runs_if_its_result_cannot_be_stored(
    run: Run, attacked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results.evaluate_run(run, "clean", epsilon=0.1)
    monkeypatch.setattr(results.os, "access", lambda *_: False)
    for attacks, fresh in (("clean,fgsm", False), ("clean", True)):
        with pytest.raises(UserError, match="the results are stored there; evaluate a copy of it"):
            results.evaluate_run(run, attacks, epsilon=0.1, fresh=fresh)
    assert results.evaluate_run(run, "clean", epsilon=0.1)
    assert attacked == ["clean"]


def test_a_fresh_attack_keeps_the_other_results(run: Run, attacked: list[str]) -> None:
    results.evaluate_run(run, "clean,ce20", epsilon=0.1)
    results.evaluate_run(run, "clean", epsilon=0.1, fresh=True)
    assert attacked == ["clean", "ce20", "clean"]
    results.evaluate_run(run, "clean,ce20", epsilon=0.1)
    assert len(attacked) == 3


def test_two_commands_at_the_same_time_keep_the_results_of_both(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = ModelUnderAttack.result

    def meanwhile(self: ModelUnderAttack, *args: Any) -> AttackResult:
        monkeypatch.setattr(ModelUnderAttack, "result", result)
        results.evaluate_run(run, "fgsm", epsilon=0.1)
        return result(self, *args)

    monkeypatch.setattr(ModelUnderAttack, "result", meanwhile)
    results.evaluate_run(run, "clean", epsilon=0.1)
    assert list(results.known_results(run, 0.1, 0)) == ["clean", "fgsm"]


def test_an_evaluation_of_replaced_weights_keeps_the_results_of_the_new_ones(run: Run) -> None:
    """It may have begun before the checkpoint was replaced, and end after an evaluation of the new weights."""
    best = open_run(run.folder, which="best")
    for one, epsilon in ((run, 0.1), (run, 0.2), (best, 0.1)):
        results.evaluate_run(one, "clean", epsilon=epsilon)
    replaced = dataclasses.replace(run, identity={**run.identity, "checkpoint_sha256": "another"})
    assert not results.known_results(replaced, 0.1, 0)
    results.evaluate_run(replaced, "clean", epsilon=0.1)
    for one, epsilon in ((run, 0.1), (run, 0.2), (best, 0.1), (replaced, 0.1)):
        assert results.known_results(one, epsilon, 0)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000, '{"others": [], "settings": {}, "attacks": {}}'])
def test_a_damaged_file_is_kept_under_another_name(run: Run, text: str) -> None:
    (run.folder / "evaluation.json").write_text(text)
    with pytest.warns(
        UserWarning, match=r"evaluation\.json .*; the attacks run again, and it is kept as evaluation\.d"
    ):
        assert not results.known_results(run, 0.1, 0)
    with pytest.warns(UserWarning, match="is kept as"):
        results.evaluate_run(run, "clean", epsilon=0.1, fresh=True)
    assert (run.folder / "evaluation.damaged.json").read_text() == text
    assert list(results.known_results(run, 0.1, 0)) == ["clean"]


def test_weights_and_checksum_come_from_the_same_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training run may replace the checkpoint after its checksum was read."""
    path, load = run.folder / "checkpoint.pt", torch.load

    def and_replace(file: object, **kwargs: object) -> object:
        monkeypatch.setattr(torch, "load", load)
        change_checkpoint(path, model={})
        return load(file, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "load", and_replace)
    opened = open_run(run.folder)
    assert opened.identity == run.identity
    assert checkpoint.open_file(path).sha256 != run.identity["checkpoint_sha256"]


def test_the_description_names_the_epoch_if_it_is_not_the_last(run: Run) -> None:
    assert "epoch" not in run.description
    change_checkpoint(run.folder / "checkpoint.pt", config={"epochs": 30})
    assert open_run(run.folder).description.endswith(", r-mc-la (epoch 1 of 30)")


def test_the_description_of_the_best_checkpoint_says_what_it_is(run: Run) -> None:
    assert open_run(run.folder, which="best").description.endswith(" (best, epoch 1 of 1)")
    averaged = dataclasses.replace(run.record, options=dataclasses.replace(run.record.options, ema=0.9))
    best = dataclasses.replace(run, which="best", best_of="weights", record=averaged)
    assert best.description.endswith(" (best, the weights after epoch 1 of 1)")


def test_test_images_of_another_shape_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was trained on images of 1x8x8; the test images are 3x8x8"):
        open_run(run.folder, data_dir=make_images(tmp_path / "other", mode="RGB"))


def test_missing_data_are_reported_with_an_option(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_checkpoint(run.folder / "checkpoint.pt", config={"data_dir": str(tmp_path / "gone")})
    assert cli.run(["evaluate", str(run.folder)]) == 2
    assert "name another place with --data-dir" in capsys.readouterr().err


def test_runs_with_different_images_and_a_run_that_is_named_twice_are_not_compared(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = open_run(run.folder, data_dir=make_images(tmp_path / "other", shade=9))
    with pytest.raises(UserError, match="runs of different data cannot be compared"):
        common_epsilon([run, other], None)
    assert cli.run(["compare", str(run.folder), str(run.folder / ".." / run.folder.name)]) == 2
    assert "is named twice" in capsys.readouterr().err


def test_a_run_in_the_current_folder_has_the_name_of_the_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.folder)
    assert open_run(".").name == "run"


def test_chance_is_the_share_of_the_largest_class_and_rows_are_evenly_spaced(run: Run) -> None:
    assert run.chance == 50
    assert dataclasses.replace(run, labels=torch.tensor([0, 1, 1, 1])).chance == 75
    assert evenly_spaced(10, 4).tolist() == [0, 2, 5, 7]
    assert evenly_spaced(3).tolist() == [0, 1, 2]


def test_each_run_of_a_comparison_gets_its_own_factory() -> None:
    named = ["a:net", "b:net"]
    assert [own_factory(recorded, named) for recorded in ("small-cnn", *named)] == [None, *named]
    assert [own_factory(recorded, ["moved.a:net"]) for recorded in ("small-cnn", "a:net")] == [None, "moved.a:net"]
    assert own_factory("a:net", []) is None


def test_too_little_memory_is_reported_in_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(ModelUnderAttack, "result", fail)
    error = RuntimeError("CUDA out of memory. Tried to allocate 20 GiB.\nMore")
    assert cli.run(["evaluate", str(run.folder)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("rmcla: not enough memory on the GPU (tried to allocate 20 GiB); try the same command with ")
    error = RuntimeError("a mistake")
    with pytest.raises(RuntimeError, match="a mistake"):
        cli.run(["evaluate", str(run.folder)])
