"""The adversarial images and labels that an update trains on.

`attack` is the method of "Bilateral Adversarial Training" (Wang and Zhang, ICCV 2019), and also runs the attacks of the
other recipes. `adversarial_example` is the public function around it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rmcla_fast.any_model import (
    Forward,
    attack_mode,
    check_model,
    check_pixels_once,
    image_gradient,
    logits_of,
    outside_inference_mode,
    own_inputs,
    weight_dtype,
)
from rmcla_fast.ops import checks, dispatch
from rmcla_fast.ops.joint_gradient import joint_gradient
from rmcla_fast.ops.perturb_step import perturb_step
from rmcla_fast.ops.random_start import random_start
from rmcla_fast.ops.tensors import clipped, to_unit
from rmcla_fast.recipes import Recipe
from rmcla_fast.target_classes import class_target, last_linear


class AdversarialExample(NamedTuple):
    """The result of `adversarial_example`; no tensor of it requires grad."""

    images: Tensor  # (B, C, H, W) float, in [0, 1]
    soft_labels: Tensor | None  # (B, classes) float; None if the labels stay one-hot
    targets: Tensor  # (B,) int64: the classes that the attack moved towards; the labels if it is untargeted


class Radii(NamedTuple):
    """The sizes of an attack, in the unit of [0, 1] images.

    They are floats, or float32 scalars on the device, which a captured CUDA graph reads at each replay.
    """

    start: float | Tensor
    step: float | Tensor
    epsilon: float | Tensor


def adversarial_example(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, *, rng: Tensor
) -> AdversarialExample:
    """Return the images and labels that one update of `recipe` trains on.

    The model's mode, buffers (and so the statistics of batch norm), gradients and requires-grad flags are the same
    afterwards, also after an exception. Gradients of the weights are never computed.

    Args:
        model: any module that maps images in [0, 1], (B, C, H, W), to logits, (B, classes). It gets a copy of the
            images in the type of its weights.
        images: the clean images, (B, C, H, W) float in [0, 1], or uint8 that means value / 255. They are not changed.
        labels: the true classes, (B,) int64; or soft labels, (B, classes) float, of images that were mixed, if the
            recipe's attack is untargeted and does not change the labels.
        recipe: a value of `rmcla_fast.recipes`.
        rng: int64 tensor (seed, step) on the images' device, for the random start and random targets.

    Returns:
        AdversarialExample: images in `images`' dtype (float32 for uint8), soft labels, targets.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype or device; a model that returns something
            else than logits, or from whose logits autograd cannot reach the images; target "mosa" or "mix" for a model
            whose last `nn.Linear` is not its classifier; on a CPU also a label outside [0, classes). Images outside
            [0, 1] are refused, on a GPU only those of the model's first batch, since the host waits for their values.
    """
    check_model(model)
    check(images, labels, recipe)
    check_pixels_once(images, model)
    run, dtype = outside_inference_mode(model), weight_dtype(model)

    def forward(inputs: Tensor) -> Tensor:
        return logits_of(run(own_inputs(inputs, dtype)), inputs)

    with torch.inference_mode(False), attack_mode(model, recipe.attack_mode):
        weight = last_linear(model) if recipe.target in ("mosa", "mix") else None
        return attack(forward, images, labels, recipe, radii(recipe), rng=rng, weight=weight)


def attack(
    forward: Forward,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    sizes: Radii,
    *,
    rng: Tensor,
    weight: Tensor | None = None,
) -> AdversarialExample:
    """Return what `adversarial_example` returns, without its checks and its change of the model's mode.

    `forward` maps images to logits in the recipe's mode, and does not write into them. `weight` (classes, features) is
    the weight of the last layer, which only the targets "mosa" and "mix" need.
    """
    targets, soft_labels = (labels.argmax(1), labels) if labels.is_floating_point() else (labels, None)
    if recipe.steps == 0:
        return AdversarialExample(clipped(images).detach(), soft_labels, targets)
    rule: dict[str, Any] = {name: getattr(recipe, name) for name in ("beta", "gamma", "top_k", "label_scheme")}
    if recipe.clean_forward:
        with torch.no_grad():
            clean_logits = forward(to_unit(images)).detach().clone()  # a model may use the memory of its answer again
        if recipe.label_source == "clean":
            aim = class_target(recipe.target, clean_logits, labels, rng, weight)
            chosen = joint_gradient(clean_logits, labels, target=aim, **rule)
            targets, soft_labels, rule = chosen.targets, chosen.soft_labels, {"label_scheme": "none"}
            aim = fixed_target(recipe.target, targets)

    moved = first_images(images, recipe, sizes, rng)
    for step in range(recipe.steps):
        # One forward and one backward pass: autograd begins at the gradient of the logits and ends at the images.
        moved = moved.detach().requires_grad_()
        with torch.enable_grad():
            logits = forward(moved)
        if recipe.outer_loss == "trades":
            # The gradient of KL(clean || adversarial) in the logits. Its terms nearly cancel, so 16 bits are too few.
            grad_logits = logits.detach().softmax(1, _wide(logits)) - clean_logits.softmax(1, _wide(logits))
            grad_logits = grad_logits.to(logits.dtype)
        elif labels.is_floating_point():
            checks.same_shape("labels", labels, logits, "the logits")
            operator = dispatch.choose("soft_cross_entropy", logits, None)
            _, grad_logits, _ = operator(logits.detach(), labels, "sum", False, 0.0)
        else:
            if step == 0 and recipe.label_source == "start":
                aim = class_target(recipe.target, logits.detach(), labels, rng, weight)
            joint = joint_gradient(logits.detach(), labels, target=aim, **rule)
            grad_logits = joint.grad_logits
            if step == 0 and recipe.label_source == "start":  # the later steps keep these
                targets, soft_labels, rule = joint.targets, joint.soft_labels, {"label_scheme": "none"}
                aim = fixed_target(recipe.target, targets)
        grad = image_gradient(logits, moved, grad_logits)
        moved = moved.detach()
        # Without projection the radius is 1: such a ball contains every image in [0, 1].
        radius = sizes.epsilon if recipe.project else 1.0
        perturb_step(moved, images, grad, step_size=sizes.step, epsilon=radius, out=moved)
    return AdversarialExample(moved, soft_labels, targets)


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def fixed_target(target: str, targets: Tensor) -> str | Tensor:
    """Return the target of the later steps: the classes that the first pass chose.

    A row whose logits were not finite has class -1. It stays NaN for every target, so it gets class 0.
    """
    return target if target in ("untargeted", "margin") else targets.clamp(min=0)


def radii(recipe: Recipe, epsilon: float | None = None) -> Radii:
    """Return the sizes of the recipe's attack at `epsilon`; None means the recipe's own epsilon.

    The standard deviation of a normal start does not scale with epsilon.
    """
    radius = recipe.epsilon if epsilon is None else epsilon
    start = recipe.start_ratio * (1.0 if recipe.start == "normal" else radius)
    return Radii(start, recipe.step_ratio * radius, radius)


def first_images(images: Tensor, recipe: Recipe, sizes: Radii, rng: Tensor) -> Tensor:
    """Return the images that the attack starts from: a new tensor, not clipped to the pixel range."""
    if recipe.start != "none":
        checks.random_state(rng, images, "images")  # not (B, 2), which random_start takes and recipes do not
    if recipe.start == "uniform":
        return random_start(images, sizes.start, rng=rng)
    clean = to_unit(images)
    if recipe.start == "normal":
        return clean + sizes.start * standard_normal(images.shape, rng).to(clean.dtype)
    return clean.clone(memory_format=torch.preserve_format) if clean is images else clean


def standard_normal(shape: torch.Size, rng: Tensor) -> Tensor:
    """Return standard normal float32 numbers: the Box-Muller transform of pairs of counter-based uniform numbers."""
    zeros = torch.zeros(2, *shape, dtype=torch.float32, device=rng.device)
    uniform = random_start(zeros, 0.5, rng=rng) + 0.5  # [0, 1), exactly
    return (-2 * torch.log1p(-uniform[0])).sqrt() * torch.cos(2 * torch.pi * uniform[1])


def check(images: Tensor, labels: Tensor, recipe: Recipe) -> None:
    """Check what the operators do not check. Without an attack they do not run at all."""
    if not isinstance(recipe, Recipe):
        raise TypeError(
            f"recipe must be a Recipe, as rmcla_fast.recipes.get(name) gives it; got {type(recipe).__name__}"
        )
    soft = isinstance(labels, Tensor) and labels.is_floating_point() and labels.dim() == 2
    if soft and not recipe.takes_soft_labels:
        raise TypeError(
            f"recipe {recipe.name!r} needs the classes of the images, int64 of shape (B,), and takes no soft labels; "
            f"got {labels.dtype}"
        )
    check_images_and_labels(images, labels, soft=soft)


def check_images_and_labels(images: Tensor, labels: Tensor, *, soft: bool = False) -> None:
    """Check shapes, dtypes and devices, and read no value: reading one would stall a GPU.

    If `soft`, the labels are soft ones, (B, classes) float.
    """
    checks.floating("images", images, uint8=True)
    if images.dim() != 4:
        raise ValueError(f"images must have shape (B, C, H, W); got {tuple(images.shape)}")
    if not soft and (not isinstance(labels, Tensor) or labels.dtype != torch.int64):
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be an int64 tensor of shape ({len(images)},); got {got}")
    if soft and len(labels) != len(images):
        raise ValueError(f"soft labels must have shape ({len(images)}, classes); got {tuple(labels.shape)}")
    if not soft and labels.shape != images.shape[:1]:
        raise ValueError(f"labels must have shape ({len(images)},), one per image; got {tuple(labels.shape)}")
    checks.same_device("labels", labels, images, "images")
