"""Image folders: which files are read, the errors for bad folders, and the cache of decoded images."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import write_folder, write_image

from rmcla_fast import data, sealed
from rmcla_fast.data.cache import CACHE
from rmcla_fast.errors import UserError

Image = pytest.importorskip("PIL.Image", reason="pip install 'rmcla-fast[train]'")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


def test_images_are_sorted_by_class_and_name(folder: Path) -> None:
    splits = data.load("folder", folder)
    assert splits.classes == ("cat", "dog")
    assert splits.train.images.shape == (6, 3, 5, 6)
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.train.images[:, 0, 1, 1].tolist() == [0, 1, 2, 50, 51, 52]
    assert splits.train.images[4, :, 0, 1].tolist() == [52, 52, 52]


def test_a_val_folder_subfolders_and_jpegs_are_read(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    write_image(folder / "train" / "cat" / "deeper" / "a.JPG", 7)
    assert len(data.load("folder", folder).train) == 7


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".jpeg"])
def test_every_suffix_of_a_jpeg_is_read(folder: Path, suffix: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5)).save(buffer, format="JPEG")
    (folder / "train" / "cat" / f"a{suffix}").write_bytes(buffer.getvalue())
    assert len(data.load("folder", folder).train) == 7


def test_what_is_left_out_of_a_folder_is_said_for_each_split(folder: Path) -> None:
    train, test = folder / "train", folder / "test"
    for path in (train / "cat" / "notes.txt", train / "dog" / "a.heic", train / "loose.png", train / "labels.csv"):
        path.write_bytes(b"")
    (train / "cat" / ".DS_Store").write_bytes(b"")  # what a system leaves behind is not worth a word
    (test / "cat" / "a.avif").write_bytes(b"")
    with pytest.warns(UserWarning, match="left out") as said:
        assert len(data.load("folder", folder).train) == 6
    texts = [str(one.message) for one in said]
    assert len(texts) == 2
    assert f"left out 4 files of {train}: " in texts[0]
    assert ": cat/notes.txt, dog/a.heic, labels.csv and 1 more; " in texts[0]
    assert f"left out 1 file of {test}: " in texts[1]
    assert ": cat/a.avif; " in texts[1]


def test_links_are_followed_and_hidden_files_are_not_images(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    cat = folder / "train" / "cat"
    write_image(elsewhere / "a" / "far.png", 90)
    (cat / "linked").symlink_to(elsewhere / "a")
    (cat / "round").symlink_to(cat)  # a link to its own folder
    (cat / "._0.png").write_bytes(b"what another system leaves beside a file")
    write_image(cat / ".ipynb_checkpoints" / "0.png", 91)
    assert data.load("folder", folder).train.images[:4, 0, 1, 1].tolist() == [0, 1, 2, 90]
    (cat / "gone.png").symlink_to(elsewhere / "gone.png")
    with pytest.raises(UserError, match=r"unreadable image: \S*gone\.png"):
        data.load("folder", folder)
    assert len(data.load("folder", folder, skip_unreadable=True).train) == 7


def test_images_of_every_eight_bit_mode_are_read(folder: Path) -> None:
    colour = np.full((5, 6, 3), (200, 40, 8), np.uint8)
    places = {}
    for name, mode in (
        ("p.png", "P"),
        ("c.jpg", "CMYK"),
        ("g.jpg", "L"),
        ("t.tif", "CMYK"),
        ("a.webp", "RGBA"),
        ("b.gif", "P"),
    ):
        path = folder / "train" / "cat" / f"é 漢 {name}"
        Image.fromarray(colour).convert(mode).save(path)
        places[path.name] = mode
    splits = data.load("folder", folder)
    for row, path in enumerate(sorted(places), start=3):
        pixel = splits.train.images[row, :, 2, 3].int()
        expected = torch.tensor([84, 84, 84] if places[path] == "L" else [200, 40, 8])
        assert (pixel - expected).abs().max() <= (60 if places[path] == "P" else 9), path


def test_a_damaged_cache_is_written_again(folder: Path) -> None:
    first = data.load("folder", folder).train.images.clone()
    (cache,) = folder.glob(f"{CACHE}/train*.images")
    whole = cache.read_bytes()
    other = io.BytesIO(whole[:90])
    sealed.seal(other)
    flipped = bytes([whole[0] ^ 1]) + whole[1:]
    for damaged in (b"", b"x" * 500, whole[:100], whole[:-1], flipped, whole[:-200] + whole[-100:], other.getvalue()):
        cache.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"the image cache .* it is packed again"):
            assert torch.equal(data.load("folder", folder).train.images, first)
        assert cache.read_bytes() == whole
    assert {path.name for path in cache.parent.iterdir() if path.suffix not in (".images", ".json")} == set()


def test_a_damaged_size_of_all_images_is_read_again(folder: Path) -> None:
    first = data.load("folder", folder).train.images.clone()
    (size,) = folder.glob(f"{CACHE}/size*.json")
    whole = size.read_text()
    for damaged in ("", "{", whole.replace("6", "7", 1), whole.replace('"RGB"', "5"), "[" * 100_000):
        size.write_text(damaged)
        assert torch.equal(data.load("folder", folder).train.images, first)
        assert size.read_text() == whole


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            write_image(tmp_path / split / name / "0.png", 9, mode="L")
    assert data.load("folder", tmp_path).train.images.shape == (2, 1, 5, 6)
    write_image(tmp_path / "train" / "a" / "1.png", 9, mode="RGBA")
    assert data.load("folder", tmp_path).train.images.shape == (3, 3, 5, 6)


def test_the_cache_is_used_until_the_folder_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data.load("folder", folder).train.images.clone()
    monkeypatch.setattr("rmcla_fast.data.folder.decode", lambda *_: pytest.fail("decoded again"))
    monkeypatch.setattr("PIL.Image.open", lambda *_: pytest.fail("opened again, perhaps for its header"))
    assert torch.equal(data.load("folder", folder).train.images, first)
    monkeypatch.undo()
    write_image(folder / "train" / "cat" / "0.png", 77)
    os.utime(folder / "train" / "cat" / "0.png", ns=(1, 1))
    assert data.load("folder", folder).train.images[0, 0, 1, 1] == 77
    assert not list((folder / CACHE).glob("*.tmp"))


def test_an_unreadable_image_is_named_and_no_cache_is_written(folder: Path) -> None:
    bad = folder / "train" / "dog" / "1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    for content in (bad.read_bytes(), b"no image at all"):
        bad.write_bytes(content)
        with pytest.raises(UserError, match=r"unreadable image: .*1\.png; .*--skip-unreadable"):
            data.load("folder", folder)
        assert not list(folder.glob(f"{CACHE}/train*"))
    with pytest.warns(UserWarning, match=r"left out 1 of 6 images, unreadable: \S*1\.png"):
        splits = data.load("folder", folder, skip_unreadable=True)
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1]


def test_a_class_without_a_readable_image_is_an_error(folder: Path) -> None:
    for path in (folder / "train" / "dog").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="dog has no readable image"):
        data.load("folder", folder, skip_unreadable=True)
    for path in (folder / "train" / "dog").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="dog has no readable image"):
        data.load("folder", folder)


def test_images_of_different_sizes_are_an_error(folder: Path) -> None:
    write_image(folder / "test" / "cat" / "9.png", 1, size=(7, 5))
    with pytest.raises(UserError, match=r"must share one size: .* is 6x5 and .*9\.png is 7x5"):
        data.load("folder", folder)


def test_images_of_sixteen_bits_are_an_error(folder: Path) -> None:
    Image.fromarray(np.zeros((5, 6), np.uint16)).save(folder / "train" / "cat" / "9.png")
    for skip in (False, True):
        with pytest.raises(UserError, match=r"9\.png has pixels of mode I;16"):
            data.load("folder", folder, skip_unreadable=skip)


def test_missing_and_empty_folders_are_errors(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="give --data-dir"):
        data.load("folder")
    with pytest.raises(UserError, match="there is no"):
        data.load("folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no folder test or val"):
        data.load("folder", tmp_path / "empty")
    for split in ("train", "test"):
        (tmp_path / "empty" / split).mkdir()
    with pytest.raises(UserError, match="has no folders in it"):
        data.load("folder", tmp_path / "empty")
    write_image(folder / "test" / "horse" / "0.png", 1)
    with pytest.raises(UserError, match="horse is a class that the training folder does not have"):
        data.load("folder", folder)


def test_a_full_disk_is_an_error_and_does_not_kill_the_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"image cache .* cannot be written: No space left on device"):
        data.load("folder", folder)
    assert {path.suffix for path in (folder / CACHE).iterdir()} == {".json"}


def test_a_user_without_a_home_folder_is_told_to_name_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(UserError, match="cannot be written and you have no home folder; set HOME to one"):
        data.load("folder", folder)


def test_other_users_may_read_the_cache(folder: Path) -> None:
    before = os.umask(0o022)
    try:
        data.load("folder", folder)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.glob(f"{CACHE}/*.images")} == {0o644}


def test_the_number_of_channels_does_not_depend_on_older_caches(tmp_path: Path) -> None:
    """Both splits together decide whether the images are grey, although each split has its own cache."""
    splits = {"colour": "RGB", "grey": "L"}
    for name, mode in splits.items():
        for split in ("train", "test"):
            for label in ("a", "b"):
                write_image(tmp_path / name / split / label / "0.png", 9, mode=mode)

    def load(train: str, test: str) -> tuple[int, ...]:
        root = tmp_path / "data"
        root.mkdir(exist_ok=True)
        for split, source in (("train", train), ("test", test)):
            (root / split).unlink(missing_ok=True)
            (root / split).symlink_to(tmp_path / source / split)
        return data.load("folder", root).train.images.shape

    assert load("colour", "grey") == (2, 3, 5, 6)
    assert load("grey", "colour") == (2, 3, 5, 6)
    assert load("grey", "grey") == (2, 1, 5, 6)
    assert load("colour", "grey") == (2, 3, 5, 6)


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "{}", "[" * 100_000, '{"width": 0, "height": 5, "mode": "L"}', '{"width": "x"}']
)
def test_a_damaged_note_of_the_size_is_written_again(folder: Path, damage: str) -> None:
    first = data.load("folder", folder).train.images.clone()
    (note,) = folder.glob(f"{CACHE}/size*.json")
    whole = note.read_text()
    note.write_text(damage)
    assert torch.equal(data.load("folder", folder).train.images, first)
    assert note.read_text() == whole
