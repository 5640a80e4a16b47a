"""The data sets in their published formats: digits (from scikit-learn), CIFAR-10, CIFAR-100 and SVHN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmcla_fast.data.matlab import load_matlab
from rmcla_fast.data.pickles import load_pickle
from rmcla_fast.data.splits import DataSplits, ImageSet
from rmcla_fast.errors import UserError, need

DIGITS_TEST = 360

CIFAR = {  # folder, address, training files, test files, key of the labels, number of classes
    "cifar10": (
        "cifar-10-batches-py",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        tuple(f"data_batch_{k}" for k in range(1, 6)),
        ("test_batch",),
        "labels",
        10,
    ),
    "cifar100": (
        "cifar-100-python",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        ("train",),
        ("test",),
        "fine_labels",
        100,
    ),
}
SVHN_ADDRESS = "http://ufldl.stanford.edu/housenumbers/"
SVHN_FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}


def digits() -> DataSplits:
    """Return the 8x8 handwritten digits of scikit-learn: 1,437 for training and 360 for test, stratified, seed 0."""
    datasets = need("sklearn.datasets", "train", "the digits data set")
    selection = need("sklearn.model_selection", "train", "the digits data set")
    bunch = datasets.load_digits()
    levels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]  # 0..16 to 0..255
    train, test = selection.train_test_split(
        np.arange(len(levels)), test_size=DIGITS_TEST, random_state=0, stratify=bunch.target
    )
    labels = bunch.target.astype(np.int64)
    return DataSplits(_image_set(levels[train], labels[train]), _image_set(levels[test], labels[test]), 10)


def cifar(name: str, data_dir: Path | None) -> DataSplits:
    """Return CIFAR-10 or CIFAR-100, (N, 3, 32, 32), from the files of the Python version; CIFAR-100 has fine labels."""
    folder_name, address, train_files, test_files, key, num_classes = CIFAR[name]
    if data_dir is None:
        raise UserError(missing(name, address, f"give --data-dir, the folder that holds {folder_name}"))
    inside = data_dir / folder_name
    folder = inside if inside.is_dir() else data_dir
    for file in (*train_files, *test_files):
        if not (folder / file).is_file():
            wanted = (
                f"{folder / file} is not there; expected the folder {folder_name} in {data_dir} (or that folder itself)"
            )
            raise UserError(missing(name, address, wanted))
    train, test = ([_cifar_file(folder / file, key) for file in files] for files in (train_files, test_files))
    return DataSplits(_joined(train), _joined(test), num_classes)


def svhn(data_dir: Path | None) -> DataSplits:
    """Return SVHN's cropped digits, (N, 3, 32, 32), from its .mat files, in which label 10 is the digit 0."""
    if data_dir is None:
        raise UserError(
            missing("svhn", SVHN_ADDRESS, f"give --data-dir, the folder with {' and '.join(SVHN_FILES.values())}")
        )
    for file in SVHN_FILES.values():
        if not (data_dir / file).is_file():
            wanted = f"{data_dir / file} is not there; expected {' and '.join(SVHN_FILES.values())} in {data_dir}"
            raise UserError(missing("svhn", SVHN_ADDRESS, wanted))
    train, test = (_svhn_file(data_dir / file) for file in SVHN_FILES.values())
    return DataSplits(train, test, 10)


def missing(name: str, address: str, wanted: str) -> str:
    """Return the sentence for a data set that is not there; `wanted` says what was expected where."""
    return f"the data set {name} is missing: {wanted}; it is at {address}"


def _image_set(images: np.ndarray, labels: np.ndarray) -> ImageSet:
    return ImageSet(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(np.ascontiguousarray(labels)))


def _joined(parts: list[ImageSet]) -> ImageSet:
    return ImageSet(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def _cifar_file(path: Path, key: str) -> ImageSet:
    content = load_pickle(path)
    if "data" not in content or key not in content:
        raise UserError(f"{path} has no 'data' and '{key}'; is it a file of the Python version?")
    images, labels = content["data"], content[key]
    if isinstance(labels, list) and all(type(label) is int or isinstance(label, np.integer) for label in labels):
        labels = np.array(labels)
    well_formed = (
        isinstance(images, np.ndarray)
        and isinstance(labels, np.ndarray)
        and images.dtype == np.uint8
        and images.ndim == 2
        and images.shape[1] == 3 * 32 * 32
        and labels.shape == images.shape[:1]
        and labels.dtype.kind in "iu"
    )
    if not well_formed:
        found = [_described(value) for value in (images, labels)]
        raise UserError(
            f"{path} is corrupt: expected 'data' uint8 (N, 3072) and N integer '{key}'; got {found[0]} and {found[1]}"
        )
    return _image_set(images.reshape(-1, 3, 32, 32), labels.astype(np.int64))


def _described(value: Any) -> str:
    """Return the dtype and shape of an array, and the type of anything else, which may be too large to print."""
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _svhn_file(path: Path) -> ImageSet:
    content = load_matlab(path, ("X", "y"), SVHN_ADDRESS)
    images, labels = content["X"], content["y"]
    well_formed = (
        images.dtype == np.uint8
        and images.ndim == 4
        and images.shape[:3] == (32, 32, 3)
        and labels.size == images.shape[3]
        and labels.dtype.kind in "iu"
    )
    if not well_formed:
        found = [_described(value) for value in (images, labels)]
        raise UserError(
            f"{path} is corrupt: expected X uint8 (32, 32, 3, N) and y uint8 (N, 1); got {found[0]} and {found[1]}"
        )
    labels = labels.reshape(-1).astype(np.int64)
    return _image_set(images.transpose(3, 2, 0, 1), np.where(labels == 10, 0, labels))
