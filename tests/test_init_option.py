"""`rmcla train --init`: what a run starts from, what its record says, and one sentence where it cannot."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from model_libraries import (
    hugging_face_folder,
    image_folder,
    in_hugging_face_cache,
    library,
    saved,
    small_cnn_weights,
)
from run_cases import free_ports, place, read_checkpoint, rmcla, small
from torch import Tensor

import rmcla_fast
from rmcla_fast import models
from rmcla_fast.errors import UserError
from rmcla_fast.training import train

QUICK = ("--data", "digits", "--images-per-class", 10, "--epochs", 1, "--device", "cpu", "--monitor-images", 0, "-q")
STILL = ("--lr", 1e-30, "--weight-decay", 0)  # the updates do not change the weights


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "holds no weights: it must be a safetensors file, or a state dict that torch.save wrote"),
        (b"no weights", "holds no weights: it must be a safetensors file"),
        (
            lambda: models.create("small-cnn", 10, 1),
            "holds no weights: it must be a safetensors file, or a state dict that torch.save wr",
        ),
        (list, "neither its content nor an entry state_dict, model, model_state_dict in it is a dictionary of tensors"),
        (dict, "neither its content nor"),
        (lambda: {"state_dict": {"a": 1}}, "neither its content nor"),
        (lambda: torch.ones(3), "neither its content nor"),
        (lambda: {"stem.weight": torch.ones(2)}, "do not fit the model small-cnn: "),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(
    content: Any, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        saved(content(), path)
    assert rmcla("train", *QUICK, "--init", path, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert f"--init {path} " in said
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_damaged_safetensors_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library("safetensors")
    path = tmp_path / "weights"
    for header in (b"{" + b"x" * 90, b"{}      ", b"{}"):
        path.write_bytes(b"\x08" + bytes(7) + header + bytes(9))
        assert rmcla("train", *QUICK, "--init", path, "--out", tmp_path / "run") == 2
        said = capsys.readouterr().err
        assert f"--init {path} holds no weights: " in said
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--init none", "none does not exist; name a file, a run folder, or pretrained"),
        ("--init folder", "folder is no run folder, since it has no checkpoint.pt; name a file, a run folder, or pret"),
        ("--init pipe", "pipe is not a file"),
        ("--init pretrained", "only timm:NAME, hf:NAME and torchvision:NAME have pretrained weights; got 'small-cnn'"),
        ("--init weights --init-sha256 12ab", "--init-sha256 must be 64 hexadecimal digits; got 12ab"),
        (f"--init weights --init-sha256 {'0' * 64}", "are not those that the run was started with: their SHA-256 is"),
        (f"--init-sha256 {'0' * 64}", "--init-sha256 needs the weights that it belongs to; give --init"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    arguments: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    saved(small_cnn_weights(), tmp_path / "weights")
    assert rmcla("train", *QUICK, *arguments.split(), "--out", "run") == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_safetensors_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\x08" + bytes(7) + b"{      }" + bytes(9))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert rmcla("train", *QUICK, "--init", tmp_path / "w.safetensors", "--out", tmp_path / "run") == 2
    assert "needs safetensors, which is not installed; pip install safetensors" in capsys.readouterr().err


def near(one: Tensor, other: Tensor) -> bool:
    """Return whether the tensors are equal, but for updates at a rate of nearly nothing."""
    return torch.allclose(one, other, rtol=0, atol=1e-20)


def weights_of(out: Path, entry: str = "model") -> dict[str, Tensor]:
    return read_checkpoint(out / "checkpoint.pt")[entry]


def test_a_run_starts_from_a_file_and_records_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is resumed without the file, and a repeat from its config.json notices another file."""
    weights = small_cnn_weights()
    path = saved(weights, tmp_path / "weights.pt")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.chdir(tmp_path)
    assert rmcla("train", *QUICK, *STILL, "--init", "weights.pt", "--epochs", 2, "--out", "run") == 0
    assert all(near(one, weights[name]) for name, one in weights_of(tmp_path / "run").items())
    recorded = json.loads((tmp_path / "run/config.json").read_text())
    assert (recorded["init"], recorded["init_sha256"]) == (str(path), sha256)
    repeat = ("--init", recorded["init"], "--init-sha256", recorded["init_sha256"])
    assert rmcla("train", *QUICK, *repeat, "--out", "repeated") == 0
    path.write_bytes(saved(small_cnn_weights(7), tmp_path / "other.pt").read_bytes())
    assert rmcla("train", *QUICK, *repeat, "--out", "changed") == 2
    path.unlink()
    assert rmcla("train", "--resume", "--init", "weights.pt", "--out", "run") == 0
    monkeypatch.chdir("/")
    assert rmcla("train", "--resume", "--out", tmp_path / "run") == 0
    assert rmcla("train", "--resume", "--init", tmp_path / "other.pt", "--out", tmp_path / "run") == 2


def test_a_run_that_has_no_checkpoint_yet_starts_again_from_the_same_weights_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = saved(small_cnn_weights(), tmp_path / "weights.pt"), tmp_path / "run"
    assert rmcla("train", *QUICK, "--init", path, "--out", out) == 0
    before = weights_of(out)
    (out / "checkpoint.pt").unlink()
    assert rmcla("train", "--resume", "-q", "--out", out) == 0
    assert all(torch.equal(one, before[name]) for name, one in weights_of(out).items())
    (out / "checkpoint.pt").unlink()
    saved(small_cnn_weights(seed=2), path)
    capsys.readouterr()
    assert rmcla("train", "--resume", "-q", "--out", out) == 2
    assert "are not those that the run was started with" in capsys.readouterr().err


def test_a_run_starts_from_the_average_of_another_run(tmp_path: Path) -> None:
    """A checkpoint may be named, too. The best one has the average or the weights, whichever were more accurate."""
    first = small(tmp_path / "first", ema=0.9, epochs=4)
    train(first)
    average = rmcla_fast.load(tmp_path / "first").state_dict()
    still = {"lr": 1e-30, "weight_decay": 0.0, "epochs": 1, "ema": 0.5}
    for name, init in (("run", tmp_path / "first"), ("file", tmp_path / "first/checkpoint.pt")):
        train(small(tmp_path / name, init=init, **still))
        for entry in ("model", "ema"):
            found = weights_of(tmp_path / name, entry)
            assert all(near(one, average[key]) for key, one in found.items()), entry
    train(small(tmp_path / "best", init=tmp_path / "first/best.pt", **still))
    best = rmcla_fast.load(tmp_path / "first", which="best").state_dict()
    assert all(near(one, best[key]) for key, one in weights_of(tmp_path / "best").items())
    (tmp_path / "first/checkpoint.pt").write_bytes((tmp_path / "first/checkpoint.pt").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"checkpoint\.pt is cut short"):
        train(small(tmp_path / "damaged", init=tmp_path / "first"))


def test_a_run_says_what_it_starts_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(small_cnn_weights(7), tmp_path / "weights.pt")
    fast = ("--protocol", "fastat", "--model", "small-cnn", "--monitor-images", 0, "--batch-size", 32)
    options = ("--data", "digits", "--images-per-class", 10, *fast, "--epochs", 1, "--device", "cpu")
    assert rmcla("train", *options, "--init", path, "--out", tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert f"the run starts from the weights of --init {path}\n" in said
    assert "has 7 classes in these weights and 10 here, so it starts with new weights" in said
    assert "--protocol fastat trains from random weights; the run starts from --init" in said
    assert rmcla("train", "--resume", "--out", tmp_path / "run") == 0
    assert "starts from" not in capsys.readouterr().err


def test_weights_of_the_same_seed_do_not_depend_on_the_file(tmp_path: Path) -> None:
    """Reading the weights draws no random number that the rest of the run would miss: noise, order, dropout."""
    torch.manual_seed(0)
    path = saved(models.create("small-cnn", 10, 1).state_dict(), tmp_path / "weights.pt")
    train(small(tmp_path / "from seed", seed=0))
    train(small(tmp_path / "from file", seed=0, init=path))
    pairs = zip(*(weights_of(tmp_path / name).values() for name in ("from seed", "from file")), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    "model", ["timm:test_resnet", "timm:test_vit.r160_in1k", "torchvision:resnet18", "torchvision:googlenet"]
)
def test_pretrained_weights_come_from_the_cache(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of torchvision are in the cache of torch, and those of timm in that of Hugging Face."""
    prefix, _, name = model.partition(":")
    module = library(prefix)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(library("huggingface_hub.constants"), "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    options = ("--data", "folder", "--data-dir", image_folder(tmp_path / "images"), "--batch-size", 4, "--epochs", 1)
    command = ("train", *options, "--monitor-images", 0, "--device", "cpu", "--model", model, "--init", "pretrained")
    assert rmcla(*command, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert f"the weights of {model} are not in your cache; load them once with: python -c" in said
    torch.manual_seed(0)
    if prefix == "timm":
        network = module.create_model(name)  # type: ignore[attr-defined]
        in_hugging_face_cache(tmp_path / "hf", f"timm/{name.split('.')[0]}.r160_in1k", network.state_dict())
    else:
        url = module.models.get_model_weights(name).DEFAULT.url  # type: ignore[attr-defined]
        network = module.models.get_model(name)  # type: ignore[attr-defined]
        path = tmp_path / "torch/hub/checkpoints" / url.rpartition("/")[2]
        path.parent.mkdir(parents=True)
        saved(network.state_dict(), path)
    assert rmcla(*command, *STILL, "--out", tmp_path / "run") == 0
    assert "has 1000 classes in these weights and 3 here" in capsys.readouterr().err
    found = dict(rmcla_fast.load(tmp_path / "run").network.named_parameters())
    same = [key for key, one in network.named_parameters() if key in found and one.shape == found[key].shape]
    # The classifier's weight and bias are new, and timm fits the embedding of positions to the size of the images.
    assert len(same) == len(found) - (3 if "vit" in model else 2)
    assert all(near(found[key], network.get_parameter(key)) for key in same)
    recorded = json.loads((tmp_path / "run/config.json").read_text())
    assert recorded["init"] == "pretrained"
    assert len(recorded["init_sha256"]) == 64


def test_pretrained_weights_of_a_folder_of_hugging_face(tmp_path: Path) -> None:
    network = hugging_face_folder(tmp_path / "net")
    options = (*QUICK, *STILL, "--model", f"hf:{tmp_path}/net")
    assert rmcla("train", *options, "--init", "pretrained", "--out", tmp_path / "a") == 0
    assert rmcla("train", *options, "--init", tmp_path / "net/model.safetensors", "--out", tmp_path / "b") == 0
    for name in "ab":
        found = rmcla_fast.load(tmp_path / name).network
        for key, one in network.named_parameters():
            assert key.startswith("classifier") or near(found.get_parameter(key), one), key
    digests = [json.loads((tmp_path / name / "config.json").read_text())["init_sha256"] for name in "ab"]
    assert digests[0] == digests[1] == hashlib.sha256((tmp_path / "net/model.safetensors").read_bytes()).hexdigest()


def test_a_model_of_hugging_face_without_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = library("transformers")
    hugging_face_folder(tmp_path / "net")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "net")  # type: ignore[attr-defined]
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "net")  # type: ignore[attr-defined]
    options = (*QUICK[:-1], "--model", f"hf:{tmp_path}/net", "--init", "pretrained")
    capsys.readouterr()
    assert rmcla("train", *options, "--out", tmp_path / "run") == 0
    assert "is not among these weights, so it starts with new weights" in capsys.readouterr().err


def rank(number: int, port: int, out: Path, path: Path) -> None:
    place(number, port)
    train(small(out, epochs=1, lr=1e-30, weight_decay=0.0, ema=0.5, init=path))


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_several_ranks_start_from_the_same_weights(tmp_path: Path) -> None:
    path = saved(small_cnn_weights(), tmp_path / "weights.pt")
    mp.spawn(rank, (*free_ports(1), tmp_path / "run", path), nprocs=2)
    for entry in ("model", "ema"):
        found = weights_of(tmp_path / "run", entry)
        assert all(near(one, found[name]) for name, one in small_cnn_weights().items())


def test_reproduce_trains_a_network_of_a_library_in_a_folder_of_one_name(tmp_path: Path) -> None:
    hugging_face_folder(tmp_path / "net")
    command = ("reproduce", "table4", "--data", "digits", "--epochs", 1, "--device", "cpu", "--batch-size", 64)
    assert rmcla(*command, "--model", f"hf:{tmp_path}/net", "--out", tmp_path / "out") == 0
    assert all((run / "config.json").exists() for run in (tmp_path / "out/runs").iterdir())
