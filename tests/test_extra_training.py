"""Runs with extra training images: the share in each batch, the order, and runs that are stopped and resumed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import write_extra
from run_cases import Batch, at_step, read_checkpoint, rmcla, small
from torch import Tensor

from rmcla_fast import augment
from rmcla_fast.attacks.attack_result import AttackResult
from rmcla_fast.data import ImageSet
from rmcla_fast.errors import RunFailed, UserError
from rmcla_fast.evaluation.robustbench import entry
from rmcla_fast.evaluation.run import open_run
from rmcla_fast.training import TrainConfig, checkpoint, held_images, train
from rmcla_fast.training.distributed import World
from rmcla_fast.training.loader import ExtraShare, Loader, epoch_order, mixed_order

CPU = torch.device("cpu")
OWN, MORE = 50, 150  # images, whose number is their label


def numbered(first: int, count: int) -> ImageSet:
    """Return images whose label is their number, and whose pixels are drawn with it; the bytes are (N, H, W, C)."""
    numbers = torch.arange(first, first + count)
    pixels = [torch.randint(0, 256, (6, 6, 3), generator=torch.Generator().manual_seed(int(k))) for k in numbers]
    return ImageSet(torch.stack(pixels).byte().permute(0, 3, 1, 2), numbers)


def loader(
    size: int = 16, extra: int = 11, world: World | None = None, augmented: bool = False, device: torch.device = CPU
) -> Loader:
    rng = torch.tensor([5, 0], device=device)
    own, more = numbered(0, OWN), ExtraShare(numbered(OWN, MORE), extra)
    own = ImageSet(own.images.contiguous(), own.labels)
    return Loader(own, size, 3, device, rng, augmented, True, world or World(), more)


def test_each_batch_has_its_share_and_an_epoch_its_updates() -> None:
    """50 images in batches of 16 are three updates, and a fourth with two images, which are now 16."""
    batches = [labels for epoch in range(100) for _, labels in loader().epoch(epoch)]
    assert len(batches) == 100 * 4
    assert {(len(labels), int((labels >= OWN).sum())) for labels in batches} == {(16, 11)}
    for epoch in range(100):
        seen = torch.cat(batches[4 * epoch : 4 * epoch + 4])
        assert len(set(seen[seen < OWN].tolist())) == 4 * 5  # no image of the training set comes twice
    drawn = torch.bincount(torch.cat(batches), minlength=OWN + MORE)
    assert 20 <= drawn[:OWN].min() <= drawn[:OWN].max() <= 60  # 40 are expected of each
    assert 10 <= drawn[OWN:].min() <= drawn[OWN:].max() <= 60  # 29 are expected of each
    places = torch.stack(batches) >= OWN
    assert 0.5 < places.double().mean(0).min() <= places.double().mean(0).max() < 0.85  # they are shuffled


def test_images_keep_their_labels_and_are_augmented_as_others_are() -> None:
    everything = torch.cat((numbered(0, OWN).images, numbered(OWN, MORE).images)).contiguous()
    for augmented in (False, True):
        for images, labels in loader(augmented=augmented).epoch(2):
            rng = torch.tensor([5, 0])
            expected = augment(everything, labels, rng=rng, flip=True) if augmented else everything[labels]
            assert torch.equal(images, expected)


def test_the_order_depends_on_seed_and_epoch_and_not_on_where_it_begins() -> None:
    whole = [labels for _, labels in loader().epoch(7)]
    for first in range(4):
        rest = [labels for _, labels in loader().epoch(7, first)]
        assert all(torch.equal(one, other) for one, other in zip(whole[first:], rest, strict=True))
    orders = [mixed_order((OWN, MORE), (5, 11), 4, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order.tolist()) for order in orders}) == 9


def test_a_small_share_begins_the_order_of_the_training_set_anew() -> None:
    order = mixed_order((OWN, MORE), (15, 1), 4, 0, 0)
    own = order.view(4, 16).sort().values[:, :15]
    known = epoch_order(OWN, 0, 0).tolist()
    assert own.tolist() == [sorted((known + known)[start : start + 15]) for start in range(0, 60, 15)]


def test_an_epoch_of_a_large_extra_set_costs_no_more() -> None:
    assert mixed_order((OWN, 10**12), (5, 11), 4, 0, 0).max() > 10**10


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_each_mixed_batch(ranks: int) -> None:
    whole = [sorted(labels.tolist()) for _, labels in loader().epoch(1)][:3]  # the fourth has too few images of its own
    shares = [[labels for _, labels in loader(world=World(rank, ranks)).epoch(1)] for rank in range(ranks)]
    assert {len(labels) for share in shares for labels in share} == {16 // ranks}
    assert whole == [sorted(torch.cat(parts).tolist()) for parts in zip(*shares, strict=True)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("share", [0.4, 0.0])
@pytest.mark.parametrize("augmented", [False, True])
def test_a_gpu_gets_the_batches_of_a_cpu(share: float, augmented: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sets are on the GPU, or both are on the host, where nothing fits on the GPU."""
    monkeypatch.setattr(held_images, "SHARE_OF_MEMORY", share)
    gpu = torch.device("cuda:0")
    both = zip(loader(augmented=augmented).epoch(1), loader(augmented=augmented, device=gpu).epoch(1), strict=True)
    for (images, labels), (on_gpu, labels_on_gpu) in both:
        assert on_gpu.device == labels_on_gpu.device == gpu
        assert torch.equal(on_gpu.cpu(), images)
        assert torch.equal(labels_on_gpu.cpu(), labels)


def weights(out: Path) -> dict[str, Tensor]:
    return checkpoint.read(out / checkpoint.LAST).model


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def stop(batch: Batch) -> Batch:
    raise RunFailed("stopped")


def stopped_at(step: int, out: Path, **options: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, stop)
        with pytest.raises(RunFailed, match="stopped"):
            train(small(out, checkpoint_every=1, **options))


@pytest.mark.slow
def test_a_run_resumed_at_any_step_ends_with_the_same_bits(tmp_path: Path) -> None:
    path = write_extra(tmp_path / "more.npz")
    train(small(tmp_path / "whole", extra_data=path))
    known = weights(tmp_path / "whole")
    total = checkpoint.read(tmp_path / "whole" / checkpoint.LAST).step
    assert total == 12
    for step in range(1, total):
        out = tmp_path / f"{step}"
        stopped_at(step, out, extra_data=path)
        assert read_checkpoint(out / checkpoint.LAST)["step"] == step
        train(TrainConfig(out=str(out), resume=True))
        assert same(weights(out), known)
    train(small(tmp_path / "without"))
    assert checkpoint.read(tmp_path / "without" / checkpoint.LAST).step == total
    assert not same(weights(tmp_path / "without"), known)


@pytest.mark.parametrize(
    "options",
    [
        {"augment": True, "ema": 0.9},
        {"accumulate": 4, "precision": "bf16"},
        {"recipe": "n-fgsm", "cutmix": True, "extra_fraction": 0.3},
        {"monitor_images": 0, "extra_fraction": 0.9, "recipe": "trades"},
    ],
)
def test_other_options_work_with_extra_images(options: dict[str, Any], tmp_path: Path) -> None:
    path = write_extra(tmp_path / "more.npz")
    options["extra_data"] = path
    train(small(tmp_path / "whole", **options))
    stopped_at(7, tmp_path / "killed", **options)
    train(TrainConfig(out=str(tmp_path / "killed"), resume=True))
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_the_command_says_and_records_what_it_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_extra(tmp_path / "more.npz")
    monkeypatch.chdir(tmp_path)
    run = ("train", "--data", "digits", "--images-per-class", 20, "--epochs", 1, "--device", "cpu")
    assert rmcla(*run, "--extra-data", "more.npz", "--extra-fraction", 0.5, "--out", "run") == 0
    assert "; 16 of the 32 images in each batch are drawn from 300 extra ones; writing run" in capsys.readouterr().err
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (recorded["extra_data"], recorded["extra_fraction"]) == (str(path), 0.5)
    assert (recorded["extra_images"], len(recorded["extra_checksum"])) == (300, 17)
    options = {field.name: recorded[field.name] for field in dataclasses.fields(TrainConfig)}
    train(TrainConfig(**options | {"out": str(tmp_path / "again")}))
    assert same(weights(tmp_path / "again"), weights(tmp_path / "run"))
    assert json.loads((tmp_path / "again" / "config.json").read_text())["extra_checksum"] == recorded["extra_checksum"]


def test_a_run_goes_on_with_the_same_images_alone(tmp_path: Path) -> None:
    path, out = write_extra(tmp_path / "more.npz"), tmp_path / "run"
    train(small(tmp_path / "whole", extra_data=path))
    stopped_at(7, out, extra_data=path)
    write_extra(path, label=np.zeros(300, np.int64))
    with pytest.raises(UserError, match=r"run was trained on 300 extra images with .*, and now .*more\.npz has 300"):
        train(TrainConfig(out=str(out), resume=True))
    path.unlink()
    with pytest.raises(UserError, match=r"there is no file .*more\.npz"):
        train(TrainConfig(out=str(out), resume=True))
    with pytest.raises(UserError, match=r"was started with --extra-fraction 0\.7 and cannot be resumed with 0\.5"):
        train(TrainConfig(out=str(out), resume=True, extra_fraction=0.5))
    moved = write_extra(tmp_path / "moved.npz", save=np.savez_compressed)
    train(TrainConfig(out=str(out), resume=True, extra_data=moved))
    assert same(weights(out), weights(tmp_path / "whole"))

    stopped_at(7, tmp_path / "without")
    with pytest.raises(UserError, match=r"without was trained on no extra images, and now .*; leave --extra-data out"):
        train(TrainConfig(out=str(tmp_path / "without"), resume=True, extra_data=moved))


def test_a_robustbench_entry_tells_of_the_extra_images(tmp_path: Path) -> None:
    train(small(tmp_path / "run", epochs=1, extra_data=write_extra(tmp_path / "more.npz")))
    results = {name: AttackResult(80.0, 20, 0.1) for name in ("clean", "autoattack")}
    found = entry(open_run(tmp_path / "run", images=20), results, 8 / 255)
    assert found["additional_data"] is True
    assert "; 300 extra training images" in found["footnote"]
