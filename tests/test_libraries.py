"""`--model timm:NAME`, `hf:NAME` and `torchvision:NAME`: networks that are trained, resumed and evaluated."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from model_libraries import DIGITS, QUICK, hugging_face_folder, image_folder, in_hugging_face_cache, library, saved
from run_cases import read_checkpoint, rmcla

import rmcla_fast
from rmcla_fast import models
from rmcla_fast.evaluation.run import own_factory
from rmcla_fast.models.libraries import LibraryModel

pytestmark = pytest.mark.usefixtures("offline")
ATTACK = ("--attacks", "clean,fgsm", "--images", 6, "--device", "cpu")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


def trained_resumed_and_evaluated(model: str, out: Path, *data: object) -> LibraryModel:
    """Train a network, resume its run, and evaluate it, none of which names it again."""
    assert rmcla("train", *data, *QUICK, "-q", "--model", model, "--out", out, "--epochs", 2) == 0
    assert rmcla("train", "--resume", "-q", "--out", out) == 0
    assert rmcla("evaluate", out, *ATTACK) == 0
    network = rmcla_fast.load(out)
    assert isinstance(network, LibraryModel)
    return network


def test_a_network_of_timm(tmp_path: Path) -> None:
    library("timm")
    network = trained_resumed_and_evaluated("timm:test_resnet", tmp_path / "run", *DIGITS)
    assert network.network.fc.weight.shape[0] == 10
    assert network.network.conv1[0].in_channels == 1
    assert network.normalize.mean.flatten().tolist() == [0.5]


def test_a_vision_transformer_of_timm_is_made_for_the_size_of_the_images(images: Path, tmp_path: Path) -> None:
    library("timm")
    data = ("--data", "folder", "--data-dir", images, "--batch-size", 4)
    network = trained_resumed_and_evaluated("timm:test_vit.r160_in1k", tmp_path / "run", *data)
    assert network.network.patch_embed.img_size == (32, 32)
    assert models.create("timm:test_vit", 3).network.patch_embed.img_size == (160, 160)
    wide = models.create("timm:test_vit", 3, image_size=(32, 64))
    assert wide(torch.rand(2, 3, 32, 64)).shape == (2, 3)


def test_a_network_of_torchvision(images: Path, tmp_path: Path) -> None:
    library("torchvision")
    data = ("--data", "folder", "--data-dir", images, "--batch-size", 4)
    network = trained_resumed_and_evaluated("torchvision:squeezenet1_1", tmp_path / "run", *data)
    torch.testing.assert_close(network.normalize.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(network.normalize.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_classifiers_of_torchvision_that_only_training_uses_are_left_out(name: str) -> None:
    """They would get no gradient, since the loss is that of the logits alone."""
    library("torchvision")
    model = models.create(f"torchvision:{name}", 3).train()
    logits = model(torch.rand(2, 3, 96, 96))
    logits.sum().backward()
    assert logits.shape == (2, 3)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_folder_of_hugging_face(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is resumed and evaluated from another working folder, although the name has a relative path."""
    hugging_face_folder(tmp_path / "net", kind=kind, processor={"image_mean": [0.25], "image_std": [0.5]})
    monkeypatch.chdir(tmp_path)
    assert rmcla("train", *DIGITS, *QUICK, "-q", "--model", "hf:net", "--out", "run") == 0
    monkeypatch.chdir("/")
    network = trained_resumed_and_evaluated(f"hf:{tmp_path}/net", tmp_path / "other", *DIGITS)
    assert rmcla_fast.load(tmp_path / "run")(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert network.normalize.mean.flatten().tolist() == [0.25]
    assert rmcla("compare", tmp_path / "run", tmp_path / "other", *ATTACK, "--out", tmp_path / "compared") == 0
    assert read_checkpoint(tmp_path / "run/checkpoint.pt")["config"]["model"] == f"hf:{tmp_path}/net"


def test_a_folder_of_hugging_face_that_has_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hugging_face_folder(tmp_path / "net")
    assert rmcla("train", *DIGITS, *QUICK, "-q", "--model", f"hf:{tmp_path}/net", "--out", tmp_path / "run") == 0
    (tmp_path / "net").rename(tmp_path / "moved")
    capsys.readouterr()
    assert rmcla("evaluate", tmp_path / "run", *ATTACK) == 2
    assert f"there is no folder {tmp_path}/net for hf:{tmp_path}/net" in capsys.readouterr().err
    moved = f"hf:{tmp_path}/moved"
    assert rmcla("evaluate", tmp_path / "run", *ATTACK, "--model", moved) == 0
    assert own_factory(f"hf:{tmp_path}/net", [moved]) == moved
    assert own_factory("timm:resnet18", [moved]) is None


@pytest.mark.parametrize("old", [False, True])
def test_a_name_in_the_cache_of_hugging_face(
    old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For weights of the old format, transformers would start a thread that asks for converted ones."""
    network = hugging_face_folder(tmp_path / "net")
    weights = in_hugging_face_cache(tmp_path / "home", "us/tiny-vit", network.state_dict())
    (weights.parent / "config.json").write_bytes((tmp_path / "net/config.json").read_bytes())
    if old:
        weights.unlink()
        saved(network.state_dict(), weights.with_name("pytorch_model.bin"))
    monkeypatch.setattr(library("huggingface_hub.constants"), "HF_HUB_CACHE", str(tmp_path / "home/hub"))
    command = ("train", *DIGITS, *QUICK, "--init", "pretrained", "--out")
    assert rmcla(*command, tmp_path / "run", "--model", "hf:us/tiny-vit") == 0
    for thread in threading.enumerate():
        if "conversion" in thread.name:
            thread.join()
    assert "has 7 classes in these weights and 10 here" in capsys.readouterr().err
    assert rmcla(*command, tmp_path / "other", "--model", "hf:us/tiny-vti") == 2
    said = capsys.readouterr().err
    assert "the nearest names are hf:us/tiny-vit; load one into the cache with: hf download us/tiny-vti" in said
    for path in weights.parent.glob("*.[sb]*"):
        path.unlink()
    assert rmcla(*command, tmp_path / "other", "--model", "hf:us/tiny-vit") == 2
    assert "are not in your cache; load them once with: hf download us/tiny-vit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({"image_mean": [0.1], "image_std": [0.2]}, 0.1, 0.2),
        ({"image_mean": [0.1], "image_std": [0.2], "do_normalize": False}, 0.0, 1.0),
        ({"image_mean": [0.1], "image_std": [0.2], "rescale_factor": 2 / 255}, 0.05, 0.1),
        ({"image_mean": [102.0], "image_std": [51.0], "do_rescale": False}, 0.4, 0.2),
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.2, 0.2, 0.2]}, 0.5, 0.5),  # for images of three channels
        ({}, 0.5, 0.5),
        (None, 0.5, 0.5),
    ],
)
def test_images_are_normalised_as_the_image_processor_does(
    processor: dict[str, object] | None, mean: float, std: float, tmp_path: Path
) -> None:
    hugging_face_folder(tmp_path / "net", processor=processor)
    normalize = models.create(f"hf:{tmp_path}/net", 10, 1, image_size=(8, 8)).normalize
    torch.testing.assert_close((normalize.mean.item(), normalize.std.item()), (mean, std))
    own = models.create(f"hf:{tmp_path}/net", 10, 1, (0.3,), (0.7,), (8, 8)).normalize
    torch.testing.assert_close((own.mean.item(), own.std.item()), (0.3, 0.7))


def test_a_network_of_transformers_is_made_for_the_images(tmp_path: Path) -> None:
    hugging_face_folder(tmp_path / "net", dtype="bfloat16")
    model = models.create(f"hf:{tmp_path}/net", 4, 3, image_size=(8, 12))
    assert model(torch.rand(2, 3, 8, 12)).shape == (2, 4)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_code_in_a_folder_of_hugging_face_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library("transformers")
    (tmp_path / "net").mkdir()
    code = {"AutoConfig": "theirs.C", "AutoModelForImageClassification": "theirs.M"}
    (tmp_path / "net/config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": code}))
    (tmp_path / "net/theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert rmcla("train", *DIGITS, *QUICK, "--model", f"hf:{tmp_path}/net", "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "cannot be made for 10 classes" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "ran").exists()
