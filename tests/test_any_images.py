"""Images in other units, and off by rounding, at every door by which images come in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from any_model_cases import (
    DOORS,
    RNG,
    every_door,
    example,
    images_and_labels,
    linear,
)
from torch import Tensor

from rmcla_fast import adversarial_example, recipes
from rmcla_fast.any_model import check_pixels_once


@every_door
@pytest.mark.parametrize(
    "change",
    [lambda x: (x - 0.45) / 0.22, lambda x: x * 255, lambda x: x * 2 - 1, lambda x: x + 1e-3, lambda x: x - 1e-3],
    ids=["normalised", "0 to 255", "-1 to 1", "above 1", "below 0"],
)
def test_images_in_other_units_are_refused(door: str, change: Callable[[Tensor], Tensor]) -> None:
    images, labels = images_and_labels()
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match=r"^images must lie in \[0, 1\]; got values from [^\n]*$"):
        DOORS[door](linear(), change(images), labels)


@every_door
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_images_that_are_off_by_rounding_are_taken(door: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 2, (8, 1, 8, 8), generator=generator).to(dtype)
    units = 8 if dtype in (torch.float32, torch.float64) else 2
    images += torch.where(images == 0, -units, units) * torch.finfo(dtype).eps  # as if normalised and put back
    assert images.min() < 0
    assert images.max() > 1
    found = torch.as_tensor(DOORS[door](linear(), images, images_and_labels()[1]))
    assert found.isfinite().all()
    if door in ("adversarial_example", "pgd"):
        assert 0 <= float(found.min()) <= float(found.max()) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_images_beyond_rounding_are_refused(dtype: torch.dtype) -> None:
    units = 10 if dtype in (torch.float32, torch.float64) else 4
    images = torch.ones(2, 1, 8, 8, dtype=dtype) + units * torch.finfo(dtype).eps
    with pytest.raises(ValueError, match="images must lie in"):
        example(linear(), images, torch.arange(2))


@pytest.mark.parametrize("recipe", ["standard", "n-fgsm", "trades", "r-mc-la+"])
def test_adversarial_images_are_pixels_and_new_memory(recipe: str) -> None:
    images, labels = images_and_labels()
    images[0, 0, 0, :2] = torch.tensor([-3e-8, 1 + 2.4e-7])
    found = adversarial_example(linear(), images, labels, recipes.get(recipe), rng=RNG).images
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert found.data_ptr() != images.data_ptr()


def test_images_of_a_gpu_are_looked_at_once_for_each_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading values makes the host wait for the GPU. The tensors here only say that they are on one."""

    class OnGPU(Tensor):
        is_cuda = True

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    wrong, right = (torch.full((2, 1, 4, 4), value).as_subclass(OnGPU) for value in (3.0, 0.5))
    first, second = linear(), linear()
    with pytest.raises(ValueError, match="images must lie in"):
        check_pixels_once(wrong, first)
    check_pixels_once(wrong, first)  # not looked at again
    check_pixels_once(right, second)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    check_pixels_once(wrong, linear())
