"""Adversarial images and labels from (model, images, labels, recipe): the method, readable on one screen.

"Bilateral Adversarial Training" (Wang and Zhang, ICCV 2019), and the attacks that other methods train on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rmcla_fast.ops import checks
from rmcla_fast.ops.joint_gradient import joint_gradient
from rmcla_fast.ops.perturb_step import perturb_step
from rmcla_fast.ops.random_start import random_start
from rmcla_fast.ops.tensors import to_unit
from rmcla_fast.recipes import Recipe
from rmcla_fast.target_classes import class_target, last_linear

Forward = Callable[[Tensor], Tensor]


class AdversarialExample(NamedTuple):
    """The result of `adversarial_example`; no tensor of it requires grad."""

    images: Tensor  # (B, C, H, W) float, in [0, 1]
    soft_labels: Tensor | None  # (B, classes) float32 or float64; None where the labels stay one-hot
    targets: Tensor  # (B,) int64: what the attack moved towards; the labels where untargeted


class Radii(NamedTuple):
    """The attack's sizes in pixel units: floats, or float32 scalars on the device that a captured graph reads."""

    start: float | Tensor
    step: float | Tensor
    epsilon: float | Tensor


def adversarial_example(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, *, rng: Tensor
) -> AdversarialExample:
    """The images and labels that one update of `recipe` trains on.

    The model comes back as it was: mode, buffers (batch norm's statistics too), gradients and requires-grad flags, also
    after an exception. Its gradients in the weights are never computed.

    Args:
        model: any module that maps images in [0, 1], (B, C, H, W), to logits, (B, classes).
        images: (B, C, H, W) float, or uint8 that means value / 255. The clean ones; not changed.
        labels: (B,) int64.
        recipe: a value of `rmcla_fast.recipes`.
        rng: int64 tensor (seed, step) on the images' device, for the random start and random targets.

    Returns:
        AdversarialExample: images in `images`' dtype (float32 for uint8), soft labels, targets.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype or device; target "mosa" or "mix" for a model
            whose last `nn.Linear` is not its classifier; on a CPU also a label outside [0, classes).
    """
    check(model, images, labels, recipe)
    weight = last_linear(model) if recipe.target in ("mosa", "mix") else None
    with attack_mode(model, recipe.attack_mode):
        return attack(model, images, labels, recipe, radii(recipe), rng=rng, weight=weight)


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
    """`adversarial_example` by a forward function in the right mode, and sizes that may be device tensors."""
    targets, soft_labels = labels, None
    if recipe.steps == 0:
        return AdversarialExample(to_unit(images).detach(), soft_labels, targets)
    rule: dict[str, Any] = {name: getattr(recipe, name) for name in ("beta", "gamma", "top_k", "label_scheme")}
    if recipe.clean_forward:
        with torch.no_grad():
            clean_logits = forward(to_unit(images)).detach()
        if recipe.label_source == "clean":
            aim = class_target(recipe.target, clean_logits, labels, rng, weight)
            chosen = joint_gradient(clean_logits, labels, target=aim, **rule)
            targets, soft_labels, rule = chosen.targets, chosen.soft_labels, {"label_scheme": "none"}
            aim = settled(recipe.target, targets)

    moved = first_images(images, recipe, sizes, rng)
    for step in range(recipe.steps):
        # One forward, one backward: the gradient in the logits is fed to autograd, which goes to the images alone.
        moved = moved.detach().requires_grad_()
        with torch.enable_grad():
            # Hooks on a module's inputs fail on a leaf in autograd.grad. Unlike a view this keeps all strides.
            logits = forward(moved.expand_as(moved))
        if recipe.outer_loss == "trades":
            # d KL(clean || adversarial), whose terms nearly cancel: not in 16 bits.
            grad_logits = logits.detach().softmax(1, _wide(logits)) - clean_logits.softmax(1, _wide(logits))
            grad_logits = grad_logits.to(logits.dtype)
        else:
            if step == 0 and recipe.label_source == "start":
                aim = class_target(recipe.target, logits.detach(), labels, rng, weight)
            joint = joint_gradient(logits.detach(), labels, target=aim, **rule)
            grad_logits = joint.grad_logits
            if step == 0 and recipe.label_source == "start":  # what the first forward says holds for all steps
                targets, soft_labels, rule = joint.targets, joint.soft_labels, {"label_scheme": "none"}
                aim = settled(recipe.target, targets)
        (grad,) = torch.autograd.grad(logits, moved, grad_logits)
        moved = moved.detach()
        # Without projection the ball of radius 1 holds the whole pixel range.
        radius = sizes.epsilon if recipe.project else 1.0
        perturb_step(moved, images, grad, step_size=sizes.step, epsilon=radius, out=moved)
    return AdversarialExample(moved, soft_labels, targets)


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def settled(target: str, targets: Tensor) -> str | Tensor:
    """The aim of the later passes: the class that was chosen (a diverged row has -1, and is NaN whatever the class)."""
    return target if target in ("untargeted", "margin") else targets.clamp(min=0)


def radii(recipe: Recipe, epsilon: float | None = None) -> Radii:
    """The recipe's sizes, at another epsilon where given; a normal start's deviation does not scale with it."""
    radius = recipe.epsilon if epsilon is None else epsilon
    start = recipe.start_ratio * (1.0 if recipe.start == "normal" else radius)
    return Radii(start, recipe.step_ratio * radius, radius)


def first_images(images: Tensor, recipe: Recipe, sizes: Radii, rng: Tensor) -> Tensor:
    """Where the attack starts: a new tensor, not clipped to the pixel range."""
    if recipe.start == "uniform":
        return random_start(images, sizes.start, rng=rng)
    clean = to_unit(images)
    if recipe.start == "normal":
        return clean + sizes.start * standard_normal(images.shape, rng).to(clean.dtype)
    return clean.clone(memory_format=torch.preserve_format) if clean is images else clean


def standard_normal(shape: torch.Size, rng: Tensor) -> Tensor:
    """float32 from pairs of the counter-based uniforms, by Box and Muller's formula."""
    uniform = random_start(torch.zeros(2, *shape, device=rng.device), 0.5, rng=rng) + 0.5  # [0, 1), exactly
    return (-2 * torch.log1p(-uniform[0])).sqrt() * torch.cos(2 * torch.pi * uniform[1])


@contextmanager
def attack_mode(model: nn.Module, mode: str) -> Iterator[None]:
    """Put the model into evaluation or training mode inside, and undo that and what training mode does to buffers.

    In mode "train" a model that is training already keeps the modes of its parts, frozen batch norms for example.
    Nothing here reads a value, so a CUDA graph can hold it. `attacks.checked_model.untouched` uses this for the mode
    and undoes more, which costs reads.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [buffer for buffer in model.buffers() if writable(buffer)] if mode == "train" else []
    before = [buffer.clone() for buffer in buffers]
    if mode == "eval" or not model.training:
        model.train(mode == "train")
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


def writable(tensor: Tensor) -> bool:
    """Return whether PyTorch can write into the tensor: it refuses where several elements share their memory."""
    return not any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def check(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe) -> None:
    """What the operators do not check: with no attack they do not even run."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    if not isinstance(recipe, Recipe):
        raise TypeError(
            f"recipe must be a Recipe, as rmcla_fast.recipes.get(name) gives it; got {type(recipe).__name__}"
        )
    check_images_and_labels(images, labels)


def check_images_and_labels(images: Tensor, labels: Tensor) -> None:
    """Check shapes, dtypes and devices, and read no value: reading one would stall a GPU."""
    checks.floating("images", images, uint8=True)
    if images.dim() != 4:
        raise ValueError(f"images must have shape (B, C, H, W); got {tuple(images.shape)}")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be an int64 tensor of shape ({len(images)},); got {got}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels must have shape ({len(images)},), one an image; got {tuple(labels.shape)}")
    checks.same_device("labels", labels, images, "images")
