"""Recipes whose fields are changed in their name, and label smoothing in an update."""

from __future__ import annotations

import math

import pytest
import torch
from step_cases import EPSILON, batch, network, sgd
from torch import Tensor
from torch.nn import functional

from rmcla_fast import models, random_start, recipes
from rmcla_fast.training import TrainStep


def main_labels(z: Tensor, labels: Tensor, beta: float = 9.0, gamma: float = 0.01) -> Tensor:
    """Return the paper's labels: the others get M - z_k + gamma, the true class beta times the largest of these."""
    true = functional.one_hot(labels, z.shape[1]).bool()
    share = (z.masked_fill(true, -math.inf).amax(1, keepdim=True) - z + gamma).masked_fill(true, 0)
    kept = beta * share.amax(1, keepdim=True)
    return torch.where(true, kept, share) / (share.sum(1, keepdim=True) + kept)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("scheme", ["none", "main"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_an_update_with_smoothed_labels_is_its_formula_in_plain_torch(mode: str, scheme: str, smoothing: float) -> None:
    """The attack uses the labels as they are; the loss moves a share of each to all classes alike."""
    images, labels = batch()
    ours, theirs = network().double(), network().double()
    chosen = recipes.get(f"n-fgsm,attack_mode={mode},label_scheme={scheme},label_smoothing={smoothing}")
    loss = TrainStep(ours, sgd(ours), chosen.replace(epsilon=EPSILON), seed=3)(images, labels)

    start = random_start(images, 2 * EPSILON, rng=torch.tensor([3, 0])).double().requires_grad_()
    buffers = {name: value.clone() for name, value in theirs.named_buffers()}
    theirs.train(mode == "train")
    z = theirs(start)
    (grad,) = torch.autograd.grad(functional.cross_entropy(z, labels, reduction="sum"), start)
    y = functional.one_hot(labels, 10).double() if scheme == "none" else main_labels(z.detach(), labels)
    theirs.load_state_dict(buffers, strict=False)
    theirs.train()
    moved = (start.detach() + EPSILON * grad.sign()).clamp(0, 1)
    expected = functional.cross_entropy(theirs(moved), y, label_smoothing=smoothing)
    expected.backward()
    # The images of an update are float32, so that signs near zero may differ.
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    for mine, plain in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, plain.grad, rtol=2e-2, atol=2e-4)


def test_trades_smooths_the_labels_of_its_clean_images() -> None:
    images, labels = batch()
    losses = {}
    for smoothing in (0.0, 0.4):
        model = network().double()
        chosen = recipes.get(f"trades,label_smoothing={smoothing},trades_weight=0").replace(epsilon=EPSILON)
        losses[smoothing] = float(TrainStep(model, sgd(model), chosen)(images, labels))
        plain = functional.cross_entropy(network().double()(images.double() / 255), labels, label_smoothing=smoothing)
        assert losses[smoothing] == pytest.approx(plain.item(), rel=1e-5)
    assert losses[0.0] != losses[0.4]


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic_convolutions")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", ["n-fgsm,label_smoothing=0.4", "r-mc-la,attack_mode=train,label_smoothing=0.1"])
@pytest.mark.parametrize("soft", [False, True])
def test_the_graph_gives_the_results_of_the_eager_step(name: str, soft: bool) -> None:
    if soft and name.startswith("r-mc-la"):
        pytest.skip("this recipe takes no soft labels")
    losses: dict[str, list[float]] = {}
    for capture in ("eager", "cuda-graph"):
        torch.manual_seed(0)
        model = models.WideResNet(10, depth=10, width=1).cuda().double()
        step = TrainStep(model, sgd(model, fused=True), recipes.get(name), capture=capture)
        losses[capture] = []
        for number in range(8):
            generator = torch.Generator().manual_seed(number)
            images = torch.rand(16, 3, 16, 16, generator=generator, dtype=torch.float64).cuda()
            labels = torch.randint(0, 10, (16,), generator=generator).cuda()
            given = functional.one_hot(labels, 10).float().lerp(torch.tensor(0.1), 0.3) if soft else labels
            losses[capture].append(float(step(images, given.cuda())))
    assert losses["cuda-graph"] == pytest.approx(losses["eager"], rel=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n-fgsm,start_ration=1", "FIELD=VALUE; got 'start_ration=1'; did you mean 'start_ratio'"),
        ("n-fgsm,steps", "FIELD=VALUE; got 'steps'"),
        ("n-fgsm,", "FIELD=VALUE; got ''"),
        ("n-fgsm,target=nearest", "target must be one of 'mc', .*; got 'nearest'"),
        ("n-fgsm,trades_weight=-1", "trades_weight must be finite and not negative; got -1"),
        ("n-fgsm,trades_weight=nan", "trades_weight must be a number, true, false or none; got 'nan'"),
        ("n-fgsm,start_ratio=1_5", "start_ratio must be a number"),
        ("n-fgsm,start_ratio=1.5\n", "start_ratio must be a number"),
        ("n-fgsm,start_ratio=\uff11", "start_ratio must be a number"),
        ("n-fgsm,epsilon=8/0", "epsilon must be a number"),
        ("n-fgsm,steps=2000000", "steps must be at most 1,000,000; got 2000000"),
        ("r-mc-la,top_k=" + 30 * "9", "top_k must be at most 1,000,000"),
        ("n-fgsm," + 5000 * "x", "FIELD=VALUE; got 'xxx"),
        ("n-fgsm,trades_weight=1e999", "trades_weight must be finite"),
        ("n-fgsm,start_ratio=much", "start_ratio must be a number, true, false or none; got 'much'"),
        ("n-fgsm,project=1", "project must be a bool; got int"),
        ("n-fgsm,label_smoothing=1", r"label_smoothing must lie in \[0, 1\); got 1"),
        ("n-fgsm,label_smoothing=-0.1", "label_smoothing must be finite and not negative; got -0.1"),
        ("n-fgsm,steps=1.0", "steps must be an int; got float"),
        ("n-fgsm,steps=2,steps=3", "steps is changed twice in the recipe's name"),
        ("n-fgsm,name=mine", "FIELD=VALUE; got 'name=mine'"),
        ("nfgsm,steps=2", "no recipe is called 'nfgsm'; did you mean"),
    ],
)
def test_a_bad_change_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        recipes.get(text)


def test_a_name_with_changes_gives_the_changed_recipe() -> None:
    name = "r-mc-la,top_k=9,project=false,start_ratio=2,label_source=clean"
    changed = recipes.get(name)
    assert changed == recipes.get("r-mc-la9+").replace(project=False, start_ratio=2)
    assert changed.name == name
    assert recipes.get("r-mc-la9,top_k=none") == recipes.get("r-mc-la")
    assert recipes.get("n-fgsm,epsilon=8/255,start_ratio=.5e1").epsilon == 8 / 255


def test_a_long_name_is_shortened_in_the_message() -> None:
    with pytest.raises(ValueError, match="no recipe is called 'xxx") as caught:
        recipes.get(100_000 * "x")
    assert len(str(caught.value)) < 1000
