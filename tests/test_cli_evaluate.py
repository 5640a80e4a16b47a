"""`rmcla evaluate`, `gradients` and `compare` on runs of digits: what they print, save and draw."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import change_checkpoint, rmcla

from rmcla_fast.attacks.suite import AttackResult, ModelUnderAttack
from rmcla_fast.cli import evaluate as evaluate_command
from rmcla_fast.errors import UserError
from rmcla_fast.evaluation import masking, plots
from rmcla_fast.evaluation.curves import loss_surface, over_epsilon, over_iterations
from rmcla_fast.evaluation.robustbench import entry
from rmcla_fast.evaluation.run import load_data, open_run
from rmcla_fast.training import TrainConfig, checkpoint, train

matplotlib_image = pytest.importorskip("matplotlib.image", reason="pip install 'rmcla-fast[train]'")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: train(TrainConfig(data="digits", recipe=name, epochs=2, out=str(folder / name), threads=1))
        for name in ("standard", "r-mc-la")
    }


def is_picture(path: Path) -> bool:
    pixels = matplotlib_image.imread(path)
    return bool(pixels.std() > 0.01) and min(pixels.shape[:2]) > 200


def test_evaluate_prints_saves_and_draws(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, target = runs["r-mc-la"], tmp_path / "sub" / "out.json"
    assert rmcla("evaluate", run, "--images", 100, "--epsilon", "16/255", "--json", target, "--gallery") == 0
    printed = capsys.readouterr()
    document = json.loads(target.read_text())
    assert set(document) == {"epsilon", "attacks", "model", "data"}
    assert (document["epsilon"], document["model"], document["data"]) == ("16/255", "small-cnn", "digits")
    assert list(document["attacks"]) == ["clean", "fgsm", "ce20", "cw100"]
    for one in document["attacks"].values():
        assert one["images"] == 100
        assert 0 <= one["accuracy"] <= 100
    assert "AutoAttack" in printed.out
    assert "not run" in printed.out
    assert "ublished" not in printed.out  # the paper has no figures for digits
    assert "evaluation.json" in printed.err  # says what it will write
    assert is_picture(run / "evaluation.png")
    assert is_picture(run / "gallery.png")


def test_known_attacks_are_not_run_again(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    result = ModelUnderAttack.result

    def spy(self: ModelUnderAttack, name: str, *args: Any) -> AttackResult:
        asked.append(name)
        return result(self, name, *args)

    monkeypatch.setattr(ModelUnderAttack, "result", spy)
    command = ("evaluate", runs["standard"], "--images", 40)
    assert rmcla(*command, "--attacks", "clean,fgsm") == 0
    assert rmcla(*command, "--attacks", "clean,fgsm,ce20") == 0
    assert asked == ["clean", "fgsm", "ce20"]
    assert rmcla(*command, "--attacks", "ce20", "--restarts", 2) == 0
    assert rmcla(*command, "--attacks", "clean", "--seed", 1) == 0
    assert rmcla(*command, "--attacks", "clean", "--fresh", "--seed", 1) == 0
    assert asked[3:] == ["ce20", "clean", "clean"]


def test_every_output_names_a_precision_other_than_fp32(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, target = shutil.copytree(runs["r-mc-la"], tmp_path / "run"), tmp_path / "out.json"
    (run / "evaluation.json").unlink(missing_ok=True)
    command = ("evaluate", run, "--images", 20, "--attacks", "clean,fgsm", "--json", target)
    titles: list[str] = []
    draw = plots.evaluation
    monkeypatch.setattr(plots, "evaluation", lambda *a, title, **k: (titles.append(title), draw(*a, title=title, **k)))
    for precision, said in (("bf16", True), ("fp32", False)):
        assert rmcla(*command, "--precision", precision, "--gallery") == 0
        printed = capsys.readouterr()
        words = " ".join(printed.out.split())
        assert ("epsilon 0.15, bf16" in words) == said
        assert ("in bf16 under clean, FGSM; the accuracy to publish is that in fp32." in words) == said
        assert ("bf16" in printed.err) == ("bf16" in titles[-1]) == said
        entries = json.loads(target.read_text())["attacks"].values()
        assert [entry.get("precision") for entry in entries] == ["bf16" if said else None] * 2
    assert rmcla("compare", run, "--images", 20, "--precision", "bf16", "--out", tmp_path / "out") == 0
    assert "epsilon 0.15, bf16" in " ".join(capsys.readouterr().out.split())
    (found,) = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {entry["precision"] for entry in found["attacks"].values()} == {"bf16"}
    assert found["ce20_over_epsilon"]["0.15"] == pytest.approx(found["attacks"]["ce20"]["accuracy"], abs=1e-3)


def test_a_stopped_evaluation_keeps_what_is_done(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["standard"], run)
    (run / "evaluation.json").unlink(missing_ok=True)
    result = ModelUnderAttack.result

    def stop(self: ModelUnderAttack, name: str, *args: Any) -> AttackResult:
        if name == "ce20":
            raise KeyboardInterrupt
        return result(self, name, *args)

    monkeypatch.setattr(ModelUnderAttack, "result", stop)
    assert rmcla("evaluate", run, "--images", 40) == 130
    assert "goes on from there" in capsys.readouterr().err
    assert list(json.loads((run / "evaluation.json").read_text())["attacks"]) == ["clean", "fgsm"]


def test_a_stop_outside_the_attacks_is_one_sentence(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_command, "open_run", stop)
    assert rmcla("evaluate", runs["standard"]) == 130
    assert capsys.readouterr().err == "rmcla: stopped at once by SIGINT\n"


def test_gradients(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs["r-mc-la"]
    assert rmcla("gradients", run, "--json", tmp_path / "g.json") == 0
    found = json.loads((tmp_path / "g.json").read_text())
    assert found == json.loads((run / "gradients.json").read_text())
    assert found["images"] == 360
    ratio = found["paper_scale"]["max"] / found["strict_scale"]["max"]
    assert ratio == pytest.approx(255**2 / 510)
    printed = capsys.readouterr().out
    assert "our inference" in " ".join(printed.split())
    assert is_picture(run / "gradients.png")


def test_compare(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "comparison"
    assert rmcla("compare", *runs.values(), "--images", 60, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "r-mc-la: no sign of gradient masking, but AutoAttack has not been run" in " ".join(printed.split())
    assert is_picture(out / "comparison.png")
    assert is_picture(out / "details.png")
    found = json.loads((out / "comparison.json").read_text())
    assert [one["recipe"] for one in found] == ["standard", "r-mc-la"]
    for one in found:
        assert one["ce20_over_epsilon"]["0"] == pytest.approx(one["attacks"]["clean"]["accuracy"])
        assert one["ce20_over_epsilon"]["0.15"] == pytest.approx(one["attacks"]["ce20"]["accuracy"], abs=1e-3)
        assert len(one["pgd_over_iterations"]) == 100
        assert one["pgd_over_iterations"] == sorted(one["pgd_over_iterations"], reverse=True)
        assert one["pgd_over_iterations"][19] == pytest.approx(one["attacks"]["ce20"]["accuracy"], abs=1e-3)


def test_a_robustbench_entry_has_their_names_and_kinds(runs: dict[str, Path]) -> None:
    run = open_run(runs["r-mc-la"], images=2)
    options = dataclasses.replace(run.record.options, model="wrn-28-10")
    run = dataclasses.replace(run, record=dataclasses.replace(run.record, options=options))
    results = {name: AttackResult(accuracy, 2, 0.1) for name, accuracy in (("clean", 92.8), ("autoattack", 29.349))}
    found = entry(run, results, 8 / 255)
    theirs = {  # RobustBench's own entry of this method, model_info/cifar10/Linf/WangZhang2019Bilateral.json
        "link": "http://openaccess.thecvf.com/content_ICCV_2019/html/...",
        "name": "Bilateral Adversarial Training",
        "authors": "Jianyu Wang, Haichao Zhang",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "ICCV 2019",
        "architecture": "WideResNet-28-10",
        "eps": "8/255",
        "clean_acc": "92.80",
        "reported": "58.6",
        "autoattack_acc": "29.35",
    }
    assert {name: type(found[name]) for name in theirs} == {name: type(value) for name, value in theirs.items()}
    for name in ("additional_data", "number_forward_passes", "architecture", "eps", "clean_acc", "autoattack_acc"):
        assert found[name] == theirs[name]
    assert float(found["reported"]) == 29.35
    assert set(found) - set(theirs) == {"unreliable", "footnote"}
    assert "1811.10716" in found["link"]
    assert entry(open_run(runs["standard"], images=2), results, 8 / 255)["link"] == ""


def test_a_robustbench_entry_is_written(runs: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "rb.json"
    command = ("evaluate", runs["standard"], "--images", 3, "--attacks", "clean,autoattack")
    assert rmcla(*command, "--epsilon", "128/255", "--robustbench", target) == 0
    found = json.loads(target.read_text())
    assert (found["eps"], found["architecture"], found["additional_data"]) == ("128/255", "small-cnn", False)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (({"clean": 99.0, "fgsm": 80.0, "ce20": 70.0, "autoattack": 68.0},), []),
        (({"fgsm": 60.0, "ce20": 70.0},), ["FGSM is stronger than PGD"]),
        (({"ce20": 60.0, "cw100": 58.0, "autoattack": 29.0},), ["AutoAttack is far below PGD"]),
        (({"clean": 99.0}, [90.0, 90.0, 89.9]), ["3 iterations find no more than 1"]),
        (({"clean": 99.0}, [99.0, 99.0], 95.0, 10), ["2 iterations find no more", "even with epsilon 0.5"]),
        (({"clean": 99.0}, [98.9, 98.8], 0.0, 10), []),
        (({"clean": 99.0}, [99.0, 60.0], 10.0, 10), []),
    ],
)
def test_the_signs_of_gradient_masking(arguments: tuple[object, ...], expected: list[str]) -> None:
    found = masking.signs(*arguments)
    assert len(found) == len(expected)
    for sign, words in zip(found, expected, strict=True):
        assert words in sign


def test_a_verdict_without_autoattack_says_so() -> None:
    assert masking.verdict({"clean": 99.0, "ce20": 80.0}).endswith("AutoAttack has not been run")
    assert masking.verdict({"clean": 99.0, "ce20": 80.0, "autoattack": 78.0}) == "no sign of gradient masking"
    assert masking.verdict({"clean": 10.0, "ce20": 10.0}, chance=10.0).startswith("is no better than chance")


def test_curves_agree_with_each_other_and_leave_the_model_unchanged(runs: dict[str, Path]) -> None:
    run = open_run(runs["r-mc-la"], images=50)
    data = (run.model, run.images, run.labels)
    clean, attacked = over_epsilon(*data, [0.0, 0.1])
    steps = over_iterations(*data, 0.1, steps=20)
    assert steps[-1] == pytest.approx(attacked)
    assert clean >= steps[0]
    grid, loss = loss_surface(run.model, run.images[0], int(run.labels[0]), 0.1, points=5)
    here = torch.nn.functional.cross_entropy(run.model(run.images[:1].float() / 255), run.labels[:1])
    torch.testing.assert_close(loss[2, 2], here.detach())
    assert torch.allclose(grid, torch.tensor([-0.1, -0.05, 0.0, 0.05, 0.1]))
    assert loss[4, 2] > loss[0, 2]  # along the gradient it rises
    assert all(parameter.requires_grad for parameter in run.model.parameters())


def test_a_missing_accuracy_is_labelled_and_has_no_bar() -> None:
    axes = plots.new_figure(4, 3).subplots()
    plots.accuracy_bars(axes, {"run": {"clean": 99.0, "autoattack": "not run"}}, ["clean", "autoattack"])
    assert "not run" in [text.get_text() for text in axes.texts]
    assert len([bar for bar in axes.patches if bar.get_height() > 0]) == 1


def test_a_share_of_a_folder_has_every_class_and_no_unreadable_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pil = pytest.importorskip("PIL.Image", reason="pip install 'rmcla-fast[train]'")
    for split, name, row in itertools.product(("train", "test"), ("cat", "dog"), range(12)):
        (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
        pil.new("L", (8, 8), 10 * row).save(tmp_path / split / name / f"{row:02}.png")
    (tmp_path / "test" / "dog" / "00.png").write_bytes(b"no image")
    options = {"model": "small-cnn", "epochs": 1, "batch_size": 8, "threads": 1, "skip_unreadable": True}
    monkeypatch.chdir(tmp_path)
    folder = train(TrainConfig(data="folder", data_dir=".", out=str(tmp_path / "run"), **options))  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path / "train")  # a run finds its data from any folder
    assert open_run(folder).labels.tolist() == [0] * 12 + [1] * 11
    assert open_run(folder, images=4).labels.tolist() == [0, 0, 0, 1]
    assert len(open_run(folder, images=100).labels) == 23
    for split in ("train", "test"):
        (tmp_path / split / "dog").rename(tmp_path / split / "ant")  # cat was class 0
    load_data.cache_clear()
    with pytest.raises(UserError, match="trained on other classes: class 0 was cat and is ant in the data set"):
        open_run(folder)
    change_checkpoint(folder / checkpoint.LAST, epoch=0, step=0)
    with pytest.raises(UserError, match="class 0 was cat and is ant"):
        train(TrainConfig(out=str(folder), resume=True))
