"""Image files of every kind: hostile ones are refused with a reason and in time, and only the first frame is read."""

from __future__ import annotations

import os
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_files import write_folder
from run_cases import rmcla

from rmcla_fast import data
from rmcla_fast.data import images
from rmcla_fast.data.imagenet import middle
from rmcla_fast.data.images import decode, in_threads, open_image
from rmcla_fast.errors import UserError

Image = pytest.importorskip("PIL.Image", reason="pip install 'rmcla-fast[train]'")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes) -> bytes:
    """Return a PNG whose header has this size, with further chunks and no pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def encapsulated_postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 5\n%%EndComments\nshowpage\n")


def sparse(path: Path) -> None:
    path.write_bytes(b"RIFF\xff\xff\xff\xffWEBPVP8 ")  # Pillow reads a WebP file whole
    os.truncate(path, 2**40)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


HOSTILE: list[tuple[Callable[[Path], object], str]] = [
    (a_pipe, " (not a regular file)"),
    (lambda path: path.symlink_to(os.devnull), " (not a regular file)"),
    (lambda path: path.symlink_to("/dev/zero"), " (not a regular file)"),
    (lambda path: path.symlink_to(path), " (Too many levels of symbolic links)"),
    (lambda path: path.symlink_to("gone"), " (No such file or directory)"),
    (lambda path: path.write_bytes(png(60000, 60000)), " (more than 178956970 pixels)"),
    (sparse, " (1099511627776 bytes, more than 1073741824)"),
    (lambda path: path.write_bytes(png(0, 5)), ""),
    (lambda path: path.write_bytes(b""), ""),
    (lambda path: path.write_bytes(png(6, 5)), ""),
    (lambda path: path.write_bytes(png(6, 5, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))))), ""),
    (encapsulated_postscript, ""),
]
NAMES = ["pipe", "null", "zero", "loop", "gone", "bomb", "sparse", "no width", "empty", "cut", "text", "EPS"]


@pytest.mark.parametrize(("write", "why"), HOSTILE, ids=NAMES)
@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_a_hostile_file_is_named_with_the_reason_and_can_be_left_out(
    tmp_path: Path, kind: str, write: Callable[[Path], object], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("a program was started"))
    root = write_folder(tmp_path)
    bad = root / "test" / "cat" / "9.png"
    write(bad)
    with pytest.raises(UserError) as caught:
        data.load(kind, root)
    if (
        kind == "imagenet" and bad.is_symlink() and not bad.exists()
    ):  # the system's error comes before the images are read
        assert str(caught.value) == f"{bad} cannot be read: {why[2:-1]}"
    else:
        assert str(caught.value).startswith(f"unreadable image: {bad}{why}; remove it")
    with pytest.warns(UserWarning, match="left out 1 of 7 images, unreadable: ") as warned:
        splits = data.load(kind, root, skip_unreadable=True)
    assert str(bad) + why in str(warned[0].message)
    assert len(splits.test) == 6


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    (root / "train" / "cat" / "9.png").mkdir()
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / "9.png" / "0.png")
    assert len(data.load("folder", root).train) == 6


def test_a_file_that_may_not_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    bad = root / "train" / "cat" / "0.png"
    bad.chmod(0)
    if os.access(bad, os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(UserError, match=r"unreadable image: \S*0\.png \(Permission denied\); remove it"):
        data.load("folder", root)


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.png", "a.webp"])
def test_the_first_frame_of_several_is_read(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (6, 5), (60 * k, 0, 0)) for k in range(1, 4)]
    options = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == 3
    assert (decode(tmp_path / name, "RGB")[:, :, 0] == 60).all()


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (91, 1400), (1280, 80), (256, 4096)])
def test_the_middle_has_the_same_pixels_as_if_the_whole_image_were_resized(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    scale = 256 / min(size)
    whole = Image.fromarray(pixels).resize(tuple(round(side * scale) for side in size), Image.Resampling.BILINEAR)
    left, top = (whole.width - 224) // 2, (whole.height - 224) // 2
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224))).transpose(2, 0, 1)
    assert np.array_equal(middle(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("size", [(1, 60000), (60001, 1), (3, 5001), (7000, 20)])
def test_a_long_image_is_not_resized_whole(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The middle of a slope is its middle grey, whatever is left out on both sides."""
    slope = np.linspace(0, 255, max(size)).astype(np.uint8)
    pixels = np.broadcast_to(slope if size[0] > size[1] else slope[:, None], size[::-1])
    Image.fromarray(pixels.copy()).save(tmp_path / "a.png")
    resized = []
    plain = Image.Image.resize

    def resize(self: object, size: tuple[int, int], *more: object) -> object:
        resized.append(size)
        return plain(self, size, *more)

    monkeypatch.setattr(Image.Image, "resize", resize)
    values = middle(tmp_path / "a.png")
    assert values.shape == (3, 224, 224)
    assert abs(int(values[0, 112, 112]) - 127) <= 1
    assert np.prod(resized[0]) <= 17 * 256 * 256


def test_only_one_large_image_is_decoded_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGE_IMAGE", 20)
    for name, size in (("small.png", (4, 5)), ("large.png", (5, 5))):
        Image.new("RGB", size).save(tmp_path / name)
    now, most, change, two = 0, 0, threading.Lock(), threading.Barrier(2)

    def hold(path: Path) -> None:
        nonlocal now, most
        with open_image(path):
            with change:
                now += 1
                most = max(most, now)
            if path.name == "small.png":
                two.wait(60)  # until another thread has opened it, too
            else:
                time.sleep(0.01)
            with change:
                now -= 1

    for name, together in (("large.png", False), ("small.png", True)):
        most = 0
        list(in_threads(hold, [tmp_path / name] * 20))
        assert (most > 1) == together


def test_items_are_taken_while_the_results_are_used() -> None:
    taken = []

    def items() -> object:
        for k in range(5000):
            taken.append(k)
            yield k

    results = in_threads(lambda k: k + 1, items())
    assert next(results) == 1
    assert len(taken) <= 1024
    assert list(results) == list(range(2, 5001))


def test_a_name_with_control_characters_is_printed_on_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(tmp_path / "data")
    (root / "test" / "cat" / "a\nb\x1b[2J\u202e.png").write_bytes(b"no image")
    assert rmcla("train", "--data", "folder", "--data-dir", root, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("rmcla: unreadable image: ")
    assert r"cat/a\nb\x1b[2J\u202e.png; remove it" in said
