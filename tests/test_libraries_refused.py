"""One sentence where a network of timm, transformers or torchvision cannot be had, or the library itself."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from model_libraries import DIGITS, QUICK, hugging_face_folder, library
from run_cases import python, rmcla

from rmcla_fast import models
from rmcla_fast.models.libraries import LIBRARIES

pytestmark = pytest.mark.usefixtures("offline")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("timm:resnet19", "no model of timm is called 'resnet19'; the nearest names are timm:"),
        ("timm:ResNet18d", "timm:resnet18d"),
        ("timm:zzzzzzzz", "no model of timm is called 'zzzzzzzz'\n"),
        ("timm:test_vit.other", "timm has no weights 'test_vit.other'; it has those of timm:test_vit.r160_in1k"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", "no model of timm is called 'hf-hub:timm/resnet18.a1_in1k'"),
        ("timm:local-dir:/tmp", "no model of timm is called 'local-dir:/tmp'"),
        ("timm:", "model 'timm:' must have the name of a network after the colon"),
        (
            "timm:test_vit",
            "cannot take images of shape (8, 1, 8, 8): Input height (8) should be divisible by patch size",
        ),
        (
            "torchvision:resnet81",
            "no model of torchvision for the classification of images is called 'resnet81'; the ne",
        ),
        ("torchvision:fcn_resnet50", "the nearest names are torchvision:"),
        ("torchvision:resnet18", "torchvision:resnet18 takes images with 3 channels; those of the data set have 1"),
        ("hf:no/such", "no model of transformers in your cache, and no folder, is called 'no/such'"),
        ("hf:./none", "there is no folder none for hf:./none"),
        ("hf:empty", "has no config.json, so it is no model of transformers"),
        (
            "hf:text",
            "cannot be made for 10 classes and images with 1 channel of 8x8 pixels: Unrecognized configuration",
        ),
        ("hf:a/b/c", "cannot be made for 10 classes and images with 1 channel of 8x8 pixels: Repo id must"),
        ("hf:", "model 'hf:' must have the name of a network after the colon"),
    ],
)
def test_a_network_that_a_library_does_not_have_is_one_sentence(
    model: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = model.partition(":")[0]
    library(LIBRARIES[prefix].package)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/config.json").write_text('{"model_type": "bert"}')
    assert rmcla("train", *DIGITS, *QUICK, "--model", model, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert sentence in said
    assert not (tmp_path / "run").exists()


PREFIXES = pytest.mark.parametrize("prefix", LIBRARIES)


@PREFIXES
def test_a_missing_library_is_one_sentence(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = LIBRARIES[prefix].package
    monkeypatch.setitem(sys.modules, package, None)
    assert rmcla("train", *DIGITS, *QUICK, "--model", f"{prefix}:resnet18", "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert (
        f"model '{prefix}:resnet18' needs {package} {LIBRARIES[prefix].least} or later, which is not installed" in said
    )
    assert "'rmcla-fast[models]'" in said
    assert said.count("\n") == 1
    with pytest.raises(ImportError, match="pip install"):
        models.pretrained(f"{prefix}:resnet18", 10)


@PREFIXES
@pytest.mark.parametrize("version", ["0.9.16", "0.23.1+cu130", "0.5"])
def test_a_library_that_is_too_old_is_one_sentence(prefix: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = LIBRARIES[prefix].package
    old = types.ModuleType(package)
    old.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package, old)
    with pytest.raises(ImportError) as raised:
        models.create(f"{prefix}:resnet18", 10)
    assert f"or later, and {version} is installed; pip install --upgrade " in str(raised.value)


@PREFIXES
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "torchvision::nms does not exist); install a torch",
        ),
        ("import no_such_module", "which cannot be imported (No module named 'no_such_module'); pip install"),
        (
            "raise OSError('libcudart.so.13')",
            "(libcudart.so.13); install a torch and a torchvision that",
        ),
    ],
)
def test_a_library_that_cannot_be_imported_is_one_sentence(
    prefix: str, text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = LIBRARIES[prefix].package
    (tmp_path / f"{package}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(ImportError) as raised:
        models.create(f"{prefix}:resnet18", 10)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
    assert package not in sys.modules


def test_a_library_that_breaks_within_a_call_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers imports a network only when it is made, and raises an error that hides the first one."""
    transformers = library("transformers")
    hugging_face_folder(tmp_path / "net")
    monkeypatch.delattr(transformers, "ViTForImageClassification", raising=False)
    monkeypatch.delattr(transformers.models.vit, "ViTForImageClassification", raising=False)
    monkeypatch.delattr(transformers.models.vit, "modeling_vit", raising=False)
    monkeypatch.setitem(sys.modules, "transformers.models.vit.modeling_vit", None)
    with pytest.raises(ValueError, match=r"cannot be made for 10 classes .*\(import of .*modeling_vit halted"):
        models.create(f"hf:{tmp_path}/net", 10, 1)


@pytest.mark.slow
def test_no_library_is_imported_before_a_name_of_it_is_used(tmp_path: Path) -> None:
    packages = [one.package for one in LIBRARIES.values()]
    code = (
        "import sys; from rmcla_fast import cli, models; models.create('small-cnn', 10); "
        f"print([name for name in {packages} if name in sys.modules])"
    )
    printed, said = python("-c", code, cwd=tmp_path).communicate(timeout=240)
    assert printed.strip() == "[]", said


def test_an_unknown_model_names_the_libraries() -> None:
    with pytest.raises(ValueError, match=r"timm:NAME, hf:NAME, torchvision:NAME and package.module:factory"):
        models.create("resnet19", 10)
