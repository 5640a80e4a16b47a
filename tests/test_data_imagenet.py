"""ImageNet: training crops that depend only on (seed, epoch, image), and a cache of the test images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_cases import read_checkpoint
from torch import nn

from rmcla_fast import data
from rmcla_fast.data import StreamedSet
from rmcla_fast.data.imagenet import SIZE, random_crop
from rmcla_fast.errors import RunFailed, UserError
from rmcla_fast.training import TrainConfig, checkpoint, train
from rmcla_fast.training.distributed import World
from rmcla_fast.training.loader import StreamedLoader
from rmcla_fast.training.metrics import read_metrics
from rmcla_fast.training.run_folder import RunFolder

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for k, name in enumerate(("n01440764", "n01443537")):
            (tmp_path / split / name).mkdir(parents=True)
            for image in range(count):
                pixels = draw.integers(0, 256, (300 + 10 * image, 280 + 40 * k, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{image}.JPEG", "JPEG")
    return tmp_path


def batches(root: Path, workers: int, augment: bool = True) -> StreamedLoader:
    train = data.load("imagenet", root).train
    assert isinstance(train, StreamedSet)
    return StreamedLoader(train, 4, 7, torch.device("cpu"), augment, workers, World())


def test_the_splits_come_from_train_and_val(imagenet: Path) -> None:
    (imagenet / "test").mkdir()  # the official folder, whose images have no labels
    (imagenet / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(b"")
    splits = data.load("imagenet", imagenet, images_per_class=5)
    assert isinstance(splits.train, StreamedSet)
    assert len(splits.train) == 10
    assert splits.train.shape == (3, SIZE, SIZE)
    assert splits.test.images.shape == (4, 3, SIZE, SIZE)
    assert splits.classes == ("n01440764", "n01443537")
    with pytest.raises(UserError, match=r"image-net\.org"):
        data.load("imagenet", imagenet / "train")


def test_batches_do_not_depend_on_the_workers_or_the_first_batch(imagenet: Path) -> None:
    here = list(batches(imagenet, workers=0).epoch(1))
    assert [images.shape for images, _ in here] == [(4, 3, SIZE, SIZE)] * 3
    assert here[0][0].dtype == torch.uint8
    (later,) = batches(imagenet, workers=1).epoch(1, first=2)
    assert all(map(torch.equal, later, here[2]))
    assert not torch.equal(next(batches(imagenet, workers=0).epoch(2))[0], here[0][0])


def test_a_crop_stays_inside_a_narrow_image(tmp_path: Path) -> None:
    Image.fromarray(np.full((900, 9, 3), 200, np.uint8)).save(tmp_path / "narrow.png")
    for seed in range(5):
        pixels = random_crop(tmp_path / "narrow.png", np.random.default_rng(seed))
        assert pixels.shape == (3, SIZE, SIZE)
        assert (pixels == 200).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_when_it_is_needed(imagenet: Path, workers: int) -> None:
    bad = imagenet / "train" / "n01440764" / "3.JPEG"
    bad.write_bytes(b"broken")
    with pytest.raises(RunFailed, match=r"^unreadable image: \S*3\.JPEG; remove it, or leave it out with") as caught:
        list(batches(imagenet, workers).epoch(0))
    assert "\n" not in str(caught.value)
    train = data.load("imagenet", imagenet, skip_unreadable=True).train
    assert len(train) == 11


@pytest.mark.parametrize("augment", [True, False])
def test_images_of_sixteen_bits_are_an_error_and_not_clipped_to_white(imagenet: Path, augment: bool) -> None:
    deep = Image.fromarray(np.full((300, 300), 1000, np.uint16))
    deep.save(imagenet / "train" / "n01440764" / "deep.png")
    with pytest.raises(RunFailed, match=r"^\S*deep\.png has pixels of mode I;16; convert it"):
        list(batches(imagenet, workers=0, augment=augment).epoch(0))
    deep.save(imagenet / "val" / "n01440764" / "deep.png")
    with pytest.raises(UserError, match=r"deep\.png has pixels of mode I;16"):
        data.load("imagenet", imagenet)


def linear(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(48, num_classes))


def test_a_training_run_can_be_resumed(imagenet: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "data": "imagenet",
        "data_dir": str(imagenet),
        "model": f"{__name__}:linear",
        "batch_size": 4,
    }
    options |= {"epochs": 2, "workers": 1, "monitor_images": 1, "lr": 0.01, "checkpoint_every": 1}
    train(TrainConfig(**options, out=str(tmp_path / "a")))
    whole = read_checkpoint(tmp_path / "a" / "checkpoint.pt")
    assert (whole["step"], whole["config"]["image_size"]) == (6, [SIZE, SIZE])
    assert "pgd" in read_metrics(tmp_path / "a" / "metrics.jsonl")[-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save", lambda self, state, best=False: _die_after(self, state, best))
        with pytest.raises(KeyboardInterrupt):
            train(TrainConfig(**options, out=str(tmp_path / "b")))
    with pytest.raises(UserError, match=r"started with the factory \S+:linear; name it again \(--model\)"):
        train(TrainConfig(out=str(tmp_path / "b"), resume=True))
    train(TrainConfig(out=str(tmp_path / "b"), resume=True, model=options["model"]))
    resumed = read_checkpoint(tmp_path / "b" / "checkpoint.pt")
    assert all(torch.equal(resumed["model"][name], whole["model"][name]) for name in whole["model"])


def _die_after(folder: RunFolder, state: dict[str, Any], best: bool) -> None:
    checkpoint.save(folder.path / (checkpoint.BEST if best else checkpoint.LAST), state)
    if state["step"] == 4:
        raise KeyboardInterrupt
