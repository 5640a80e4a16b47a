"""Tests of the inputs of an update: the batches of an epoch, the shares of ranks, learning rate and warm-up."""

from __future__ import annotations

import pytest
import torch

import rmcla_fast
from rmcla_fast import models
from rmcla_fast.data import ImageSet
from rmcla_fast.errors import UserError
from rmcla_fast.training.distributed import World
from rmcla_fast.training.loader import Loader, epoch_order, steps_in_epoch
from rmcla_fast.training.schedule import Schedule, build_optimizer, set_rate, warmed_up

CPU = torch.device("cpu")


def test_an_epoch_has_each_image_once_and_may_start_at_any_step() -> None:
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 6, 6).contiguous()
    rng = torch.tensor([5, 0])
    loader = Loader(ImageSet(images, torch.arange(10)), 4, 5, CPU, rng, augment=True, flip=True, world=World())
    epoch = []
    for batch in loader.epoch(1):
        epoch.append(batch)
        rng[1] += 1  # as an update does
    labels = [labels for _, labels in epoch]
    assert [len(some) for some in labels] == [4, 4, 2]
    assert torch.cat(labels).tolist() == epoch_order(10, 5, 1).tolist()
    assert sorted(torch.cat(labels).tolist()) == list(range(10))
    assert epoch_order(10, 5, 1).tolist() != epoch_order(10, 5, 2).tolist() != epoch_order(10, 6, 1).tolist()
    rng[1] = 2
    later = next(loader.epoch(1, first=2))
    assert torch.equal(later[0], epoch[2][0])
    assert steps_in_epoch(9, 4) == 2  # a single image is left out
    with pytest.raises(UserError, match="3 training images are left beside those held out, fewer than a batch of 4"):
        steps_in_epoch(3, 4)


def test_images_stay_bytes_and_are_cropped_with_the_rng_of_the_update() -> None:
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rng = torch.tensor([7, 3])
    held = ImageSet(images, torch.arange(12))
    for flip in (True, False):
        batch, labels = next(Loader(held, 12, 0, CPU, rng, augment=True, flip=flip, world=World()).epoch(0))
        assert torch.equal(batch, rmcla_fast.augment(images, labels, rng=rng, flip=flip))
    batch, labels = next(Loader(held, 12, 0, CPU, rng, augment=False, flip=True, world=World()).epoch(0))
    assert torch.equal(batch, images[labels])


def test_ranks_share_each_batch_equally() -> None:
    held = ImageSet(torch.zeros(23, 1, 4, 4, dtype=torch.uint8), torch.arange(23))
    rng = torch.tensor([0, 0])
    both = [Loader(held, 8, 0, CPU, rng, augment=True, flip=True, world=World(rank, 2)) for rank in range(2)]
    shares = [[labels for _, labels in loader.epoch(0)] for loader in both]
    assert [[len(labels) for labels in share] for share in shares] == [[4, 4, 3]] * 2  # one image of 23 is left out
    seen = torch.cat(shares[0] + shares[1]).tolist()
    assert len(set(seen)) == len(seen) == 22
    with pytest.raises(UserError, match="cannot be shared by 3 processes"):
        steps_in_epoch(23, 8, ranks=3)


def test_learning_rates_follow_the_schedule_and_the_warm_up() -> None:
    piecewise = Schedule("piecewise", 0.1, 200)
    assert [piecewise.rate(step) for step in (0, 99, 100, 149, 150, 199)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01] + [1e-3] * 2
    )
    cycle = Schedule("one-cycle", 0.2, 1000)
    rates = [cycle.rate(step) for step in range(1000)]
    assert max(rates) == pytest.approx(0.2)
    assert rates.index(max(rates)) == 300
    assert rates[0] < 0.01
    assert 0 < rates[-1] < 1e-3
    assert [warmed_up(0.3, step, 2) for step in (0, 1, 2)] == pytest.approx([0.1, 0.2, 0.3])


def test_only_weights_decay() -> None:
    model = models.create("small-cnn", 10, 1)
    optimizer = build_optimizer(model, 0.1, 0.9, 5e-4)
    set_rate(optimizer, 0.05)
    decayed = {
        id(parameter) for group in optimizer.param_groups if group["weight_decay"] for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (name.endswith("weight") and parameter.dim() > 1)
    assert all(float(group["lr"]) == pytest.approx(0.05) for group in optimizer.param_groups)
