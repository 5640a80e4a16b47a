"""`rmcla train` on bad data prints one sentence, exits with code 2 and writes no run folder."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import Malicious, write_cifar10, write_cifar100, write_folder, write_image, write_tiny_imagenet
from run_cases import rmcla

pytest.importorskip("PIL.Image", reason="pip install 'rmcla-fast[train]'")


def cifar10_with(root: Path, file: str = "data_batch_3", **content: Any) -> None:
    write_cifar10(root)
    good = {"data": np.zeros((20, 3072), np.uint8), "labels": [k % 10 for k in range(20)]}
    (root / "cifar-10-batches-py" / file).write_bytes(pickle.dumps({**good, **content}))


def no_images(root: Path) -> None:
    nothing = pickle.dumps({"data": np.zeros((0, 3072), np.uint8), "labels": np.zeros(0, np.int64)})
    for file in (write_cifar10(root) / "cifar-10-batches-py").glob("data_batch_*"):
        file.write_bytes(nothing)


def cut_short(root: Path) -> None:
    file = write_cifar10(root) / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(file.read_bytes()[:3000])


def a_class_missing_in_one_split(root: Path) -> None:
    cifar10_with(root, "test_batch", labels=[k % 9 for k in range(20)])


def labels_beyond_the_fine_ones(root: Path) -> None:
    content = {"data": np.zeros((1, 3072), np.uint8), "fine_labels": [100]}
    (write_cifar100(root) / "cifar-100-python" / "test").write_bytes(pickle.dumps(content))


def svhn_of(labels: list[int], images: int) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        matlab = pytest.importorskip("scipy.io", reason="pip install 'rmcla-fast[train]'")
        for name in ("train_32x32.mat", "test_32x32.mat"):
            pixels = np.zeros((32, 32, 3, images), np.uint8)
            matlab.savemat(root / name, {"X": pixels, "y": np.array(labels, np.uint8)[:, None]})

    return write


def svhn_cut_short(root: Path) -> None:
    svhn_of([1, 2], 2)(root)
    file = root / "train_32x32.mat"
    file.write_bytes(file.read_bytes()[:150])


def folder_without_images(root: Path) -> None:
    for split in ("train", "test"):
        (root / split).mkdir()


def one_class_only(root: Path) -> None:
    for split in ("train", "test"):
        write_image(root / split / "cat" / "0.png", 1)


def a_class_in_the_test_split_alone(root: Path) -> None:
    write_image(write_folder(root) / "test" / "horse" / "0.png", 1)


def a_class_in_the_training_split_alone(root: Path) -> None:
    write_image(write_folder(root) / "train" / "horse" / "0.png", 1)


def a_class_without_a_readable_image(root: Path) -> None:
    for path in (write_folder(root) / "train" / "dog").iterdir():
        path.unlink()


def an_unreadable_image(root: Path) -> None:
    file = write_folder(root) / "train" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:60])


def differing_sizes(root: Path) -> None:
    write_image(write_folder(root) / "train" / "cat" / "zebra.png", 1, size=(7, 5))


def an_image_without_a_class(root: Path) -> None:
    (write_tiny_imagenet(root) / "val" / "val_annotations.txt").write_text("val_0.JPEG\n")


CASES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("cifar10", no_images, "cifar10 has no train images"),
    ("cifar10", cut_short, "test_batch is refused: it is corrupt"),
    ("cifar10", a_class_missing_in_one_split, "cifar10 has no test image of class 9"),
    ("cifar10", lambda root: cifar10_with(root, labels=[k % 11 for k in range(20)]), "labels must lie in [0, 10)"),
    ("cifar10", lambda root: cifar10_with(root, labels=[-1] * 20), "train image 40 has label -1"),
    ("cifar10", lambda root: cifar10_with(root, extra=Malicious(root / "it-ran")), "data_batch_3 is refused"),
    ("cifar100", labels_beyond_the_fine_ones, "test image 0 has label 100; labels must lie in [0, 100)"),
    ("svhn", svhn_of([1, 2], 3), "train_32x32.mat is corrupt: expected X uint8 (32, 32, 3, N) and y"),
    ("svhn", svhn_of([1, 11], 2), "svhn: train image 1 has label 11; labels must lie in [0, 10)"),
    ("svhn", svhn_of([1, 2], 2), "svhn has no train image of class 0, 3, 4, 5, 6 and 3 more"),
    ("svhn", svhn_cut_short, "train_32x32.mat is corrupt or cut short"),
    ("folder", lambda root: None, "has no folder test or val"),
    ("imagenet", lambda root: None, "it is at https://image-net.org"),
    ("tiny-imagenet", lambda root: None, "it is at http://cs231n.stanford.edu/tiny-imagenet-200.zip"),
    ("tiny-imagenet", an_image_without_a_class, "val_annotations.txt must be an image's name, a tab and its class"),
    ("folder", folder_without_images, "train has no folders in it: expected one folder of images for each class"),
    ("folder", one_class_only, "folder has 1 class; a classifier needs at least 2"),
    ("folder", a_class_in_the_test_split_alone, "horse is a class that the training folder does not have"),
    ("folder", a_class_in_the_training_split_alone, "test/horse has no readable image"),
    ("folder", a_class_without_a_readable_image, "train/dog has no readable image"),
    ("folder", an_unreadable_image, "dog/1.png; remove it, or leave it out with --skip-unreadable"),
    ("folder", differing_sizes, "must share one size"),
]


@pytest.mark.parametrize(("data", "write", "sentence"), CASES, ids=[sentence for *_, sentence in CASES])
def test_bad_data_is_one_sentence(
    data: str, write: Callable[[Path], Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "data", tmp_path / "run"
    root.mkdir()
    write(root)
    assert rmcla("train", "--data", data, "--data-dir", root, "--model", "small-cnn", "--out", out) == 2
    printed = capsys.readouterr()
    said = printed.err.splitlines()[-1]
    assert said.startswith("rmcla: ")
    assert sentence in said
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert not out.exists()
    assert not (root / "it-ran").exists()


def test_skip_unreadable_leaves_out_an_unreadable_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = write_folder(tmp_path / "data"), tmp_path / "run"
    (root / "train" / "dog" / "1.png").write_bytes(b"no image")
    run = ("train", "--data", "folder", "--data-dir", root, "--model", "small-cnn", "--batch-size", 2, "--epochs", 1)
    command = (*run, "--monitor-images", 0, "--quiet", "--out", out)
    assert rmcla(*command) == 2
    assert "--skip-unreadable" in capsys.readouterr().err
    assert not out.exists()
    with pytest.warns(UserWarning, match=r"left out 1 of 6 images, unreadable: \S*1\.png"):
        assert rmcla(*command, "--skip-unreadable") == 0
    assert (out / "checkpoint.pt").exists()
