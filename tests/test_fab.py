"""FAB-T: its projection against two oracles, known distances, the library's verdicts, and models that misbehave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_cases import Counting, Poisoned, examples, linear_model, small_net
from torch import Tensor, nn

from rmcla_fast.attacks.batches import Examples
from rmcla_fast.attacks.checked_model import CheckedModel, untouched
from rmcla_fast.attacks.fab import FAB, STEPS, moves_to_plane

EPSILON = 4 / 255


def search(
    model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, *, size: int = 64, steps: int = STEPS
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which images withstand FAB-T, its last point of each image, and which had no gradient, in their order."""
    right, no_gradient = torch.zeros(2, len(labels), dtype=torch.bool)
    points = torch.full_like(images, float("nan"))
    with untouched(model):
        asked = CheckedModel(model)
        fab = FAB(asked, Examples(asked, images, labels), 0, epsilon=epsilon, steps=steps)
        for found in fab.run(torch.arange(len(labels)), size, lambda fraction: None):
            right[found.rows], no_gradient[found.rows] = found.right, found.no_gradient
            points[found.rows] = found.images
    return right, points, no_gradient


def labelled(model: nn.Module, count: int = 64) -> tuple[Tensor, Tensor]:
    images, _ = examples(count)
    with torch.no_grad():
        return images, model(images).argmax(1)


def move_by_sorting(point: np.ndarray, normal: np.ndarray, value: float) -> np.ndarray:
    """Return the move of one point to the plane in float64, from the sorted lengths at which pixels reach a bound."""
    way = -np.sign(normal) * (1 if value >= 0 else -1)
    room, weight = np.where(way > 0, 1 - point, point), np.abs(normal)
    order = np.argsort(room)
    changed, before, rate = 0.0, 0.0, weight.sum()
    for pixel in order:
        after = changed + rate * (room[pixel] - before)
        if after >= abs(value):
            return way * np.minimum(room, before + (abs(value) - changed) / rate)
        changed, before, rate = after, room[pixel], rate - weight[pixel]
    return way * room


POINTS = {
    "uniform": lambda shape: torch.rand(shape),
    "mostly black or white": lambda shape: (3 * torch.rand(shape) - 1).clamp(0, 1),
    "near the bounds": lambda shape: 2 ** (-30 * torch.rand(shape)),
    "grey": lambda shape: torch.full(shape, 0.5),
}
NORMALS = {
    "normal": lambda shape: torch.randn(shape),
    "sparse": lambda shape: torch.randn(shape) * (torch.rand(shape) < 0.05),
    "of many sizes": lambda shape: torch.randn(shape).sign() * (4 * torch.randn(shape)).exp(),
    "of one pixel": lambda shape: (
        nn.functional.one_hot(torch.zeros(shape[0], dtype=torch.int64), shape[1:].numel()).float().view(shape)
    ),
}


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("normals", NORMALS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moves_are_those_of_sorting_in_float64(points: str, normals: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    shape = torch.Size((24, 3, 8, 8))
    normal = NORMALS[normals](shape).contiguous(memory_format=layout)
    point = torch.stack([POINTS[points](shape), POINTS[points](shape)])
    # The share of the largest possible change that is wanted: none, a little, nearly all, and more than there is.
    share = torch.tensor([0.0, 1e-3, 0.1, 0.5, 0.9, 1.5]).repeat(4) * torch.tensor([1.0, -1.0])[:, None]
    up = (normal < 0) == (share >= 0)[..., None, None, None]
    most = (normal.abs() * torch.where(up, 1 - point, point)).sum((2, 3, 4))
    values = share * most
    moves = moves_to_plane(point, normal, values)
    for k in range(2):
        for row in range(24):
            expected = move_by_sorting(
                point[k, row].double().numpy().ravel(), normal[row].double().numpy().ravel(), float(values[k, row])
            )
            np.testing.assert_allclose(moves[k, row].numpy().ravel(), expected, rtol=2e-4, atol=1e-6)


def test_moves_are_those_of_the_library() -> None:
    projections = pytest.importorskip("pyautoattack.fab_projections", reason="pip install 'rmcla-fast[eval]'")
    torch.manual_seed(0)
    normal, point = torch.randn(40, 3, 8, 8), torch.rand(40, 3, 8, 8)
    values = torch.randn(40) * torch.logspace(-2, 2.5, 40)  # the largest are out of reach
    place = (normal * point).flatten(1).sum(1) - values
    expected = projections.projection_linf(point.flatten(1), normal.flatten(1), place).view_as(point)
    torch.testing.assert_close(moves_to_plane(point[None], normal, values[None])[0], expected, rtol=1e-3, atol=1e-4)


def test_without_a_plane_nothing_moves() -> None:
    point, values = torch.rand(2, 3, 1, 4, 4), torch.tensor([0.0, 1.0, -1.0]).expand(2, 3)
    assert torch.equal(moves_to_plane(point, torch.zeros(3, 1, 4, 4), values), torch.zeros_like(point))


def test_on_a_linear_model_the_verdict_changes_at_the_closed_form_distance() -> None:
    model, weight = linear_model(classes=3)
    images = examples(6)[0][:, :, :2, :2] * 0.2 + 0.4  # far from the pixel bounds
    with torch.no_grad():
        logits = model(images)
    labels = logits.argmax(1)
    gap = logits.gather(1, labels[:, None]) - logits
    distance = gap / (weight[labels][:, None] - weight).abs().sum(2).clamp_min(1e-12)
    nearest = distance.scatter(1, labels[:, None], float("inf")).amin(1)
    for row in range(6):
        image, label = images[row : row + 1], labels[row : row + 1]
        assert search(model, image, label, 0.99 * float(nearest[row]))[0].item()
        assert not search(model, image, label, 1.01 * float(nearest[row]))[0].item()


def library(model: nn.Module, epsilon: float, targets: int) -> object:
    module = pytest.importorskip("pyautoattack.fab_pt", reason="pip install 'rmcla-fast[eval]'")
    attack = module.FABAttack_PT(model, norm="Linf", n_restarts=1, n_iter=STEPS, eps=epsilon, seed=0, device="cpu")
    attack.targeted, attack.n_target_classes = True, targets
    return attack


@pytest.mark.parametrize(("classes", "epsilon"), [(6, 5 / 255), (3, 9 / 255)])
def test_verdicts_are_the_librarys(classes: int, epsilon: float) -> None:
    model = small_net(classes=classes)
    images, labels = labelled(model)
    theirs = model(library(model, epsilon, classes - 1).perturb(images, labels)).argmax(1) == labels
    ours, _, _ = search(model, images, labels, epsilon)
    assert int((ours != theirs).sum()) <= 1
    assert 10 < int(theirs.sum()) < 54


def test_the_nearest_point_is_as_near_as_the_librarys() -> None:
    """The library's distance of each image is that at which our verdict changes, so the iterations are the same."""
    model = small_net(classes=2)
    images, labels = labelled(model, 8)
    attack = library(model, 1.0, 1)
    attack.target_class = 2
    nearest = (attack.attack_single_run(images, labels, is_targeted=True) - images).abs().amax((1, 2, 3))
    assert float(nearest.min()) > 0
    for row, distance in enumerate(nearest.tolist()):
        image, label = images[row : row + 1], labels[row : row + 1]
        assert search(model, image, label, 0.995 * distance)[0].item()
        assert not search(model, image, label, 1.005 * distance)[0].item()


def test_fooled_images_fool_the_model_inside_the_ball() -> None:
    model = small_net()
    images, labels = labelled(model)
    right, points, _ = search(model, images, labels, EPSILON, steps=10)
    found, origin = points[~right], images[~right]
    assert 10 < len(found) < 54
    assert bool((model(found).argmax(1) != labels[~right]).all())
    radius = torch.tensor(EPSILON)
    assert bool((found >= origin - radius).all() and (found <= origin + radius).all())
    assert bool((found >= 0).all() and (found <= 1).all())


def test_what_is_decided_about_an_image_does_not_depend_on_the_batch() -> None:
    model = small_net(classes=4)
    images, labels = labelled(model, 40)
    right, points, _ = search(model, images, labels, EPSILON, steps=15)
    assert 5 < int(right.sum()) < 35
    for size in (1, 13):
        again, same, _ = search(model, images, labels, EPSILON, size=size, steps=15)
        assert torch.equal(again, right)
        assert torch.equal(same, points)


@pytest.mark.parametrize(("classes", "targets"), [(2, 1), (3, 2), (10, 9), (12, 9)])
def test_each_target_takes_100_iterations_of_two_passes(classes: int, targets: int) -> None:
    model = Counting(small_net(classes=classes))
    images, labels = labelled(model, 8)
    model.sizes.clear()
    right, _, _ = search(model, images, labels, 1e-5)
    assert right.all()
    layout, first_logits = 2, 1  # questions for the memory layout, and for the targets
    assert model.sizes == [8] * (layout + first_logits + 2 * STEPS * targets)


def test_an_image_with_nan_logits_is_fooled_and_stays_a_number() -> None:
    model = Poisoned()
    images, _ = examples(64)
    images[:, 0, 0, 0] = 0.45  # 0.05 away from NaN
    labels = model.model(images).argmax(1)
    right, points, _ = search(model, images, labels, 0.04, steps=10)
    poisoned, points_of_more, _ = search(model, images, labels, 0.06, steps=10)
    assert bool(torch.isfinite(points).all() and torch.isfinite(points_of_more).all())
    assert int(poisoned.sum()) < int(right.sum())
    assert bool((points_of_more[~poisoned & right][:, 0, 0, 0] > 0.5).any())


class NaNGradient(nn.Module):
    """A model whose gradient is NaN in the pixels of a black first row, and whose logits are finite."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small_net()

    def forward(self, images: Tensor) -> Tensor:
        first = images[:, :, :1]
        return self.model(images) + 0 * (first - first.detach()).abs().sqrt().sum((1, 2, 3))[:, None]


def test_pixels_with_a_nan_gradient_stay_and_the_others_move() -> None:
    model = NaNGradient()
    images, labels = labelled(model)
    right, points, no_gradient = search(model, images, labels, EPSILON, steps=10)
    assert 0 < int(right.sum()) < 64
    assert torch.equal(points[:, :, :1], images[:, :, :1])
    assert not no_gradient.any()


class Flat(nn.Module):
    """A model whose logits depend on the images in steps, so that autograd gives zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small_net()

    def forward(self, images: Tensor) -> Tensor:
        return self.model((8 * images).round() / 8)


def test_images_without_a_gradient_stay_and_are_counted() -> None:
    model = Flat()
    images, labels = labelled(model, 8)
    right, points, no_gradient = search(model, images, labels, 0.5, steps=5)
    assert right.all()
    assert no_gradient.all()
    assert torch.equal(points, images)


@pytest.mark.parametrize("factor", [1e-30, 1e12])
def test_the_scale_of_the_logits_does_not_matter(factor: float) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_net()

        def forward(self, images: Tensor) -> Tensor:
            return factor * self.model(images)

    model = small_net()
    images, labels = labelled(model, 32)
    expected, _, _ = search(model, images, labels, EPSILON, steps=10)
    got, _, no_gradient = search(Scaled(), images, labels, EPSILON, steps=10)
    assert int((got != expected).sum()) <= 1
    assert 3 < int(expected.sum()) < 29
    assert not no_gradient.any()
