"""One update from several pieces of a batch: the gradients of the whole batch, and new noise in each piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from step_cases import EPSILON, RefuseHostReads, batch, network, process_group, recipe, sgd, train, weights
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rmcla_fast import models, random_start
from rmcla_fast.training import ExponentialAverage, TrainStep


def plain() -> nn.Module:
    """Return a network without batch norm, so that a batch's gradient is the mean of the gradients of its pieces."""
    torch.manual_seed(0)
    return models.create("small-cnn", 10, 1)


def updated(name: str, accumulate: int, size: int, **options: Any) -> tuple[list[float], Tensor]:
    """Return the losses and the change of the weights over two updates whose attacks start at the clean images.

    A random start would differ from that of the whole batch, because each piece draws its own noise.
    """
    model = plain()
    before = weights(model)
    still = recipe(name).replace(start="none")
    step = TrainStep(model, sgd(model, 0.1, fused=True), still, accumulate=accumulate, **options)
    losses = [float(step(*batch(size, seed=n))) for n in range(2)]
    return losses, weights(model) - before


@pytest.mark.parametrize(("accumulate", "size"), [(2, 16), (4, 16), (3, 16), (8, 7)], ids=str)
@pytest.mark.parametrize("name", ["standard", "r-mc-la", "r-mc-la9+", "trades", "madry-pgd7-2"])
def test_pieces_give_the_gradient_of_the_whole_batch(name: str, accumulate: int, size: int) -> None:
    losses, change = updated(name, accumulate, size)
    expected_losses, expected = updated(name, 1, size)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert float((change - expected).norm() / expected.norm()) < 2e-4


@pytest.mark.parametrize("options", [{"clip_norm": 0.01}, {"skip_nonfinite": True}], ids=["clipped", "skipping"])
def test_clipping_and_skipping_see_the_whole_gradient(options: dict[str, Any]) -> None:
    losses, change = updated("r-mc-la", 4, 16, **options)
    expected_losses, expected = updated("r-mc-la", 1, 16, **options)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert float((change - expected).norm() / expected.norm()) < 2e-4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["r-mc-la", "trades"])
def test_pieces_give_the_gradient_of_the_whole_batch_in_16_bits(name: str, precision: str) -> None:
    losses, change = updated(name, 4, 16, precision=precision)
    expected_losses, expected = updated(name, 1, 16, precision=precision)
    assert losses == pytest.approx(expected_losses, rel=0.01)
    assert float((change - expected).norm() / expected.norm()) < 0.1


def test_an_update_in_pieces_costs_the_same_passes() -> None:
    model = plain()
    images, labels = batch()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(images.float() / 255)
    step = TrainStep(model, sgd(model), recipe("r-mc-la"), accumulate=4, capture="eager")
    with FlopCounterMode(display=False) as update:
        step(images, labels)
    whole = TrainStep(model, sgd(model), recipe("r-mc-la"), capture="eager")
    with FlopCounterMode(display=False) as unaccumulated:
        whole(images, labels)
    assert update.get_total_flops() == unaccumulated.get_total_flops()
    assert update.get_total_flops() < 5.1 * forward.get_total_flops()


# Noise.


def test_every_piece_draws_different_noise() -> None:
    """The first forward pass of a piece gets its start. Piece p of call n draws from (seed, n * accumulate + p)."""
    model = plain()
    starts: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not module.training:
            starts.append(inputs[0].detach().clone())

    model.register_forward_pre_hook(note)
    step = TrainStep(model, sgd(model), recipe("r-mc-la"), seed=5, accumulate=3)
    images, labels = batch(1)[0].expand(12, 1, 8, 8).contiguous(), torch.zeros(12, dtype=torch.int64)
    step(images, labels)
    step(images[:2], labels[:2])  # two images are one piece, but the call counts as three
    step(images, labels)
    assert [len(start) for start in starts] == [4, 4, 4, 2, 4, 4, 4]
    for number, start in zip((0, 1, 2, 3, 6, 7, 8), starts, strict=True):
        assert torch.equal(start, random_start(images[: len(start)], EPSILON, rng=torch.tensor([5, number])))
    everything = torch.cat(starts).flatten(1)
    assert len(everything.unique(dim=0)) == len(everything)


# Running statistics, host reads, compilation, several ranks.


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_running_statistics_are_updated_once_per_piece(mode: str) -> None:
    model = network()
    average = ExponentialAverage(model, 0.5)
    step = TrainStep(model, sgd(model), recipe("r-mc-la").replace(attack_mode=mode), accumulate=4, ema=average)
    train(step, 3)
    counters = [value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counters
    assert all(int(value) == 12 for value in counters)
    assert step.calls == 3


def test_nothing_is_read_on_the_host() -> None:
    model = network()
    optimizer = sgd(model, fused=True)
    average = ExponentialAverage(model, 0.9)
    step = TrainStep(model, optimizer, recipe("r-mc-la"), ema=average, clip_norm=1.0, skip_nonfinite=True, accumulate=3)
    given, short = batch(), batch(5)
    with RefuseHostReads():
        step(*given)
        step(*short)


@pytest.mark.slow
def test_the_compiled_step_gives_the_results_of_the_eager_one() -> None:
    """Both run in float64, where rounding does not flip the direction of a pixel."""
    torch.compiler.reset()
    results = {}
    for capture in ("eager", "compile"):
        model = network().double()
        step = TrainStep(model, sgd(model, 0.02), recipe("r-mc-la"), capture=capture, seed=1, accumulate=2)
        losses = []
        for n, size in enumerate((16, 16, 16, 7)):
            values, labels = batch(size, seed=n)
            losses.append(float(step(values.double() / 255, labels)))
        results[capture] = (losses, weights(model))
    torch.compiler.reset()
    assert results["compile"][0] == pytest.approx(results["eager"][0], rel=1e-6)
    torch.testing.assert_close(results["compile"][1], results["eager"][1], rtol=0, atol=1e-6)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_ranks_synchronise_once_per_update(tmp_path: Path) -> None:
    model = network()
    expected = train(TrainStep(model, sgd(model), recipe("r-mc-la"), seed=1, accumulate=4), 3)
    with process_group(tmp_path):
        wrapped = nn.parallel.DistributedDataParallel(network())
        reduced: list[int] = []

        def count(bucket: Any) -> torch.futures.Future[Tensor]:
            reduced.append(bucket.index())
            done: torch.futures.Future[Tensor] = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        # A lambda has no annotations, which PyTorch would check.
        wrapped.register_comm_hook(None, lambda _, bucket: count(bucket))
        step = TrainStep(wrapped, sgd(wrapped), recipe("r-mc-la"), seed=1, accumulate=4)
        assert train(step, 3) == expected
        assert torch.equal(weights(wrapped), weights(model))
        assert reduced.count(0) == 3
