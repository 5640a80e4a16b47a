"""Extra training images in an .npz file: what is read, what is mapped, and one sentence for each bad file."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import Malicious, write_extra
from run_cases import ROOT, rmcla

from rmcla_fast import data
from rmcla_fast.data import DataSplits, ExtraSet, load_extra
from rmcla_fast.data.cache import CACHE
from rmcla_fast.errors import UserError

pytest.importorskip("sklearn", reason="pip install 'rmcla-fast[train]'")
DIGITS = data.load("digits")
IMAGES, LABELS = DIGITS.train.images, DIGITS.train.labels


def equal(extra: ExtraSet, count: int) -> bool:
    return torch.equal(extra.images, IMAGES[:count]) and torch.equal(extra.labels, LABELS[:count])


def fortran(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **{name: np.asfortranarray(array) for name, array in arrays.items()})


def fortran_compressed(path: Path, **arrays: np.ndarray) -> None:
    np.savez_compressed(path, **{name: np.asfortranarray(array) for name, array in arrays.items()})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, fortran, fortran_compressed])
def test_images_and_labels_are_those_of_the_file(save: Callable[..., None], tmp_path: Path) -> None:
    extra = load_extra(write_extra(tmp_path / "more.npz", 50, save), DIGITS)
    assert equal(extra, 50)
    assert extra.shape == DIGITS.train.shape
    assert (tmp_path / CACHE).exists() == (save in (np.savez_compressed, fortran_compressed))


@pytest.mark.parametrize("kind", ["u1", "i1", "<i4", ">i8", "u8"])
def test_labels_may_be_of_any_integer_type_beside_other_arrays(kind: str, tmp_path: Path) -> None:
    path = write_extra(tmp_path / "a.npz", 50, label=LABELS[:50].numpy().astype(kind), logits=np.ones(3))
    assert equal(load_extra(path, DIGITS), 50)


def test_classes_may_be_missing(tmp_path: Path) -> None:
    extra = load_extra(write_extra(tmp_path / "a.npz", 50, label=np.zeros(50, np.int64)), DIGITS)
    assert not extra.labels.any()


def test_the_checksum_changes_with_the_arrays_alone(tmp_path: Path) -> None:
    def checksum(name: str, save: Callable[..., None] = np.savez, **changes: Any) -> str:
        return load_extra(write_extra(tmp_path / name, 50, save, **changes), DIGITS).checksum

    known = checksum("a.npz")
    os.utime(tmp_path / "a.npz", (0, 0))
    assert known == load_extra(tmp_path / "a.npz", DIGITS).checksum
    assert known == checksum("b.npz", np.savez_compressed)
    changed = IMAGES[:50].permute(0, 2, 3, 1).numpy().copy()
    changed[49, 7, 7, 0] ^= 1
    other_labels = LABELS[:50].roll(1).numpy()
    assert len({known, checksum("c.npz", image=changed), checksum("d.npz", label=other_labels)}) == 3


def test_compressed_images_are_unpacked_once(tmp_path: Path) -> None:
    path = write_extra(tmp_path / "more.npz", 50, np.savez_compressed)
    seen: list[str] = []

    def noted(items: Any, what: str) -> Any:
        seen.append(what)
        return iter(items)

    for _ in range(2):
        assert equal(load_extra(path, DIGITS, progress=noted), 50)
    assert seen == ["reading image.npy"]
    (cache,) = (tmp_path / CACHE).iterdir()
    content = bytearray(cache.read_bytes())
    content[100] ^= 1
    cache.write_bytes(content)
    with pytest.warns(UserWarning, match="checksum does not match its content; it is packed again"):
        assert equal(load_extra(path, DIGITS), 50)
    write_extra(path, 60, np.savez_compressed)
    assert equal(load_extra(path, DIGITS), 60)


MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from rmcla_fast.data import DataSplits, ImageSet, load_extra
from rmcla_fast.training.distributed import World
from rmcla_fast.training.loader import ExtraShare, Loader

own = ImageSet(torch.zeros(64, 3, 32, 32, dtype=torch.uint8), torch.arange(64) % 10)
load_extra(Path(sys.argv[2]), DataSplits(own, own, 10))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)

before = peak()
extra = load_extra(Path(sys.argv[1]), DataSplits(own, own, 10))
rng = torch.tensor([0, 0])
loader = Loader(own, 16, 0, torch.device("cpu"), rng, True, True, World(), ExtraShare(extra, 11))
print(len(extra), sum(len(labels) for epoch in range(5) for _, labels in loader.epoch(epoch)), peak() - before)
"""


def test_stored_images_stay_in_the_file(tmp_path: Path) -> None:
    """A process that trains on 150 MB of extra images, or on a share of them, does not grow by their size."""
    pytest.importorskip("resource", reason="the peak of a process's memory is known on POSIX alone")
    for name, count in (("large.npz", 50_000), ("small.npz", 10)):
        np.savez(tmp_path / name, image=np.zeros((count, 32, 32, 3), np.uint8), label=np.zeros(count, np.int64))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large.npz"), str(tmp_path / "small.npz")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    count, drawn, grown = map(int, done.stdout.split())
    assert (count, drawn) == (50_000, 5 * 64)
    assert grown < 50


def truncated(path: Path) -> None:
    write_extra(path)
    path.write_bytes(path.read_bytes()[:5000])


def changed_in_the_middle(save: Callable[..., None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        content = bytearray(write_extra(path, 300, save).read_bytes())
        content[3000] ^= 255
        path.write_bytes(content)

    return write


def pickled(path: Path) -> None:
    array = np.empty(1, object)
    array[0] = Malicious(path.parent / "it-ran")
    write_extra(path, image=array)


def pickled_labels(path: Path) -> None:
    array = np.empty(300, object)
    array[:] = [Malicious(path.parent / "it-ran")] * 300
    write_extra(path, label=array)


def with_labels(*first: int) -> Callable[[Path], Any]:
    return lambda path: write_extra(path, label=np.array([*first, *[0] * (300 - len(first))]))


def of_shape(*shape: int, kind: str = "u1") -> Callable[[Path], Any]:
    return lambda path: write_extra(path, image=np.zeros(shape, kind), label=np.zeros(shape[0], np.int64))


NEEDED = "an .npz file with the arrays image and label is needed"
BYTES = "uint8 (N, 8, 8, 1)"
CASES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda path: None, f"there is no file DATA/more.npz; {NEEDED}"),
    (lambda path: path.mkdir(), f"DATA/more.npz is not a file; {NEEDED}"),
    (lambda path: os.mkfifo(path), f"DATA/more.npz is not a file; {NEEDED}"),
    (lambda path: path.write_bytes(b""), f"DATA/more.npz is not an .npz file; {NEEDED}"),
    (lambda path: path.write_bytes(b"\x80\x04}\x94."), f"DATA/more.npz is not an .npz file; {NEEDED}"),
    (lambda path: np.save(path.open("wb"), np.zeros(3)), f"DATA/more.npz is not an .npz file; {NEEDED}"),
    (lambda path: np.savez(path), "has no array image"),
    (lambda path: np.savez(path, images=np.zeros(3), y=np.zeros(3)), "has no array image; a"),
    (lambda path: np.savez(path, image=np.zeros(3), labels=np.zeros(3)), "in it: image, labels"),
    (of_shape(9, 1, 8, 8), "is uint8 (9, 1, 8, 8), with the channels first; bytes from 0 to 255 as the training"),
    (of_shape(9, 8, 8, 3), "the array image of DATA/more.npz is uint8 (9, 8, 8, 3); bytes from 0 to 255"),
    (of_shape(9, 8, 9, 1), "is uint8 (9, 8, 9, 1); bytes from 0 to 255 as the training images have them"),
    (of_shape(9, 8, 8), BYTES),
    (of_shape(9, 8, 8, 1, kind="f4"), "is float32 (9, 8, 8, 1); bytes from 0 to 255"),
    (of_shape(9, 8, 8, 1, kind="i8"), BYTES),
    (of_shape(0, 8, 8, 1), "DATA/more.npz has no images"),
    (lambda path: write_extra(path, image=np.uint8(3)), BYTES),
    (lambda path: write_extra(path, image=np.zeros(3, "u1,f4")), BYTES),
    (pickled, "is object (1,), a pickle, which is never read; bytes from 0 to 255"),
    (pickled_labels, "is object (300,), a pickle, which is never read; one integer for each image"),
    (lambda path: write_extra(path, label=np.zeros(299, int)), "the array label of DATA/more.npz is int64 (299,); one"),
    (lambda path: write_extra(path, label=np.zeros((300, 10), int)), "one integer for each image is needed, (300,)"),
    (lambda path: write_extra(path, label=np.zeros(300)), "is float64 (300,); one integer for each image is needed"),
    (with_labels(1, 10), "DATA/more.npz: image 1 has label 10; labels must lie in [0, 10)"),
    (with_labels(1, 2, -1), "image 2 has label -1; labels must lie in [0, 10)"),
    (lambda path: write_extra(path, label=np.full(300, 2**64 - 1, "u8")), "has label 18446744073709551615; labels"),
    (truncated, "DATA/more.npz is damaged or cut short"),
    (changed_in_the_middle(np.savez), "DATA/more.npz is damaged or cut short (Bad CRC-32"),
    (changed_in_the_middle(np.savez_compressed), "DATA/more.npz is damaged or cut short"),
]


@pytest.mark.parametrize(("write", "sentence"), CASES, ids=[sentence for _, sentence in CASES])
def test_a_bad_file_is_one_sentence(
    write: Callable[[Path], Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "more.npz", tmp_path / "run"
    write(path)
    assert rmcla("train", "--data", "digits", "--quiet", "--extra-data", path, "--out", out) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("rmcla: ")
    assert sentence.replace("DATA", str(tmp_path)) in said[0]
    assert not out.exists()
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--extra-fraction", 0.5), "--extra-fraction 0.5 needs images to draw; give --extra-data"),
        (("--extra-data", "a", "--extra-fraction", 0), "--extra-fraction must be more than 0 and less than 1; got 0"),
        (("--extra-data", "a", "--extra-fraction", 1), "--extra-fraction must be more than 0 and less than 1; got 1"),
        (("--extra-data", "a", "--extra-fraction", "nan"), "must be more than 0 and less than 1; got nan"),
        (
            ("--extra-data", "a", "--extra-fraction", 0.01),
            "--extra-fraction 0.01 makes 0 of the 32 images in a batch extra ones; give",
        ),
        (
            ("--extra-data", "a", "--extra-fraction", 0.99),
            "--extra-fraction 0.99 makes 32 of the 32 images in a batch extra ones; give",
        ),
        (
            ("--extra-data", "a", "--batch-size", 1),
            "--extra-fraction 0.7 makes 1 of the 1 images in a batch extra ones; give",
        ),
        (("--extra-data", "a", "--data", "imagenet"), "--extra-data cannot be used with --data imagenet"),
    ],
)
def test_a_bad_option_is_one_sentence(
    options: tuple[object, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rmcla("train", "--data", "digits", *options, "--out", tmp_path / "run") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_is_refused_or_holds_the_same_arrays(save: Callable[..., None], tmp_path: Path) -> None:
    """A flipped bit may do no harm, such as one in the archive's dates."""
    path = write_extra(tmp_path / "more.npz", 5, save)
    good, draw, refused = path.read_bytes(), random.Random(0), 0
    for number in range(400):
        content = bytearray(good)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content[: draw.randrange(len(content))] if number % 4 == 0 else content)
        said = ""
        try:
            extra = load_extra(path, DIGITS)
        except UserError as error:
            said = str(error)
        assert str(path) in said if said else equal(extra, 5)
        refused += bool(said)
    assert refused > 200


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("shape", [(10**15, 8, 8, 1), (10**40, 8, 8, 1), (-1, 8, 8, -1), (4, 8, 8, 1)])
def test_a_header_that_claims_another_size_is_refused(method: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Nothing is allocated for it, and nothing is written into the cache."""
    path = tmp_path / "more.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, claimed, kind in (("image", shape, "|u1"), ("label", shape[:1], "<i8")):
            array = io.BytesIO()
            np.lib.format.write_array_header_1_0(array, {"descr": kind, "fortran_order": False, "shape": claimed})
            archive.writestr(f"{name}.npy", array.getvalue() + bytes(5 * 64))
    with pytest.raises(UserError, match=r"more\.npz is damaged or cut short \((image.npy|bad character)"):
        load_extra(path, DIGITS)
    assert not (tmp_path / CACHE).exists()


def test_content_that_ends_early_is_refused(tmp_path: Path) -> None:
    """The archive claims a byte more of compressed labels than there are, with the checksum of those that are there."""
    path = tmp_path / "more.npz"
    with zipfile.ZipFile(write_extra(path, 5, np.savez_compressed)) as archive:
        size = archive.getinfo("label.npy").file_size
        images, labels = archive.read("image.npy"), archive.read("label.npy")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", images)
        archive.writestr("label.npy", labels[:-8])
        archive.getinfo("label.npy").file_size = size
    with pytest.raises(UserError, match=r"damaged or cut short \(label.npy ends early\)"):
        load_extra(path, DIGITS)


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    path = write_extra(tmp_path / "more.npz", 50, np.savez_compressed)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"the image cache .* cannot be written: No space left on device"):
        load_extra(path, DIGITS)
    assert not (tmp_path / CACHE).exists()
    monkeypatch.undo()
    assert equal(load_extra(path, DIGITS), 50)


def test_extra_images_of_a_data_set_with_three_channels(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", image=images, label=np.arange(7) % 3)
    own = data.ImageSet(torch.zeros(4, 3, 5, 6, dtype=torch.uint8), torch.arange(4) % 3)
    extra = load_extra(tmp_path / "a.npz", DataSplits(own, own, 3))
    assert extra.images.shape == (7, 3, 5, 6)
    assert np.array_equal(extra.images.numpy(), images.transpose(0, 3, 1, 2))
