"""Data sets from standard files: their contents, the rule of --data-dir, and the errors for bad files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import write_cifar10, write_cifar100

from rmcla_fast import data
from rmcla_fast.data import matlab
from rmcla_fast.data.matlab import load_matlab
from rmcla_fast.data.pickles import load_pickle
from rmcla_fast.data.splits import DataSplits, ImageSet, check, hold_out, per_class
from rmcla_fast.errors import UserError


def test_digits_have_the_same_split_every_time() -> None:
    splits = data.load("digits")
    assert splits.num_classes == 10
    assert splits.train.images.shape == (1437, 1, 8, 8)
    assert splits.test.images.shape == (360, 1, 8, 8)
    assert splits.train.images.dtype == torch.uint8
    assert splits.train.labels.dtype == torch.int64
    assert set(splits.train.images.unique().tolist()) == {round(level * 255 / 16) for level in range(17)}
    counts = torch.bincount(splits.test.labels)  # stratified
    assert counts.min() >= 35
    assert counts.max() <= 37
    assert torch.equal(splits.test.images, data.load("digits").test.images)


@pytest.mark.parametrize("inside", [False, True], ids=["parent folder", "the folder itself"])
def test_cifar10_is_read_from_its_files(tmp_path: Path, inside: bool) -> None:
    root = write_cifar10(tmp_path)
    splits = data.load("cifar10", root / "cifar-10-batches-py" if inside else root)
    assert splits.train.images.shape == (100, 3, 32, 32)
    assert splits.test.images.shape == (20, 3, 32, 32)
    assert splits.test.labels.tolist() == [k % 10 for k in range(20)]
    raw = load_pickle(root / "cifar-10-batches-py" / "data_batch_1")["data"]
    assert splits.train.images[3, 1, 2, 5] == raw[3, 1024 + 2 * 32 + 5]


def test_cifar100_has_the_fine_labels(tmp_path: Path) -> None:
    splits = data.load("cifar100", str(write_cifar100(tmp_path)))
    assert splits.num_classes == 100
    assert splits.train.labels.tolist() == [k % 100 for k in range(200)]


def test_svhn_label_ten_is_the_digit_zero(tmp_path: Path) -> None:
    scipy = pytest.importorskip("scipy.io")
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    labels = np.array([[k % 10 + 1] for k in range(20)], np.uint8)
    for name in ("train_32x32.mat", "test_32x32.mat"):
        scipy.savemat(tmp_path / name, {"X": images, "y": labels})
    splits = data.load("svhn", tmp_path)
    assert splits.train.labels[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert splits.train.images[4, 2, 7, 9] == images[7, 9, 2, 4]
    (tmp_path / "test_32x32.mat").write_bytes(b"MATLAB 5.0 and then nothing")
    with pytest.raises(UserError, match=r"test_32x32\.mat is corrupt or cut short"):
        data.load("svhn", tmp_path)


def test_a_matlab_file_in_another_format_is_an_error(tmp_path: Path) -> None:
    scipy = pytest.importorskip("scipy.io")
    images = np.zeros((32, 32, 3, 20), np.uint8)
    for labels, sentence in (
        (np.ones((20, 1)), r"train_32x32\.mat is corrupt: .*; got uint8 \(32, 32, 3, 20\) and float64 \(20, 1\)"),
        (np.full((20, 1), 11, np.uint8), r"train image 0 has label 11; labels must lie in \[0, 10\)"),
    ):
        for name in ("train_32x32.mat", "test_32x32.mat"):
            scipy.savemat(tmp_path / name, {"X": images, "y": labels})
        with pytest.raises(UserError, match=sentence):
            data.load("svhn", tmp_path)
    header = b"MATLAB 7.3 MAT-file, HDF5 schema 1.00 .".ljust(124) + b"\x00\x02IM"
    (tmp_path / "train_32x32.mat").write_bytes(header.ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n" + bytes(2000))
    with pytest.raises(UserError, match=r"train_32x32\.mat is a MATLAB 7\.3 file \(HDF5\), which is not supported"):
        data.load("svhn", tmp_path)


def test_a_matlab_file_may_not_grow_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy = pytest.importorskip("scipy.io")
    content = {"X": np.zeros((32, 32, 3, 20), np.uint8), "y": np.ones((20, 1), np.uint8)}
    scipy.savemat(tmp_path / "packed.mat", content, do_compression=True)
    scipy.savemat(tmp_path / "plain.mat", content)
    scipy.savemat(tmp_path / "many.mat", {f"v{k}": 1 for k in range(101)} | content)
    scipy.savemat(tmp_path / "cells.mat", {**content, "X": np.array([[1], ["a"]], dtype=object)})
    scipy.savemat(tmp_path / "more.mat", {"before": "text", **content, "after": [1.5]}, do_compression=True)
    for name in ("packed", "plain", "more"):
        read = load_matlab(tmp_path / f"{name}.mat", ("X", "y"), "")
        assert read["X"].shape == (32, 32, 3, 20)
    with pytest.raises(UserError, match=r"many\.mat is corrupt or cut short \(ValueError: more than 100 variables\)"):
        load_matlab(tmp_path / "many.mat", ("X", "y"), "")
    with pytest.raises(UserError, match=r"cells\.mat is corrupt: it has no array of numbers X"):
        load_matlab(tmp_path / "cells.mat", ("X", "y"), "")
    monkeypatch.setattr(matlab, "MOST_BYTES", 60_000)
    for name in ("packed", "plain"):
        with pytest.raises(UserError, match=r"the variables have more than 60000 bytes"):
            load_matlab(tmp_path / f"{name}.mat", ("X", "y"), "")


def test_an_error_of_the_operating_system_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        data.load("cifar10", tmp_path / ("x" * 5000))


@pytest.mark.parametrize(
    ("name", "address"),
    [("cifar10", "cs.toronto.edu"), ("cifar100", "cs.toronto.edu"), ("svhn", "ufldl.stanford.edu")],
)
def test_a_missing_data_set_names_its_address_and_folder(tmp_path: Path, name: str, address: str) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(UserError, match=address) as caught:
            data.load(name, folder)
        assert "is missing" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_an_unknown_data_set_is_an_error_with_the_known_names() -> None:
    with pytest.raises(UserError, match=r"unknown data set 'mnist'; one of: digits, cifar10"):
        data.load("mnist")


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1, 2])], ids=["empty", "text", "list"])
def test_a_corrupt_file_is_named(tmp_path: Path, content: bytes) -> None:
    root = write_cifar10(tmp_path)
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match="test_batch"):
        data.load("cifar10", root)


@pytest.mark.parametrize(
    "content",
    [
        {"data": np.zeros((20, 3071), np.uint8), "labels": [0] * 20},
        {"data": np.zeros((20, 3072), np.float32), "labels": [0] * 20},
        {"data": np.zeros((20, 3072), np.uint8), "labels": [0] * 19},
        {"data": np.zeros((20, 3072), np.uint8)},
        {"data": [1, 2], "labels": [0, 1]},
        {"data": np.zeros((20, 3072), np.uint8), "labels": [[0], [0, 1]]},
        {"data": np.zeros((20, 3072), np.uint8), "labels": [True] * 20},
        {"data": np.zeros((20, 3072), np.uint8), "labels": [0.0] * 20},
        {"data": np.zeros((20, 3072), np.uint8), "labels": [0] * 19 + [10**30]},
        {"data": np.zeros((20, 3072), np.uint8), "labels": [0] * 19 + [2**63]},
        {"data": np.zeros((20, 3072), np.uint8), "labels": np.zeros((20, 1), np.int64)},
        {"data": np.zeros((20, 3072), np.uint8), "labels": "0" * 20},
    ],
    ids=[
        "shape",
        "dtype",
        "count",
        "no labels",
        "no array",
        "ragged labels",
        "bools",
        "floats",
        "huge",
        "beyond int64",
        "columns",
        "text",
    ],
)
def test_a_file_with_wrong_content_is_named(tmp_path: Path, content: dict[str, object]) -> None:
    root = write_cifar10(tmp_path)
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="test_batch"):
        data.load("cifar10", root)


def image_set(labels: list[int]) -> ImageSet:
    return ImageSet(torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8), torch.tensor(labels, dtype=torch.int64))


@pytest.mark.parametrize(
    ("train", "test", "classes", "sentence"),
    [
        ([], [0, 1], 2, "has no train images"),
        ([0, 1], [], 2, "has no test images"),
        ([0, 0], [0], 1, "a classifier needs at least 2"),
        ([0, 1, 5], [0, 1], 2, r"train image 2 has label 5; labels must lie in \[0, 2\)"),
        ([0, 1], [0, -1], 2, "test image 1 has label -1"),
        ([0, 1, 2], [0, 1], 3, "no test image of class 2"),
        ([0, 1], [0, 1, 2], 3, "no train image of class 2"),
    ],
)
def test_bad_splits_are_errors(train: list[int], test: list[int], classes: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check("the set", DataSplits(image_set(train), image_set(test), classes))


def test_images_per_class_are_balanced_and_drawn_with_the_seed() -> None:
    splits = data.load("digits", images_per_class=7, seed=3)
    assert torch.bincount(splits.train.labels).tolist() == [7] * 10
    assert len(splits.test) == 360
    assert torch.equal(splits.train.images, data.load("digits", images_per_class=7, seed=3).train.images)
    assert not torch.equal(splits.train.images, data.load("digits", images_per_class=7, seed=4).train.images)
    with pytest.raises(UserError, match="fewer than the 200 images per class"):
        data.load("digits", images_per_class=200)
    with pytest.raises(UserError, match="at least 1; got 0"):
        per_class(splits.train, 0, 10, 0)


def test_a_rare_class_is_not_held_out_entirely() -> None:
    kept, held = hold_out(image_set([0] * 5 + [1] * 400 + [2] * 94 + [3]), 50, 4, seed=0)
    assert torch.bincount(held.labels, minlength=4).tolist() == [0, 41, 9, 0]
    assert torch.bincount(kept.labels).tolist() == [5, 359, 85, 1]


def test_held_out_images_are_balanced_and_removed_from_training() -> None:
    train = data.load("digits").train
    kept, held = hold_out(train, 60, 10, seed=0)
    assert len(kept) == len(train) - 60
    assert torch.bincount(held.labels).tolist() == [6] * 10
    both = torch.cat([kept.images, held.images])
    assert sorted(map(bytes, both.numpy())) == sorted(map(bytes, train.images.numpy()))
