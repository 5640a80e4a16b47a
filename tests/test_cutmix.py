"""CutMix: what it does to images and labels, soft labels in an update, and runs that are stopped and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import read_checkpoint, rmcla, small
from step_cases import EPSILON, batch, network, recipe, sgd
from torch import Tensor
from torch.nn import functional

from rmcla_fast import adversarial_example, random_start, recipes
from rmcla_fast.errors import OutOfMemory
from rmcla_fast.training import TrainStep, train
from rmcla_fast.training.cutmix import CutMix, rectangle


class Constant:
    """A loader whose image number i has the value i everywhere."""

    steps = 5

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(first, self.steps):
            images = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 3, 10, 12).clone()
            yield images, torch.arange(8).roll(step) % 4


def test_labels_are_mixed_by_the_area_of_the_rectangle() -> None:
    loader, shares = CutMix(Constant(), 4, seed=3), []
    for epoch in range(40):
        for (images, labels), (_, classes) in zip(loader.epoch(epoch), Constant().epoch(epoch), strict=True):
            own = torch.arange(8, dtype=torch.uint8)[:, None, None, None]
            pasted = images != own
            assert torch.equal(images, torch.where(pasted, own.roll(1, 0), own))
            assert torch.equal(pasted, pasted[:1].expand_as(pasted))  # one rectangle for the batch
            share = pasted[0, 0].double().mean().item()
            expected = (1 - share) * functional.one_hot(classes, 4) + share * functional.one_hot(classes, 4).roll(1, 0)
            torch.testing.assert_close(labels.double(), expected.double(), rtol=0, atol=1e-6)
            assert labels.dtype == torch.float32
            shares.append(share)
    assert min(shares) < 0.02
    assert max(shares) > 0.7
    assert 0.2 < sum(shares) / len(shares) < 0.5  # the edges cut off a part


def test_a_rectangle_lies_in_the_image_and_depends_on_seed_epoch_and_step() -> None:
    found = [rectangle(10, 12, (seed, epoch, step)) for seed in range(3) for epoch in range(5) for step in range(5)]
    for rows, columns in found:
        assert 0 <= rows.start <= rows.stop <= 10
        assert 0 <= columns.start <= columns.stop <= 12
    assert len({str(one) for one in found}) > 60
    assert found[0] == rectangle(10, 12, (0, 0, 0))


def test_an_epoch_that_begins_in_its_middle_has_the_same_batches() -> None:
    whole, rest = (list(CutMix(Constant(), 4, seed=1).epoch(7, first)) for first in (0, 3))
    for (images, labels), (others, other_labels) in zip(whole[3:], rest, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_one_hot_labels_are_attacked_as_classes_are() -> None:
    images, labels = batch()
    for name in ("n-fgsm", "r-fgsm", "madry-pgd7-2", "standard"):
        chosen = recipes.get(name) if name == "standard" else recipes.get(name).replace(epsilon=EPSILON)
        model, rng = network().double(), torch.tensor([1, 2])
        as_classes = adversarial_example(model, images, labels, chosen, rng=rng)
        soft = functional.one_hot(labels, 10).double()
        as_soft = adversarial_example(model, images, soft, chosen, rng=rng)
        assert torch.equal(as_classes.images, as_soft.images)
        assert torch.equal(as_classes.targets, as_soft.targets)
        losses = []
        for given in (labels, soft):
            model = network().double()
            losses.append(float(TrainStep(model, sgd(model), chosen)(images, given)))
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_an_update_on_soft_labels_is_its_formula_in_plain_torch() -> None:
    images = batch()[0]
    soft = torch.rand(16, 10, dtype=torch.float64).softmax(1)
    ours, theirs = network().double(), network().double()
    step = TrainStep(ours, sgd(ours), recipe("n-fgsm"), seed=3)
    loss = step(images, soft)
    start = random_start(images, 2 * EPSILON, rng=torch.tensor([3, 0])).double().requires_grad_()
    theirs.eval()
    functional.cross_entropy(theirs(start), soft, reduction="sum").backward()
    assert start.grad is not None
    moved = (start.detach() + EPSILON * start.grad.sign()).clamp(0, 1)
    theirs.train()
    theirs.zero_grad()
    expected = functional.cross_entropy(theirs(moved), soft)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    for mine, plain in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, plain.grad, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("name", ["r-mc-la", "n-mc-la", "n-fgsm-la", "trades", "r-mc-la+", "n-margin"])
def test_a_recipe_that_needs_classes_refuses_soft_labels(name: str) -> None:
    images, labels = batch()
    model = network()
    with pytest.raises(TypeError, match=r"needs the classes of the images, int64 of shape \(B,\)"):
        TrainStep(model, sgd(model), recipe(name))(images, functional.one_hot(labels, 10).float())


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((15, 10), r"soft labels must have shape \(16, classes\); got \(15, 10\)"),
        ((16, 9), r"labels"),
    ],
)
def test_soft_labels_of_another_size_are_one_sentence(shape: tuple[int, ...], words: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=words):
        TrainStep(model, sgd(model), recipe("n-fgsm"))(batch()[0], torch.rand(shape))


def test_a_run_with_cutmix_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"cutmix": True, "recipe": "n-fgsm", "epochs": 2, "ema": 0.9, "checkpoint_every": 4}
    whole, out = train(small(tmp_path / "whole", **options)), tmp_path / "killed"
    calls, call = [0], TrainStep.__call__

    def killed(self: TrainStep, images: Tensor, labels: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == 6:
            raise MemoryError
        return call(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", killed)
        with pytest.raises(OutOfMemory):
            train(small(out, **options))
    assert read_checkpoint(out / "checkpoint.pt")["step"] == 4
    train(small(out, **options, resume=True))
    ours, theirs = (read_checkpoint(folder / "checkpoint.pt") for folder in (out, whole))
    for part in ("model", "ema"):
        assert all(torch.equal(ours[part][key], value) for key, value in theirs[part].items())


def test_a_recipe_that_cannot_be_mixed_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rmcla("train", "--data", "digits", "--recipe", "r-mc-la", "--cutmix", "--out", tmp_path / "a") == 2
    assert "--cutmix gives soft labels, which --recipe r-mc-la cannot take" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "a").exists()
