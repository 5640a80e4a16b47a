"""What evaluation.json may answer for, what it must not, and which runs belong beside each other."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from rmcla_fast import cli
from rmcla_fast.cli.evaluation import own_factory
from rmcla_fast.errors import UserError
from rmcla_fast.evaluation import results as records
from rmcla_fast.evaluation.compare import common_epsilon
from rmcla_fast.evaluation.run import Run, checksum, evenly_spaced, open_run
from rmcla_fast.training import TrainConfig, checkpoint, train

pil = pytest.importorskip("PIL.Image", reason="pip install 'rmcla-fast[train]'")
OPTIONS = {"data": "folder", "model": "small-cnn", "epochs": 1, "batch_size": 8, "threads": 1}


def images(folder: Path, *, shade: int = 10, mode: str = "L", count: int = 12) -> str:
    for split in ("train", "test"):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            for row in range(count):
                level = (shade * row + 100 * (name == "b")) % 256
                pil.new(mode, (8, 8), level if mode == "L" else (level,) * 3).save(folder / split / name / f"{row}.png")
    return str(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    return train(TrainConfig(data_dir=images(folder / "images"), out=str(folder / "run"), **OPTIONS), quiet=True)  # type: ignore[arg-type]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    return open_run(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The attacks that really ran."""
    names: list[str] = []
    evaluate = records.evaluate

    def spy(*args: object, attacks: list[str], **kwargs: object) -> object:
        names.extend(attacks)
        return evaluate(*args, attacks=attacks, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(records, "evaluate", spy)
    return names


@pytest.mark.parametrize("what", ["checkpoint_sha256", "images_sha256", "network"])
def test_a_result_of_something_else_is_not_reused(run: Run, asked: list[str], what: str) -> None:
    records.evaluate_run(run, "clean", epsilon=0.1)
    other = dataclasses.replace(run, identity={**run.identity, what: "another"})
    records.evaluate_run(other, "clean", epsilon=0.1)
    assert asked == ["clean", "clean"]
    records.evaluate_run(other, "clean", epsilon=0.1)
    assert asked == ["clean", "clean"]


def test_as_many_other_images_are_other_images(run: Run, tmp_path: Path, asked: list[str]) -> None:
    records.evaluate_run(run, "clean", epsilon=0.1)
    moved = open_run(run.folder, data_dir=images(tmp_path / "same"))
    records.evaluate_run(moved, "clean", epsilon=0.1)
    assert asked == ["clean"]
    records.evaluate_run(open_run(run.folder, data_dir=images(tmp_path / "other", shade=9)), "clean", epsilon=0.1)
    assert asked == ["clean", "clean"]


def test_a_quick_look_costs_no_long_result(run: Run, asked: list[str]) -> None:
    long = records.evaluate_run(run, "clean,ce20", epsilon=0.1)
    few = open_run(run.folder, images=4)
    records.evaluate_run(few, "clean", epsilon=0.1)
    records.evaluate_run(run, "clean", epsilon=0.2)
    records.evaluate_run(run, "ce20", epsilon=0.1, restarts=2)
    assert asked == ["clean", "ce20", "clean", "clean", "ce20"]
    again = records.evaluate_run(run, "clean,ce20", epsilon=0.1)
    assert {name: result.as_json() for name, result in again.items()} == {
        name: result.as_json() for name, result in long.items()
    }
    assert records.evaluate_run(few, "clean", epsilon=0.1)["clean"].images == 4
    assert records.evaluate_run(run, "ce20", epsilon=0.1, restarts=2)["ce20"].restarts == 2
    assert len(asked) == 5
    document = json.loads((run.folder / "evaluation.json").read_text())
    assert document["epsilon"] == "0.1"  # the last one on top
    assert list(document["attacks"]) == ["clean", "ce20", "ce20 x 2"]
    assert len(document["others"]) == 2


def test_a_precision_is_another_setting(run: Run, asked: list[str]) -> None:
    for precision in ("fp32", "bf16", "fp32", "bf16", "fp16"):
        for result in records.evaluate_run(run, "clean,fgsm", epsilon=0.1, precision=precision).values():
            assert result.precision == precision
    assert asked == ["clean", "fgsm"] * 3
    document = json.loads((run.folder / "evaluation.json").read_text())
    kept = [document, *document["others"]]
    assert {one["settings"]["precision"] for one in kept} == {"fp32", "bf16", "fp16"}
    for one in kept:
        assert {entry.get("precision", "fp32") for entry in one["attacks"].values()} == {one["settings"]["precision"]}


def test_a_record_from_before_precisions_is_of_fp32(run: Run, asked: list[str]) -> None:
    records.evaluate_run(run, "clean", epsilon=0.1)
    path = run.folder / "evaluation.json"
    document = json.loads(path.read_text())
    assert document["settings"].pop("precision") == "fp32"
    path.write_text(json.dumps(document))
    records.evaluate_run(run, "clean", epsilon=0.1, precision="bf16")
    assert asked == ["clean", "clean"]
    assert records.evaluate_run(run, "clean", epsilon=0.1)["clean"].precision == "fp32"
    assert asked == ["clean", "clean"]


@pytest.mark.parametrize("damaged", [5, None, "zz", ["bf16"], "fp32"])
def test_a_result_whose_precision_is_not_its_settings_is_not_believed(
    run: Run, asked: list[str], damaged: object
) -> None:
    records.evaluate_run(run, "clean", epsilon=0.1, precision="bf16")
    path = run.folder / "evaluation.json"
    document = json.loads(path.read_text())
    document["attacks"]["clean"]["precision"] = damaged
    path.write_text(json.dumps(document))
    result = records.evaluate_run(run, "clean", epsilon=0.1, precision="bf16")["clean"]
    assert result.precision == "bf16"
    assert asked == ["clean", "clean"]


def test_a_fresh_attack_leaves_the_others(run: Run, asked: list[str]) -> None:
    records.evaluate_run(run, "clean,ce20", epsilon=0.1)
    records.evaluate_run(run, "clean", epsilon=0.1, fresh=True)
    assert asked == ["clean", "ce20", "clean"]
    records.evaluate_run(run, "clean,ce20", epsilon=0.1)
    assert len(asked) == 3


def test_two_commands_at_once_keep_both_their_results(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = records.evaluate

    def meanwhile(*args: object, **kwargs: object) -> object:
        monkeypatch.setattr(records, "evaluate", evaluate)
        records.evaluate_run(run, "fgsm", epsilon=0.1)
        return evaluate(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(records, "evaluate", meanwhile)
    records.evaluate_run(run, "clean", epsilon=0.1)
    assert list(records.known_results(run, 0.1, 0)) == ["clean", "fgsm"]


def test_results_of_weights_that_are_gone_are_dropped(run: Run) -> None:
    best = open_run(run.folder, which="best")
    for one, epsilon in ((run, 0.1), (run, 0.2), (best, 0.1)):
        records.evaluate_run(one, "clean", epsilon=epsilon)
    trained_on = dataclasses.replace(run, identity={**run.identity, "checkpoint_sha256": "another"})
    records.evaluate_run(trained_on, "clean", epsilon=0.1)
    assert not records.known_results(run, 0.1, 0)
    assert not records.known_results(run, 0.2, 0)
    assert records.known_results(best, 0.1, 0)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"others": [], "settings": {}, "attacks": {}}'])
def test_a_damaged_record_is_begun_anew(run: Run, text: str) -> None:
    (run.folder / "evaluation.json").write_text(text)
    assert not records.known_results(run, 0.1, 0)
    records.evaluate_run(run, "clean", epsilon=0.1)
    assert list(records.known_results(run, 0.1, 0)) == ["clean"]


def test_weights_and_checksum_are_of_one_checkpoint(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training run may replace the checkpoint between the two."""
    path, load = run.folder / "checkpoint.pt", checkpoint.load
    state = torch.load(path, weights_only=True)
    state["model"] = {name: torch.zeros_like(value) for name, value in state["model"].items()}

    def and_replace(*args: object, **kwargs: object) -> object:
        network = load(*args, **kwargs)  # type: ignore[arg-type]
        monkeypatch.setattr(checkpoint, "load", load)
        torch.save(state, path)
        return network

    monkeypatch.setattr(checkpoint, "load", and_replace)
    opened = open_run(run.folder)
    assert opened.identity["checkpoint_sha256"] == checksum(path)
    assert not any(parameter.any() for parameter in opened.model.parameters())


def test_weights_of_an_early_epoch_say_so(run: Run) -> None:
    assert "epoch" not in run.description
    config = json.loads((run.folder / "config.json").read_text())
    (run.folder / "config.json").write_text(json.dumps({**config, "epochs": 30}))
    assert open_run(run.folder).description.endswith(", r-mc-la (epoch 1 of 30)")


def test_images_of_another_shape_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was trained on images of 1x8x8; the test images are 3x8x8"):
        open_run(run.folder, data_dir=images(tmp_path / "other", mode="RGB"))


def test_data_that_have_moved_can_be_named(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((run.folder / "config.json").read_text())
    (run.folder / "config.json").write_text(json.dumps({**config, "data_dir": str(tmp_path / "gone")}))
    assert cli.run(["evaluate", str(run.folder)]) == 2
    assert "name another place with --data-dir" in capsys.readouterr().err


def test_runs_on_other_images_and_a_run_named_twice_are_not_compared(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = open_run(run.folder, data_dir=images(tmp_path / "other", shade=9))
    with pytest.raises(UserError, match="runs of different data cannot be compared"):
        common_epsilon([run, other], None)
    assert cli.run(["compare", str(run.folder), str(run.folder / ".." / run.folder.name)]) == 2
    assert "is named twice" in capsys.readouterr().err


def test_a_run_here_has_the_folders_name(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.folder)
    assert open_run(".").name == "run"


def test_chance_is_the_largest_class_and_a_share_is_spaced(run: Run) -> None:
    assert run.chance == 50
    assert dataclasses.replace(run, labels=torch.tensor([0, 1, 1, 1])).chance == 75
    assert evenly_spaced(10, 4).tolist() == [0, 2, 5, 7]
    assert evenly_spaced(3).tolist() == [0, 1, 2]


def test_each_run_of_a_comparison_gets_its_own_factory(tmp_path: Path) -> None:
    for name in ("small-cnn", "a:net", "b:net"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(
            json.dumps({"data": "digits", "recipe": "r-mc", "epsilon": 0.1, "model": name})
        )
    named = ["a:net", "b:net"]
    assert [own_factory(tmp_path / name, named) for name in ("small-cnn", *named)] == [None, *named]
    assert [own_factory(tmp_path / name, ["moved.a:net"]) for name in ("small-cnn", "a:net")] == [None, "moved.a:net"]
    assert own_factory(tmp_path / "a:net", []) is None


def test_the_readmes_python_evaluates_a_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[-1]
    assert ",autoattack" in code
    data_dir = json.loads((trained / "config.json").read_text())["data_dir"]
    exec(code.replace('"RUN"', repr(str(trained))).replace('"IMAGES"', repr(data_dir)).replace(",autoattack", ""))
    assert "'ce20':" in capsys.readouterr().out


def test_too_little_memory_is_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(records, "evaluate", fail)
    error = RuntimeError("CUDA out of memory. Tried to allocate 20 GiB.\nMore")
    assert cli.run(["evaluate", str(run.folder)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("rmcla: memory is too short, give a smaller --batch-size: CUDA out of memory")
    error = RuntimeError("a mistake")
    with pytest.raises(RuntimeError, match="a mistake"):
        cli.run(["evaluate", str(run.folder)])
