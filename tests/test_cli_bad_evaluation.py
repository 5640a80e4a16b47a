"""`rmcla evaluate`, `compare`, `gradients`, `reproduce`: one sentence for each bad run, option or installation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from data_files import write_folder, write_image
from evaluation_cases import hide_extras
from run_cases import change_checkpoint, rmcla, small

from rmcla_fast.training import checkpoint, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small(tmp_path_factory.mktemp("runs") / "run", epochs=1))


BAD = [
    (
        ("evaluate", "{run}", "--attacks", "pgd7"),
        "attacks must be among clean, fgsm, ce10, ce20, ce50, ce100, ce1000, cw100, mi, cw-l2-a, cw-l2-b, "
        "deepfool-l2, apgd-ce, apgd-t, apgd, autoattack; did you mean 'apgd'? got 'pgd7'",
    ),
    (("evaluate", "{run}", "--attacks", ""), "attacks must name at least one of clean, fgsm"),
    (("evaluate", "{run}", "--epsilon", "8"), "8/255"),
    (("evaluate", "{run}", "--epsilon", "0"), "--epsilon must lie in (0, 1]"),
    (("evaluate", "{run}", "--epsilon", "1.5"), "epsilon is for images in [0, 1] and 1.5 is above 1"),
    (("evaluate", "{run}", "--epsilon", "-0.1"), "epsilon must lie in [0, 1]; got -0.1"),
    (("evaluate", "{run}", "--epsilon", "nan"), "epsilon must lie in [0, 1]; got nan"),
    (("evaluate", "{run}", "--restarts", "0"), "Invalid value for '--restarts'"),
    (("evaluate", "{run}", "--images", "0"), "--images must be at least 1"),
    (("evaluate", "{run}", "--device", "cuda:99"), "--device cuda:99 cannot be used"),
    (("evaluate", "{run}", "--robustbench", "x.json"), "--robustbench needs clean and autoattack"),
    (
        ("evaluate", "{run}", "--attacks", "clean,autoattack", "--robustbench", "x.json", "--precision", "bf16"),
        "--robustbench takes figures in fp32: leave out --precision bf16",
    ),
    (("evaluate", "{run}", "--precision", "int8"), "--precision must be one of 'fp32', 'bf16', 'fp16'; got 'int8'"),
    (("compare", "{run}", "--precision", "16"), "--precision must be one of 'fp32', 'bf16', 'fp16'; got '16'"),
    (("evaluate", "{run}", "--json", "{run}/evaluation.npz"), "evaluation.npz belongs to the run; name another file"),
    (("evaluate", "{run}", "--json", "{run}/best.pt"), "best.pt belongs to the run; name another file"),
    (("evaluate", "{run}", "--json", ""), ". is a folder; name a file to write"),
    (("gradients", "{run}", "--json", "{run}/checkpoint.pt"), "checkpoint.pt belongs to the run; name another file"),
    (
        ("evaluate", "{run}", "--attacks", "clean,autoattack", "--robustbench", "{run}/config.json"),
        "config.json belongs to the run; name another file",
    ),
    (("evaluate", "{missing}"), "there is no run folder"),
    (("evaluate", "{empty}"), "it has no checkpoint.pt"),
    (("evaluate", "{uncheckpointed}"), "there is no checkpoint"),
    (("evaluate", "{misfit}"), "do not fit"),
    (("gradients", "{missing}"), "there is no run folder"),
    (("compare", "{run}", "{other}"), "trained with different epsilons"),
    (("reproduce", "table9"), "no table is called 'table9'"),
    (("reproduce", "fastat", "--data", "cifar11"), "unknown data set 'cifar11'; did you mean 'cifar10'?"),
    (("reproduce", "fastat", "--data", "digits", "--model", "resnet19"), "resnet19"),
    (("reproduce", "fastat", "--epochs", "0"), "--epochs must be at least 1; got 0"),
    (("reproduce", "table2", "--seeds", "a"), "--seeds must be whole numbers"),
    (("reproduce", "table2", "--seeds", ""), "--seeds must name at least one"),
    (("reproduce", "table2", "--seeds", "0,-1"), "--seeds must be whole numbers in [0, 2^32)"),
    (("reproduce", "table2", "--epochs", "0"), "--epochs must be at least 1; got 0"),
    (("reproduce", "table2", "--precision", "int8"), "--precision must be one of fp32, bf16, fp16; got int8"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_each_error_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], sentence: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {"run": run, "missing": tmp_path / "missing"}
    for name in ("empty", "uncheckpointed", "misfit", "other"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
    shutil.copy(run / "config.json", folders["uncheckpointed"])
    for name in ("misfit", "other"):
        shutil.copy(run / "checkpoint.pt", folders[name])
    change_checkpoint(folders["other"] / "checkpoint.pt", config={"epsilon": 0.1})
    weights = checkpoint.read(run / "checkpoint.pt").model
    cut = {name: value[:1] for name, value in weights.items() if value.dim()}
    change_checkpoint(folders["misfit"] / "checkpoint.pt", model=cut)
    files = {path: path.read_bytes() for path in run.iterdir()}
    code = rmcla(
        *(argument.format(**folders) for argument in arguments),
        *(["--out", tmp_path / "o"] * (arguments[0] == "reproduce")),
    )
    error = capsys.readouterr().err
    assert code == 2
    assert sentence in error
    last = error.strip().splitlines()[-1]
    assert last.startswith("rmcla: ")
    assert "Traceback" not in error
    assert {path: path.read_bytes() for path in run.iterdir()} == files


def test_a_missing_extra_is_one_sentence(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide_extras(monkeypatch)
    assert rmcla("evaluate", run, "--images", 10, "--attacks", "clean,mi") == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("rmcla: ")
    assert "pip install 'rmcla-fast[eval]'" in said.splitlines()[-1]


def test_a_model_that_answers_nan_is_misclassified_and_reported(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run / "checkpoint.pt", tmp_path)
    weights = {
        name: torch.full_like(value, float("nan")) if value.is_floating_point() else value
        for name, value in checkpoint.read(run / "checkpoint.pt").model.items()
    }
    change_checkpoint(tmp_path / "checkpoint.pt", model=weights)
    assert rmcla("evaluate", tmp_path, "--images", 40, "--attacks", "clean,ce20", "--json", tmp_path / "out.json") == 0
    found = json.loads((tmp_path / "out.json").read_text())["attacks"]
    assert [found[name]["accuracy"] for name in ("clean", "ce20")] == [0, 0]
    printed = " ".join(capsys.readouterr().out.split())
    assert "returned NaN, infinity or too large numbers on 40 clean images, which count as misclassified" in printed


def test_a_data_set_with_a_new_class_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL.Image", reason="pip install 'rmcla-fast[train]'")
    root = write_folder(tmp_path / "data")
    options = {"data": "folder", "data_dir": str(root), "model": "small-cnn", "batch_size": 2, "monitor_images": 0}
    run = train(small(tmp_path / "run", **options, images_per_class=None, epochs=1))
    for split in ("train", "test"):
        write_image(root / split / "horse" / "0.png", 1)
    for command, written in (
        (("evaluate", run, "--attacks", "clean"), "evaluation.json"),
        (("gradients", run), "gradients.json"),
    ):
        assert rmcla(*command) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"rmcla: {run} was trained on other classes: class 2 was not there and is horse in the data set" in said
        assert not (run / written).exists()
