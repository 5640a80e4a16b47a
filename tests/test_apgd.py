"""APGD: its checkpoints, its targeted loss, a plain loop of the same method, closed forms, and any batch size."""

from __future__ import annotations

import re

import pytest
import torch
from apgd_cases import EPSILON, decided, right_examples
from evaluation_cases import Poisoned, Scaled, examples, linear_model, small_net
from torch import Tensor, nn

from rmcla_fast.attacks import evaluate
from rmcla_fast.attacks.apgd import MOMENTUM, RHO, checkpoints, targeted_dlr
from rmcla_fast.ops import random_start


def test_the_checkpoints_are_the_published_ones() -> None:
    """Croce and Hein 2020: p_1 = 0.22, and p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06)."""
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]
    assert checkpoints(20)[-1] <= 20


def dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the loss as it is published, in terms that autograd differentiates."""
    ordered = logits.sort(1, descending=True).values
    ahead = logits.gather(1, labels[:, None]) - logits.gather(1, targets[:, None])
    return -ahead[:, 0] / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2)


@pytest.mark.parametrize("classes", [4, 10, 1000])
def test_the_targeted_loss_and_its_gradient_are_the_published_ones(classes: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(50, classes, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, classes, (50,))
    targets = (labels + torch.randint(1, classes, (50,))) % classes
    expected = dlr(logits, labels, targets)
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    loss, direction = targeted_dlr(logits.detach(), labels, targets)
    torch.testing.assert_close(loss, expected.detach())
    scale = direction.abs().amax(1, keepdim=True) / gradient.abs().amax(1, keepdim=True)
    assert (scale > 0).all()
    torch.testing.assert_close(direction, gradient * scale, rtol=1e-9, atol=1e-9)
    again, _ = targeted_dlr(3 * logits.detach() - 5, labels, targets)
    torch.testing.assert_close(again, loss)  # neither scale nor shift matters


def plain_apgd(
    model: nn.Module, image: Tensor, label: int, target: int | None, start: Tensor, steps: int
) -> tuple[bool, Tensor]:
    """Run APGD on one image, line by line as in algorithm 1; return whether it withstood, and the last point."""

    def ask(point: Tensor) -> tuple[float, Tensor, bool]:
        point = point.detach().requires_grad_()
        logits = model(point[None])
        y = torch.tensor([label])
        loss = nn.functional.cross_entropy(logits, y) if target is None else dlr(logits, y, torch.tensor([target]))[0]
        (gradient,) = torch.autograd.grad(loss, point)
        return loss.item(), gradient.sign(), int(logits.argmax()) == label

    def project(point: Tensor) -> Tensor:
        return point.clamp(image - EPSILON, image + EPSILON).clamp(0, 1)

    step, ends, previous, points = 2 * EPSILON, checkpoints(steps), start, [start]
    loss, sign, right = ask(start)
    losses = [loss]
    best, best_sign, best_loss = start, sign, loss
    halved, loss_at_checkpoint, window_begin = True, loss, 0
    for k in range(1, steps + 1):
        if not right:
            return False, points[-1]
        here = points[-1]
        weight = 1.0 if k == 1 else MOMENTUM
        stepped = project(here + step * sign)
        points.append(project(here + weight * (stepped - here) + (1 - weight) * (here - previous)))
        previous = here
        loss, sign, right = ask(points[-1])
        losses.append(loss)
        if loss > best_loss:
            best, best_sign, best_loss = points[-1], sign, loss
        if k in ends and right:
            rises = sum(losses[i] > losses[i - 1] for i in range(window_begin + 1, k + 1))
            halve = rises <= RHO * (k - window_begin) or (not halved and best_loss <= loss_at_checkpoint)
            if halve:
                step, sign = step / 2, best_sign
                points.append(best)
            halved, loss_at_checkpoint, window_begin = halve, best_loss, k
    return right, points[-1]


@pytest.mark.parametrize("targeted", [False, True])
def test_it_is_the_papers_algorithm_image_by_image(targeted: bool) -> None:
    model = small_net().double()
    images, labels = right_examples(model, 12)
    images = images.double()
    ours = decided(model, images, labels, targeted=targeted, steps=40)
    order = model(images).argsort(1, descending=True)
    withstood = 0
    for row in range(len(images)):
        targets = [int(c) for c in order[row] if c != labels[row]][:9] if targeted else [None]
        for run, target in enumerate(targets):
            rng = torch.tensor([7 + (row << 32), run])
            # The noise follows the order of memory, and attacks run in channels_last on a CPU.
            image = images[row : row + 1].contiguous(memory_format=torch.channels_last)
            start = random_start(image, EPSILON, rng=rng, clip=True)[0]
            right, point = plain_apgd(model, images[row], int(labels[row]), target, start, 40)
            if not right:
                break
        assert ours[row][0] == right
        withstood += right
        if not right:
            torch.testing.assert_close(ours[row][1], point, atol=1e-7, rtol=0)  # the step size is a float32
    assert 0 < withstood < len(images)


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_on_a_linear_model_it_reaches_the_closed_form(classes: int) -> None:
    """The worst image for a target lies at a corner of the ball, cut off at the pixel range."""
    model, weight = linear_model(classes)
    images = examples(200)[0][:, :, :2, :2]
    with torch.no_grad():
        labels = model(images).argmax(1)
        margins = []
        for target in range(classes):
            towards = (weight[target] - weight[labels]).reshape(images.shape)
            worst = (images + EPSILON * towards.sign()).clamp(0, 1)
            logits = model(worst)
            margin = logits.gather(1, labels[:, None])[:, 0] - logits[:, target]
            margins.append(margin.masked_fill(labels == target, float("inf")))
        margin = torch.stack(margins).amin(0)
    clear = margin.abs() > 1e-5
    ours = evaluate(model, images, labels, attacks="apgd", epsilon=EPSILON)["apgd"]
    assert torch.equal(ours.right[clear], (margin > 0)[clear])
    assert 5 < int(ours.right.sum()) < 195


def test_adversarial_images_lie_in_the_ball_and_fool_the_model() -> None:
    model = small_net()
    images, labels = right_examples(model)
    for targeted in (False, True):
        found = decided(model, images, labels, targeted=targeted)
        assert sorted(found) == list(range(64))
        fooled = [row for row, (right, _) in found.items() if not right]
        assert 0 < len(fooled) < 64
        adversarial = torch.stack([found[row][1] for row in fooled])
        assert ((adversarial - images[fooled]).abs() <= EPSILON + 1e-7).all()
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        assert (model(adversarial).argmax(1) != labels[fooled]).all()


def test_its_stages_are_about_as_strong_as_the_librarys() -> None:
    library = pytest.importorskip("pyautoattack", reason="pip install 'rmcla-fast[eval]'")
    model = small_net()
    images, labels = right_examples(model, 100)
    ours = evaluate(model, images, labels, attacks="apgd-ce,apgd-t,apgd", epsilon=EPSILON)
    for name in ("apgd-ce", "apgd-t"):
        attack = library.AutoAttack(model, norm="Linf", eps=EPSILON, seed=0, version="custom", attacks=[name])
        attack.apgd.n_restarts = 1
        _, answers = attack.run_standard_evaluation(images, labels, batch_size=100)
        assert abs(int((answers == labels).sum()) - ours[name].accuracy) <= 1
    assert ours["apgd"].accuracy <= min(ours["apgd-ce"].accuracy, ours["apgd-t"].accuracy)
    assert torch.equal(ours["apgd"].right, ours["apgd-ce"].right & ours["apgd-t"].right)


def test_a_confident_model_does_not_hide_its_gradient() -> None:
    """Float32 cross entropy has gradients as small as 1e-38 here, which a network would round to zero."""
    model = small_net()
    images, labels = right_examples(model)
    plain = evaluate(model, images, labels, attacks="apgd-ce", epsilon=EPSILON)["apgd-ce"]
    gap = model(images).topk(2).values
    scale = 80 / (gap[:, 0] - gap[:, 1]).max().item()
    confident = nn.Sequential(model, Scaled(scale))
    found = evaluate(confident, images, labels, attacks="apgd-ce,apgd-t", epsilon=EPSILON)
    assert found["apgd-ce"].accuracy < plain.accuracy + 3
    assert not found["apgd-ce"].notes


def test_images_without_a_gradient_are_counted() -> None:
    model = small_net()
    images, labels = right_examples(model)
    blind = nn.Sequential(Rounded(), model)
    answers = blind(images).argmax(1)
    found = evaluate(blind, images, answers, attacks="fgsm,ce20,apgd-ce,apgd-t", epsilon=EPSILON)
    for name, title in (("fgsm", "FGSM"), ("ce20", "CE20"), ("apgd-ce", "APGD-CE"), ("apgd-t", "APGD-T")):
        (note,) = found[name].notes  # a random start fools a few of the 64 images
        assert re.search(f"the gradient was exactly zero for 6[1-4] images under {title},", note)
    sound = evaluate(model, images, labels, attacks="fgsm,ce20,apgd-ce,apgd-t", epsilon=EPSILON)
    assert not any(result.notes for result in sound.values())


def test_a_model_that_answers_nan_counts_as_fooled() -> None:
    model = Poisoned()
    images, _ = examples(48)
    labels = model.model(images).argmax(1)
    bright = images[:, 0, 0, 0] > 0.5
    found = evaluate(model, images, labels, attacks="clean,apgd", epsilon=EPSILON)
    assert torch.equal(found["clean"].right, ~bright)
    assert not found["apgd"].right[bright].any()


def test_few_classes_run_what_can_run_or_are_refused() -> None:
    model = small_net(classes=3)
    images, labels = right_examples(model, 16)
    found = evaluate(model, images, labels, attacks="apgd-ce,apgd", epsilon=EPSILON)
    assert torch.equal(found["apgd"].right, found["apgd-ce"].right)
    assert "targeted APGD needs 4 classes and the model has 3" in found["apgd"].notes[0]
    with pytest.raises(ValueError, match=r"^attack 'apgd-t' needs at least 4 classes.*; the model has 3$"):
        evaluate(model, images, labels, attacks="apgd-t", epsilon=EPSILON)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_in_other_types_are_attacked(dtype: torch.dtype) -> None:
    model = small_net().to(dtype)
    images, labels = right_examples(model, 24)
    found = evaluate(model, images, labels, attacks="clean,apgd", epsilon=0.1)
    assert found["clean"].accuracy == 100
    assert found["apgd"].accuracy < 50


class Rounded(nn.Module):
    """A layer whose gradient is zero everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return (images * 8).round() / 8
