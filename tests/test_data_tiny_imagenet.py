"""Tiny ImageNet: which files become which images, the errors for bad folders, and a run on a small one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import write_tiny_imagenet
from run_cases import read_checkpoint, rmcla

from rmcla_fast import data
from rmcla_fast.data import ImageSet
from rmcla_fast.data.cache import CACHE
from rmcla_fast.errors import UserError
from rmcla_fast.training import TrainConfig
from rmcla_fast.training.resolve import resolve

Image = pytest.importorskip("PIL.Image", reason="pip install 'rmcla-fast[train]'")

NAMES = ("n01443537", "n01629819", "n02099601")
ANNOTATIONS = Path("val/val_annotations.txt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_imagenet(tmp_path)


def test_the_splits_are_train_and_val_sorted_by_class(folder: Path) -> None:
    for place in (folder, folder.parent):
        splits = data.load("tiny-imagenet", place)
        assert (splits.classes, splits.num_classes) == (NAMES, 3)
        assert isinstance(splits.train, ImageSet)
        assert (splits.train.images.dtype, splits.train.images.shape) == (torch.uint8, (12, 3, 64, 64))
        assert splits.test.images.shape == (6, 3, 64, 64)
        assert splits.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert splits.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
        levels = [60 * c + 4 * k for c in range(3) for k in range(4)]
        torch.testing.assert_close(splits.train.images.float().mean((1, 2, 3)), torch.tensor(levels).float())
        levels = [60 * c + 4 * k + 2 for c in range(3) for k in range(2)]
        torch.testing.assert_close(splits.test.images.float().mean((1, 2, 3)), torch.tensor(levels).float())


def test_grey_images_have_three_equal_channels(folder: Path) -> None:
    grey = folder / "train" / NAMES[1] / "images" / f"{NAMES[1]}_1.JPEG"
    assert Image.open(grey).mode == "L"
    image = data.load("tiny-imagenet", folder).train.images[5]
    assert torch.equal(image, torch.full((3, 64, 64), 64, dtype=torch.uint8))


def test_rows_and_columns_and_channels_keep_their_places(folder: Path) -> None:
    pixels = Image.new("RGB", (64, 64), (200, 40, 8))
    pixels.paste((8, 40, 200), (0, 0, 64, 32))  # the upper half
    pixels.save(folder / "train" / NAMES[0] / "images" / f"{NAMES[0]}_0.JPEG", quality=95)
    image = data.load("tiny-imagenet", folder).train.images[0].int()
    for rows, colour in ((slice(2, 14), (8, 40, 200)), (slice(50, 62), (200, 40, 8))):
        assert (image[:, rows] - torch.tensor(colour).reshape(3, 1, 1)).abs().max() <= 4


def test_the_cache_is_used_until_the_folder_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data.load("tiny-imagenet", folder).train.images.clone()
    assert len(list(folder.glob(f"{CACHE}/*.images"))) == 2
    with monkeypatch.context() as patch:
        patch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("opened again"))
        assert torch.equal(data.load("tiny-imagenet", folder).train.images, first)
    (folder / "train" / NAMES[0] / "images" / f"{NAMES[0]}_0.JPEG").unlink()
    assert len(data.load("tiny-imagenet", folder).train) == 11


def test_an_unreadable_image_is_named_or_left_out(folder: Path) -> None:
    for path in (folder / "train" / NAMES[2] / "images" / f"{NAMES[2]}_3.JPEG", folder / "val/images/val_5.JPEG"):
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"^unreadable image: \S*n02099601_3\.JPEG; remove it, or leave it out with"):
        data.load("tiny-imagenet", folder)
    with pytest.warns(UserWarning, match=r"left out 1 of \d+ images, unreadable: \S*\.JPEG"):
        splits = data.load("tiny-imagenet", folder, skip_unreadable=True)
    assert (len(splits.train), len(splits.test)) == (11, 5)
    assert splits.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 3


def without(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def annotated(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Return a change of the first line of val_annotations.txt."""

    def write(folder: Path) -> None:
        first, *others = (folder / ANNOTATIONS).read_text().splitlines(keepends=True)
        (folder / ANNOTATIONS).write_text("".join((change(first), *others)))

    return write


def an_empty_class(folder: Path) -> None:
    for path in (folder / "train" / NAMES[1] / "images").iterdir():
        path.unlink()


def a_class_that_is_not_listed(folder: Path) -> None:
    (folder / "wnids.txt").write_text(f"{NAMES[0]}\n{NAMES[2]}\n")


def a_class_without_a_folder(folder: Path) -> None:
    with (folder / "wnids.txt").open("a") as file:
        file.write("../../n\x1b01\n")


def another_size(folder: Path) -> None:
    Image.new("RGB", (1, 1)).save(folder / "train" / NAMES[0] / "images" / f"{NAMES[0]}_0.JPEG")


def an_image_that_is_not_listed(folder: Path) -> None:
    Image.new("RGB", (64, 64)).save(folder / "val" / "images" / "val_99.JPEG")


def a_test_class_without_images(folder: Path) -> None:
    lines = (folder / ANNOTATIONS).read_text().splitlines(keepends=True)
    for line in lines:
        if NAMES[1] in line:
            (folder / "val" / "images" / line.split("\t")[0]).unlink()
    (folder / ANNOTATIONS).write_text("".join(line for line in lines if NAMES[1] not in line))


CASES: list[tuple[Callable[[Path], Any], str]] = [
    (without("wnids.txt"), "tiny-imagenet-200/wnids.txt is not there; expected the folder tiny-imagenet-200 in"),
    (without("train"), "tiny-imagenet-200/train is not there"),
    (without("val/val_annotations.txt"), "val/val_annotations.txt is not there"),
    (without("val/images"), "val/images is not there"),
    (without("val"), "val_annotations.txt is not there"),
    (without(""), "it is at http://cs231n.stanford.edu/tiny-imagenet-200.zip"),
    (an_empty_class, "the class folder {folder}/train/n01629819 has no readable image"),
    (a_class_that_is_not_listed, "train/n01629819 is a class that wnids.txt does not list"),
    (a_class_without_a_folder, r"wnids.txt lists the class '../../n\x1b01', of which {folder}/train has no folder"),
    (another_size, "n01443537_0.JPEG is 1x1; the images of tiny-imagenet are 64x64"),
    (annotated(lambda line: "val_0.JPEG\n"), "must be an image's name, a tab and its class; got 'val_0.JPEG'"),
    (annotated(lambda line: line.replace("\t", " ")), "line 1 of {folder}/val/val_annotations.txt must be an image's"),
    (annotated(lambda line: line.replace("n0", "n9")), "has the class 'n91629819', which wnids.txt does not list"),
    (annotated(lambda line: line + line), "line 2 of {folder}/val/val_annotations.txt lists the image 'val_0.JPEG' a"),
    (annotated(lambda line: line.replace("val_", "../")), "lists the image '../0.JPEG', which is not in val/images"),
    (annotated(lambda line: ""), "val/images/val_0.JPEG is an image that val/val_annotations.txt does not list"),
    (an_image_that_is_not_listed, "val_99.JPEG is an image that val/val_annotations.txt does not list"),
    (a_test_class_without_images, "tiny-imagenet has no test image of class n01629819"),
    (lambda folder: (folder / ANNOTATIONS).write_bytes(b"\xff\xfe\tn\x00\n"), "does not list"),
    (lambda folder: (folder / "wnids.txt").write_bytes(b""), "is a class that wnids.txt does not list"),
]


@pytest.mark.parametrize(("change", "sentence"), CASES, ids=[sentence for _, sentence in CASES])
def test_a_bad_folder_is_an_error_of_one_sentence(change: Callable[[Path], Any], sentence: str, folder: Path) -> None:
    change(folder)
    with pytest.raises(UserError) as caught:
        data.load("tiny-imagenet", folder.parent if folder.is_dir() else folder)
    assert sentence.format(folder=folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_data_folder_names_the_address() -> None:
    with pytest.raises(UserError, match=r"give --data-dir, the folder that holds tiny-imagenet-200; it is at http"):
        data.load("tiny-imagenet")


def test_a_line_may_lack_the_box_and_end_as_on_other_systems(folder: Path) -> None:
    lines = ("\t".join(line.split("\t")[:2]) for line in (folder / ANNOTATIONS).read_text().splitlines())
    (folder / ANNOTATIONS).write_bytes("\r\n".join((*lines, "", "")).encode())
    (folder / "wnids.txt").write_bytes("\r\n".join(NAMES).encode())
    assert data.load("tiny-imagenet", folder).test.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_its_network_is_that_of_small_images() -> None:
    config = resolve(TrainConfig(data="tiny-imagenet"))
    assert (config.model, config.epsilon, config.augment) == ("preact-resnet18", 8 / 255, True)


def test_a_run_is_trained_and_evaluated(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = ("train", "--data", "tiny-imagenet", "--data-dir", folder.parent, "--model", "small-cnn", "--epochs", 1)
    rest = ("--batch-size", 4, "--monitor-images", 3, "--device", "cpu", "--threads", 1, "--quiet", "--out", out)
    assert rmcla(*run, *rest) == 0
    assert rmcla("evaluate", out, "--attacks", "clean,fgsm", "--device", "cpu") == 0
    known = json.loads((out / "evaluation.json").read_text())
    assert (known["data"], known["attacks"]["fgsm"]["images"]) == ("tiny-imagenet", 6)
    config = read_checkpoint(out / "checkpoint.pt")["config"]
    assert (config["image_size"], config["classes"]) == ([64, 64], list(NAMES))
