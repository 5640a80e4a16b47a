"""The references with labels outside the classes, on a CPU and as on a GPU, where reading them would stall."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from rmcla_fast import reference
from rmcla_fast.reference.labels import in_range

RULE = (9.0, 0.01, None, "main")


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `in_range` say which labels are valid and raise no error, as it does on a GPU."""

    def silent(name: str, labels: Tensor, num_classes: int) -> Tensor:
        return (labels >= 0) & (labels < num_classes)

    for module in ("augment", "joint_gradient", "soft_cross_entropy"):
        monkeypatch.setattr(importlib.import_module(f"rmcla_fast.reference.{module}"), "in_range", silent)


@pytest.mark.parametrize(("bad", "row"), [([0, 3], 1), ([-1, 0], 0), ([2, -7], 1), ([9, 9], 0)])
def test_the_error_names_the_first_label_outside_the_classes(bad: list[int], row: int) -> None:
    with pytest.raises(ValueError) as raised:
        in_range("labels", torch.tensor(bad), 3)
    assert str(raised.value) == f"labels must lie in [0, 3); got {bad[row]} in row {row}"


def test_labels_inside_the_classes_are_valid() -> None:
    assert in_range("labels", torch.tensor([0, 2, 1]), 3).tolist() == [True, True, True]
    assert in_range("labels", torch.tensor([], dtype=torch.int64), 3).tolist() == []
    meta = torch.zeros(2, dtype=torch.int64, device="meta")
    assert in_range("labels", meta, 0).device.type == "meta"


@pytest.mark.parametrize("bad", [-(2**40), -1, 3, 2**40])
def test_a_label_outside_the_classes_gives_a_nan_row(as_on_a_gpu: None, bad: int) -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0]] * 3)
    good, labels = torch.tensor([0, 1, 2]), torch.tensor([0, bad, 2])
    for target, chosen in (("mc", None), ("ll", None), ("untargeted", None), ("margin", None), ("given", good)):
        expected = reference.joint_gradient(logits, good, target, chosen, *RULE)
        for output, clean in zip(
            reference.joint_gradient(logits, labels, target, chosen, *RULE), expected, strict=True
        ):
            assert output is not None
            assert clean is not None
            assert torch.equal(output[::2], clean[::2])
            assert bool((output[1] == -1).all() if output.dtype == torch.int64 else output[1].isnan().all())
    given = reference.joint_gradient(logits, torch.zeros_like(good), "given", labels, *RULE)
    assert given[3].tolist() == [0, -1, 2]
    assert given[0].isnan().tolist() == [False, True, False]
    soft = reference.redistribute_labels(logits, labels, *RULE)
    assert soft.isnan().any(1).tolist() == soft.isnan().all(1).tolist() == [False, True, False]
    loss, gradient, _ = reference.soft_cross_entropy(logits, labels, "none")
    assert loss.isnan().tolist() == [False, True, False]
    assert gradient.isnan().any(1).tolist() == gradient.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("bad", [-(2**40), -1, 3, 2**40])
def test_an_index_outside_the_data_set_gives_an_image_of_the_fill(as_on_a_gpu: None, bad: int) -> None:
    dataset = torch.randint(0, 256, (3, 2, 5, 4), dtype=torch.uint8)
    images = reference.augment(dataset, torch.tensor([0, bad, 2]), torch.tensor([0, 0]), 0, False, 7)
    assert torch.equal(images[::2], dataset[::2])
    assert bool((images[1] == 7).all())


@pytest.mark.parametrize("bad", [-1, 1])
def test_an_index_outside_a_data_set_of_one_image(as_on_a_gpu: None, bad: int) -> None:
    images = reference.augment(
        torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([bad, 0]), torch.tensor([0, 0]), 0
    )
    assert images.flatten(1).tolist() == [[128] * 4, [0] * 4]


def test_a_data_set_without_images(as_on_a_gpu: None) -> None:
    nothing = torch.zeros(0, 1, 2, 2, dtype=torch.uint8)
    assert reference.augment(nothing, torch.zeros(0, dtype=torch.int64), torch.tensor([0, 0])).shape == (0, 1, 2, 2)


def test_results_are_on_the_device_of_the_arguments() -> None:
    """Nothing on another device takes part, which the meta device shows without a GPU."""
    with torch.device("meta"):
        images, logits = torch.rand(2, 3, 4, 5), torch.rand(2, 3)
        labels, rng = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    calls = [
        reference.augment(images.byte(), labels, rng),
        reference.perturb_step(images, images, images, 0.1, None, 0.1, None),
        reference.random_start(images, 0.1, None, rng),
        reference.redistribute_labels(logits, labels, 9.0, 0.01, 1),
        *reference.joint_gradient(logits, labels, "mc", None, *RULE),
        *reference.soft_cross_entropy(logits, labels, "none", True, 0.1),
    ]
    for result in calls:
        assert result is not None
        assert result.device.type == "meta"
