"""The checks of an attack's arguments: each raises one sentence that names the argument and what is wrong with it."""

from __future__ import annotations

from torch import Tensor

from rmcla_fast.adversarial_example import check_images_and_labels
from rmcla_fast.any_model import check_pixels
from rmcla_fast.ops import checks


def check_examples(images: Tensor, labels: Tensor) -> None:
    """Check images (B, C, H, W), float in [0, 1] or uint8, and labels (B,) int64 from 0 up, on one device.

    Unlike the checks of a training step, these read the values.
    """
    check_images_and_labels(images, labels)
    if labels.numel() and int(labels.min()) < 0:
        raise ValueError(f"labels must be classes, 0 and up; got {int(labels.min())}")
    check_pixels(images)


def check_classes(labels: Tensor, classes: int) -> None:
    """Check that each label is one of the model's classes."""
    if int(labels.max()) >= classes:
        raise ValueError(f"labels must lie in [0, {classes}), the classes of the model; got {int(labels.max())}")


def check_epsilon(epsilon: float) -> None:
    """Check that epsilon is a number in (0, 1], the unit of the images."""
    if not 0 < checks.number("epsilon", epsilon) <= 1:
        raise ValueError(f"epsilon must lie in (0, 1], in the unit of [0, 1] images (8/255); got {epsilon}")


def check_count(name: str, value: object) -> None:
    """Check that the value is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
