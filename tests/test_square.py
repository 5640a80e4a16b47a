"""Square Attack: its schedule, its squares, the ball, verdicts on any batch, and the library's strength."""

from __future__ import annotations

import pytest
import torch
from evaluation_cases import examples, small_net
from torch import Tensor, nn

from rmcla_fast.attacks import slots
from rmcla_fast.attacks.batches import Examples
from rmcla_fast.attacks.checked_model import checked
from rmcla_fast.attacks.square import Square, side
from rmcla_fast.cuda_graph import Work

EPSILON, QUERIES = 0.05, 150


def labelled(count: int = 48) -> tuple[nn.Module, Tensor, Tensor]:
    model = small_net()
    images, _ = examples(count)
    return model, images, model(images).argmax(1)


def searched(
    model: nn.Module, images: Tensor, labels: Tensor, *, size: int = 48, rows: Tensor | None = None
) -> dict[int, tuple[bool, Tensor]]:
    """Return what the search decides about each row: whether it withstood, and its last image."""
    rows = torch.arange(len(labels)) if rows is None else rows
    with checked(model) as asked:
        search = Square(asked, Examples(asked, images, labels), 3, epsilon=EPSILON, queries=QUERIES)
        found = list(search.run(rows, size, lambda fraction: None))
    return {
        row: (right, image)
        for part in found
        for row, right, image in zip(part.rows.tolist(), part.right.tolist(), part.images, strict=True)
    }


def test_the_sides_follow_the_published_schedule() -> None:
    """The share of the image is 0.8, halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 queries."""
    sides = [side(query, 32, 32) for query in (0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4001)]
    shares = [0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.0125, 0.00625]
    assert sides == [round((share * 1024) ** 0.5) for share in shares]
    assert side(0, 8, 4) == 4  # a square fits into the image
    assert side(4999, 3, 3) == 1


def test_squares_lie_inside_and_everywhere() -> None:
    model, images, labels = labelled(4)
    with checked(model) as asked:
        search = Square(asked, Examples(asked, images, labels), 3, epsilon=EPSILON)
        search._open(torch.arange(1), 8)
        search._fill(torch.arange(4))
        squares = search.slots.squares[:4].long()
    begins, ends = squares[..., :2], squares[..., 2:4]
    assert begins.min() == 0
    assert ends.max() == 7  # the last row and column
    lengths = ends - begins + 1
    assert [int(n) for n in lengths[0, 1:5001, 0]] == [side(query, 8, 8) for query in range(5000)]
    small = begins[:, 1001:, 0][lengths[:, 1001:, 0] == 1]
    counts = torch.bincount(small.flatten(), minlength=8)
    assert (counts - counts.double().mean()).abs().max() < 5 * counts.double().mean() ** 0.5
    assert set(squares[:, 1:, 4:].unique().tolist()) == {-1, 1}
    assert not torch.equal(squares[0], squares[1])


def test_images_lie_in_the_ball_and_fooled_ones_fool() -> None:
    model, images, labels = labelled()
    found = searched(model, images, labels)
    assert sorted(found) == list(range(48))
    last = torch.stack([found[row][1] for row in range(48)])
    right = torch.tensor([found[row][0] for row in range(48)])
    assert 0 < int(right.sum()) < 48
    assert ((last - images).abs() <= EPSILON + 1e-7).all()
    assert last.min() >= 0
    assert last.max() <= 1
    assert (model(last[~right]).argmax(1) != labels[~right]).all()


def test_the_margin_never_grows() -> None:
    model, images, labels = labelled(16)
    with checked(model) as asked:
        search = Square(asked, Examples(asked, images, labels), 3, epsilon=EPSILON, queries=QUERIES)
        search._open(torch.arange(1), 16)
        search._fill(torch.arange(16))
        before = search.slots.best_margin.clone()
        for _ in range(QUERIES):
            search.step()
            assert (search.slots.best_margin <= before).all()
            before = search.slots.best_margin.clone()


def test_an_image_gets_the_same_answer_in_any_batch() -> None:
    model, images, labels = labelled()
    expected = searched(model, images, labels)
    for size, rows in ((8, None), (30, torch.arange(48).flip(0)), (48, torch.arange(3, 48, 5))):
        for row, (right, image) in searched(model, images, labels, size=size, rows=rows).items():
            assert right == expected[row][0]
            if not right:
                assert torch.equal(image, expected[row][1])


def test_the_captured_path_decides_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, labels = labelled()
    expected = {row: right for row, (right, _) in searched(model, images, labels, size=16).items()}

    def called_instead(step: Work) -> Work:
        step()
        return step

    monkeypatch.setattr(slots, "capture_for", lambda device: called_instead)
    found = searched(model, images, labels, size=16)
    assert {row: right for row, (right, _) in found.items()} == expected


def test_it_is_about_as_strong_as_the_librarys() -> None:
    square = pytest.importorskip("pyautoattack.square", reason="pip install 'rmcla-fast[eval]'")
    model, images, labels = labelled(200)
    attack = square.SquareAttack(
        model, norm="Linf", n_queries=QUERIES, eps=EPSILON, p_init=0.8, seed=0, device="cpu", resc_schedule=False
    )
    theirs = int((model(attack.perturb(images, labels)).argmax(1) == labels).sum())
    ours = sum(right for right, _ in searched(model, images, labels).values())
    assert 30 < theirs < 170
    assert abs(ours - theirs) <= 12  # two standard errors of the number of images that are fooled
