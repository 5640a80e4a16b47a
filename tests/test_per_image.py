"""Evaluations that are stopped, shared between processes or damaged: the verdicts stay those of one quiet process."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from run_cases import python, rmcla
from torch import Tensor

from rmcla_fast import sealed
from rmcla_fast.attacks import evaluate
from rmcla_fast.attacks.parts import Runner
from rmcla_fast.attacks.suite import Progress
from rmcla_fast.attacks.verdicts import FOOLED, RIGHT, UNKNOWN, Finding, Part, Verdicts
from rmcla_fast.evaluation import per_image
from rmcla_fast.evaluation.per_image import FILE, Keeper, read
from rmcla_fast.evaluation.results import evaluate_run, known_results
from rmcla_fast.evaluation.run import Run, open_run
from rmcla_fast.evaluation.settings import Settings, settings_of
from rmcla_fast.training import TrainConfig, train

EPSILON = 0.1
ATTACKS = "clean,ce20,apgd"
IMAGES = 45  # an uneven count for two processes, and no multiple of a batch
OPTIONS = ("--attacks", ATTACKS, "--epsilon", EPSILON, "--images", IMAGES, "--batch-size", 16, "--device", "cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("per-image") / "run"
    return train(
        TrainConfig(data="digits", recipe="r-mc-la", images_per_class=40, epochs=4, threads=1, out=str(out)), quiet=True
    )


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def expected(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Return which images are right under each attack, measured at once and in other batches."""
    run = open_run(trained, images=IMAGES, device="cpu")
    found = evaluate(run.model, run.images, run.labels, attacks=ATTACKS, epsilon=EPSILON, batch_size=64)
    assert 0 < found["apgd"].accuracy < found["ce20"].accuracy < 100
    return {name: result.right for name, result in found.items() if result.right is not None}


def kept(folder: Path) -> dict[str, Tensor]:
    """Return which images are right under each attack, as the file says."""
    with np.load(folder / FILE) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in ATTACKS.split(",")}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, right in expected.items():
        assert torch.equal(found[name], right), name


def opened(folder: Path) -> Run:
    return open_run(folder, images=IMAGES, device="cpu")


def test_the_file_says_which_images_are_right(folder: Path, expected: dict[str, Tensor]) -> None:
    assert rmcla("evaluate", folder, *OPTIONS) == 0
    assert_equal(kept(folder), expected)
    accuracy = json.loads((folder / "evaluation.json").read_text())["attacks"]["apgd"]["accuracy"]
    assert accuracy == pytest.approx(100 * expected["apgd"].double().mean().item())


def test_images_of_the_last_attack_are_kept_if_its_last_batch_was_just_written(
    folder: Path, expected: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow attack writes after each batch, and only then it is known which images it left."""
    monkeypatch.setattr(per_image, "SECONDS_BETWEEN_WRITES", 0.0)
    run = opened(folder)
    evaluate_run(run, ATTACKS, epsilon=EPSILON, batch_size=16)
    assert_equal(kept(folder), expected)


class Stopped(KeyboardInterrupt):
    pass


def stop_at(after: float) -> Progress:
    """Return a progress callback that stops `apgd` when this fraction of it is done."""

    def stop(attack: str, fraction: float) -> None:
        if attack == "apgd" and fraction >= after:
            raise Stopped

    return stop


@pytest.mark.parametrize("after", [0.1, 0.4, 0.8])
def test_a_stopped_attack_goes_on_where_it_was(
    folder: Path, expected: dict[str, Tensor], after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"epsilon": EPSILON, "batch_size": 8}
    with pytest.raises(Stopped):
        evaluate_run(opened(folder), ATTACKS, **arguments, progress=stop_at(after))  # type: ignore[arg-type]
    (evaluation,) = read(folder / FILE)
    decided = {key: part.right != UNKNOWN for key, part in evaluation.parts.items()}
    assert decided["clean"].all()
    assert decided["apgd-ce"].any()

    asked: list[Finding] = []
    add = Verdicts.add
    monkeypatch.setattr(Verdicts, "add", lambda self, found: (asked.append(found), add(self, found))[1])
    found = evaluate_run(opened(folder), ATTACKS, **arguments)  # type: ignore[arg-type]
    assert_equal(
        {name: result.right for name, result in found.items() if result.right is not None} | kept(folder), expected
    )
    again = torch.cat([one.rows for one in asked])
    assert len(again) <= sum(int((~one).sum()) for one in decided.values()) + IMAGES  # apgd-t may not have begun


def test_parts_are_shared_between_attacks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate_run(opened(folder), "apgd-ce", epsilon=EPSILON)
    asked: list[str] = []
    note_parts(monkeypatch, asked)
    found = evaluate_run(opened(folder), "apgd-ce,apgd", epsilon=EPSILON)
    assert asked == ["apgd-t"]
    assert [part.part for part in found["apgd"].parts] == ["apgd-ce", "apgd-t"]


def note_parts(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    """Add the key of each part that runs from now on to `asked`."""
    run = Runner.run

    def noted(self: Runner, part: Part, rows: Tensor, report: object) -> object:
        asked.append(part.key)
        return run(self, part, rows, report)  # type: ignore[arg-type]

    monkeypatch.setattr(Runner, "run", noted)


def test_fresh_attacks_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate_run(opened(folder), "ce20,apgd-ce", epsilon=EPSILON)
    asked: list[str] = []
    note_parts(monkeypatch, asked)
    evaluate_run(opened(folder), "apgd-ce", epsilon=EPSILON, fresh=True)
    assert asked == ["clean", "apgd-ce"]
    (evaluation,) = read(folder / FILE)
    assert set(evaluation.parts) == {"clean", "ce20", "apgd-ce"}
    assert (evaluation.parts["ce20"].right != UNKNOWN).any()


def test_a_stopped_fresh_evaluation_goes_on_without_fresh(
    folder: Path, expected: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the same command would print the old result, which somebody no longer trusts."""
    arguments = {"epsilon": EPSILON, "batch_size": 8}
    evaluate_run(opened(folder), ATTACKS, **arguments)  # type: ignore[arg-type]
    with pytest.raises(Stopped):
        evaluate_run(opened(folder), "apgd", **arguments, fresh=True, progress=stop_at(0.6))  # type: ignore[arg-type]
    assert set(known_results(opened(folder), EPSILON, 0)) == {"clean", "ce20"}
    (evaluation,) = read(folder / FILE)
    assert set(evaluation.right) == {"clean", "ce20"}

    asked: list[str] = []
    note_parts(monkeypatch, asked)
    evaluate_run(opened(folder), ATTACKS, **arguments)  # type: ignore[arg-type]
    assert asked == ["apgd-t"]
    assert_equal(kept(folder), expected)


def test_other_settings_are_kept_apart(folder: Path) -> None:
    for epsilon, seed in ((0.1, 0), (0.05, 0), (0.1, 1), (0.1, 0)):
        evaluate_run(opened(folder), "ce20", epsilon=epsilon, seed=seed)
    found = read(folder / FILE)
    assert [(one.settings.epsilon, one.settings.seed) for one in found] == [(0.1, 1), (0.05, 0), (0.1, 0)]
    with np.load(folder / FILE) as arrays:
        assert {"ce20", "others/1/ce20", "others/2/ce20"} <= set(arrays)


def test_verdicts_of_other_weights_or_images_are_not_used(folder: Path) -> None:
    run = opened(folder)
    evaluate_run(run, "ce20", epsilon=EPSILON)
    for change in ({"checkpoint_sha256": "0" * 64}, {"images_sha256": "0" * 64}, {"which": "best"}):
        other = Settings(**(vars(settings_of(run, EPSILON, 0, "fp32")) | change))
        assert not Keeper(folder, other).found.parts
    assert Keeper(folder, settings_of(run, EPSILON, 0, "fp32")).found.parts


def settings(images: int = 5, **changes: object) -> Settings:
    fields = {"which": "last", "checkpoint_sha256": "a", "images_sha256": "b", "network": "n", "precision": "fp32"}
    return Settings(**(fields | {"images": images, "epsilon": 0.1, "seed": 0} | changes))  # type: ignore[arg-type]


def test_two_processes_keep_what_both_have_found(tmp_path: Path) -> None:
    one, other = Keeper(tmp_path, settings()), Keeper(tmp_path, settings())
    one.found.parts["clean"], other.found.parts["ce20"] = Verdicts.unknown(5), Verdicts.unknown(5)
    one.found.parts["clean"].add(Finding(torch.tensor([1, 3]), torch.tensor([True, False])))
    for keeper in (one, other):
        keeper.write()
    (found,) = read(tmp_path / FILE)
    assert set(found.parts) == {"clean", "ce20"}
    assert found.parts["clean"].right.tolist() == [UNKNOWN, RIGHT, UNKNOWN, FOOLED, UNKNOWN]


def test_the_file_is_written_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(per_image.time, "monotonic", lambda: clock[0])
    keeper = Keeper(tmp_path, settings())
    keeper.keep()
    assert not (tmp_path / FILE).exists()
    clock[0] = 1.0
    keeper.keep()
    written = (tmp_path / FILE).stat().st_ino
    keeper.keep()
    assert (tmp_path / FILE).stat().st_ino == written
    keeper.write()
    assert (tmp_path / FILE).stat().st_ino != written


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def replaced(path: Path, **changes: np.ndarray | None) -> None:
    with np.load(path) as arrays:
        content = {name: arrays[name] for name in arrays} | changes
    with path.open("w+b") as file:
        np.savez(file, **{name: array for name, array in content.items() if array is not None})  # type: ignore[arg-type]
        sealed.seal(file)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (damage, "is damaged"),
        (cut, "is cut short"),
        (lambda path: path.write_bytes(b""), "is cut short"),
        (lambda path: replaced(path, **{"parts/ce20": None}), "cannot be used"),
        (lambda path: replaced(path, **{"parts/ce20": np.zeros(3, np.int8)}), "cannot be used"),
        (lambda path: replaced(path, **{"parts/ce20": np.full(IMAGES, 7, np.int8)}), "cannot be used"),
        (lambda path: replaced(path, **{"parts/clean/odd": np.zeros(IMAGES)}), "cannot be used"),
        (lambda path: replaced(path, about=np.array("[]")), "cannot be used"),
        (lambda path: replaced(path, about=np.array('{"evaluations": [{"settings": 3}]}')), "cannot be used"),
        (lambda path: replaced(path, about=None), "cannot be used"),
    ],
)
def test_a_file_that_cannot_be_believed_is_kept_and_the_attacks_run_again(folder: Path, harm: object, why: str) -> None:
    first = evaluate_run(opened(folder), "clean,ce20", epsilon=EPSILON)
    (folder / "evaluation.json").unlink()
    harm(folder / FILE)  # type: ignore[operator]
    with pytest.warns(
        UserWarning, match=rf"{FILE} {why}.*; the attacks run again, and it is kept as evaluation.damaged"
    ):
        again = evaluate_run(opened(folder), "clean,ce20", epsilon=EPSILON)
    assert torch.equal(again["ce20"].right, first["ce20"].right)
    assert (folder / "evaluation.damaged.npz").exists()
    assert len(read(folder / FILE)) == 1


def test_a_disk_that_is_full_costs_no_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(per_image, "_save", full)
    with pytest.warns(UserWarning, match=r"evaluation\.npz cannot be written \(No space left on device\)") as caught:
        found = evaluate_run(opened(folder), "clean,ce20", epsilon=EPSILON)
    assert len([one for one in caught if FILE in str(one.message)]) == 1
    assert found["ce20"].accuracy < 100


def start(folder: Path, *, ranks: int = 1) -> subprocess.Popen[str]:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks) if ranks > 1 else ()
    return python(*launcher, "-m", "rmcla_fast.cli", "evaluate", folder, *OPTIONS)


def finished(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


@pytest.mark.slow
def test_two_ranks_give_the_verdicts_of_one_process(folder: Path, expected: dict[str, Tensor]) -> None:
    process = start(folder, ranks=2)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_equal(kept(folder), expected)
    assert said.count("APGD-CE") + said.count("CE20") == 1  # one table, by rank 0
    assert (folder / "evaluation.png").exists()


@pytest.mark.slow
def test_a_lost_rank_ends_all_and_the_same_command_goes_on(folder: Path, expected: dict[str, Tensor]) -> None:
    process = start(folder, ranks=2)
    deadline = time.monotonic() + 60
    while not (folder / FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    if ranks:
        subprocess.run(["kill", "-9", ranks[-1]], check=False)
    process.communicate(timeout=120)
    finished(start(folder, ranks=2))
    assert_equal(kept(folder), expected)
