"""Square Attack: its schedule and squares, what every query keeps to, and the library's success rate."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from evaluation_cases import examples, small_net
from torch import Tensor, nn

from rmcla_fast.attacks.batches import Examples
from rmcla_fast.attacks.checked_model import CheckedModel, untouched
from rmcla_fast.attacks.square import Square, side

EPSILON = 8 / 255


def labelled(model: nn.Module, count: int = 64) -> tuple[Tensor, Tensor]:
    images, _ = examples(count)
    with torch.no_grad():
        return images, model(images).argmax(1)


class Found:
    """What a search finds out about each image, in the order of the images."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, **options: int) -> None:
        size, seed = options.pop("size", 64), options.pop("seed", 0)
        self.right = torch.zeros(len(labels), dtype=torch.bool)
        self.points = torch.full_like(images, float("nan"))
        with untouched(model):
            asked = CheckedModel(model)
            square = Square(asked, Examples(asked, images, labels), seed, epsilon=epsilon, **options)
            for found in square.run(torch.arange(len(labels)), size, lambda fraction: None):
                self.right[found.rows], self.points[found.rows] = found.right, found.images


class Recorded(nn.Module):
    """A model that keeps the images that it is asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.asked = model, list[Tensor]()

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append(images.detach().clone())
        return self.model(images)


class Sure(nn.Module):
    """A model that is never fooled. Each answer has a smaller margin than the one before it if `falling` is true."""

    def __init__(self, falling: bool) -> None:
        super().__init__()
        self.falling, self.margin = falling, 1e6

    def forward(self, images: Tensor) -> Tensor:
        self.margin -= self.falling
        return torch.tensor([self.margin, 0.0, 0.0]).repeat(len(images), 1)


def queries(model: nn.Module, images: Tensor, epsilon: float, count: int) -> Tensor:
    """Return the points (count + 1, B, C, H, W) of the stripes and the queries of images with label 0."""
    recorded = Recorded(model)
    Found(recorded, images, torch.zeros(len(images), dtype=torch.int64), epsilon, queries=count)
    return torch.stack(recorded.asked[-count - 1 :])[:, : len(images)]


def test_the_sides_are_the_librarys() -> None:
    """On 32x32 images they are those of the published schedule for p = 0.8 and 10,000 queries."""
    module = pytest.importorskip("pyautoattack.square", reason="pip install 'rmcla-fast[eval]'")
    attack = module.SquareAttack(None, p_init=0.8, n_queries=5000, eps=0.1, resc_schedule=False)
    for height, width in ((32, 32), (8, 8), (224, 224), (28, 20)):
        for query in range(5000):
            area = attack.p_selection(query) * height * width
            assert side(query, height, width) == min(max(round(area**0.5), 1), height, width)


def test_the_published_schedule_halves_the_area_nine_times() -> None:
    firsts = [0, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    sides = [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]
    assert [side(query, 32, 32) for query in firsts] == sides
    assert [side(query - 1, 32, 32) for query in firsts[1:]] == sides[:-1]


def test_the_squares_stay_inside_and_cover_all_places_alike() -> None:
    model = small_net()
    images = examples(64)[0][:, :, :6]  # 6 rows and 8 columns
    examples_of_6x8 = Examples(CheckedModel(Sure(False)), images, torch.zeros(64, dtype=torch.int64))
    square = Square(CheckedModel(model), examples_of_6x8, 0, epsilon=EPSILON)
    square._open(torch.arange(1), 64)
    square._fill(torch.arange(64))
    squares = square.slots.squares[:, 1:-1].long()  # the first entry is for the stripes, the last for a slot that waits
    kinds, first, signs = squares.split((1, 1, 3), 2)
    begins, places = torch.cat((first // 8, first % 8), 2), square.shapes[kinds[..., 0]] + first
    sides = torch.tensor([side(query, 6, 8) for query in range(5000)])
    rows, columns = places // 8, places % 8
    assert torch.equal(torch.stack((rows.amin(2), columns.amin(2)), 2), begins)
    assert (rows.amax(2) == begins[..., 0] + sides - 1).all()
    assert (columns.amax(2) == begins[..., 1] + sides - 1).all()
    assert int(rows.min()) >= 0
    assert int(rows.max()) < 6
    distinct = torch.zeros(64, 5000, 48, dtype=torch.int8).scatter_(2, places, 1).sum(2)
    assert (distinct == sides**2).all()
    assert signs.abs().eq(1).all()
    assert signs.double().mean((0, 1)).abs().max() < 0.01
    late = begins[:, sides == 1]  # single pixels
    counts = torch.bincount((late[..., 0] * 8 + late[..., 1]).flatten(), minlength=48).double()
    expected = counts.sum() / 48
    assert float(((counts - expected) ** 2 / expected).sum()) < 47 + 5 * 94**0.5  # chi-squared: mean 47, variance 94
    early = begins[:, 0]  # 6 x 6, which fit in 3 places
    assert early[:, 0].eq(0).all()
    assert sorted(early[:, 1].unique().tolist()) == [0, 1, 2]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_query_moves_one_square_of_the_best_image_to_the_edge_of_the_ball(channels: int) -> None:
    images, epsilon = examples(8, channels=channels)[0], 0.2
    points = queries(Sure(falling=True), images, epsilon, 80)
    edges = torch.stack([(images - epsilon).clamp(0, 1), (images + epsilon).clamp(0, 1)])
    assert ((points == edges[0]) | (points == edges[1])).all()
    stripes = points[0] == edges[1]
    assert torch.equal(stripes, stripes[:, :, :1].expand_as(stripes))
    for query in range(80):
        before, after = points[query], points[query + 1]
        for old, new, low, high in zip(before, after, *edges, strict=True):
            changed = (old != new).any(0).nonzero()
            if len(changed):
                first, last = changed.amin(0), changed.amax(0)
                assert int((last - first).max()) < side(query, 8, 8)
                if side(query, 8, 8) == 1:
                    pixel = new[:, first[0], first[1]]
                    assert ((pixel == low[:, first[0], first[1]]) | (pixel == high[:, first[0], first[1]])).all()


def test_a_query_that_does_not_help_is_undone() -> None:
    images = examples(8)[0]
    points = queries(Sure(falling=False), images, 0.2, 80)
    for query in range(1, 81):
        changed = (points[query] != points[0]).any(1)
        assert int(changed.flatten(1).sum(1).max()) <= side(query - 1, 8, 8) ** 2


def test_the_margin_never_rises() -> None:
    model = small_net()
    images, labels = labelled(model, 32)
    found = [Found(model, images, labels, EPSILON, queries=count) for count in (10, 40, 120, 300)]
    still = found[-1].right
    assert 5 < int(still.sum()) < 32
    margins = []
    for one in found:
        logits, true = model(one.points[still]), labels[still, None]
        margins.append((logits.gather(1, true) - logits.scatter(1, true, float("-inf")).amax(1, keepdim=True))[:, 0])
    for earlier, later in pairwise(margins):
        assert (later <= earlier + 1e-5).all()
        assert (later < earlier).any()


def test_points_lie_in_the_ball_and_those_that_fool_the_model_stay_so_until_a_look() -> None:
    model = small_net()
    images, labels = labelled(model)
    found = Found(model, images, labels, EPSILON, queries=400)
    assert 10 < int(found.right.sum()) < 54
    assert torch.equal(model(found.points).argmax(1) == labels, found.right)
    radius = torch.tensor(EPSILON)
    assert (found.points >= (images - radius).clamp(0, 1)).all()
    assert (found.points <= (images + radius).clamp(0, 1)).all()


class Scripted(nn.Module):
    """A model that is right about label 0 with the margins given, and wrong where the margin is negative."""

    def __init__(self, margins: list[float]) -> None:
        super().__init__()
        self.margins, self.asked = margins, list[Tensor]()

    def forward(self, images: Tensor) -> Tensor:
        margin = self.margins[min(len(self.asked), len(self.margins) - 1)]
        self.asked.append(images.detach().clone())
        return torch.tensor([margin, 0.0]).repeat(len(images), 1)


def test_a_fooled_image_stays_even_if_a_smaller_margin_follows_before_the_look() -> None:
    model = Scripted([5.0, -3.0, 1.0])
    images, _ = examples(8, channels=1)
    found = Found(model, images, torch.zeros(8, dtype=torch.int64), 0.2, queries=10)
    assert not found.right.any()
    assert torch.equal(found.points, model.asked[1])
    assert len(model.asked) > 3


def test_what_is_decided_about_an_image_does_not_depend_on_the_batch_or_on_the_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_net()
    images, labels = labelled(model, 40)
    whole = Found(model, images, labels, EPSILON, queries=200)
    assert 5 < int(whole.right.sum()) < 35
    for size, look_every in ((1, 20), (13, 20), (64, 1)):
        monkeypatch.setattr(Square, "look_every", look_every)
        again = Found(model, images, labels, EPSILON, queries=200, size=size)
        assert torch.equal(again.right, whole.right)
        assert torch.equal(again.points, whole.points)


def test_the_seed_changes_the_squares() -> None:
    model = small_net()
    images, labels = labelled(model, 16)
    first, other = (Found(model, images, labels, EPSILON, queries=20, seed=seed) for seed in (0, 1))
    assert not torch.equal(first.points, other.points)


def test_the_layout_of_the_memory_changes_nothing_but_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_net()
    images, labels = labelled(model, 16)
    points = []
    for layout in (torch.contiguous_format, torch.channels_last):
        monkeypatch.setattr("rmcla_fast.attacks.batches._use_faster_layout", lambda model, examples, form=layout: form)
        points.append(Found(model, images, labels, EPSILON, queries=50).points)
    assert torch.equal(points[0], points[1])


def test_it_fools_as_many_images_as_the_library() -> None:
    module = pytest.importorskip("pyautoattack.square", reason="pip install 'rmcla-fast[eval]'")
    model = small_net()
    images, labels = labelled(model, 128)
    attack = module.SquareAttack(
        model, p_init=0.8, n_queries=300, eps=EPSILON, n_restarts=1, seed=0, device="cpu", resc_schedule=False
    )
    theirs = (model(attack.perturb(images, labels)).argmax(1) != labels).float().mean()
    ours = (~Found(model, images, labels, EPSILON, queries=300).right).float().mean()
    assert 0.2 < float(theirs) < 0.8
    assert abs(float(ours) - float(theirs)) < 0.06
