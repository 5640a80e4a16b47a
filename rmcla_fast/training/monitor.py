"""Watches a fixed held-out batch for catastrophic overfitting: FGSM accuracy stays high while PGD accuracy falls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rmcla_fast.data import ImageSet
from rmcla_fast.ops import joint_gradient, perturb_step, random_start
from rmcla_fast.ops.tensors import to_unit

PGD_STEPS = 10
BATCH = 256


@dataclass(frozen=True)
class Watched:
    """Accuracies in % on the held-out images: clean, under FGSM and under PGD (10 steps of epsilon / 4)."""

    clean: float
    fgsm: float
    pgd: float

    @property
    def overfitted(self) -> bool:
        """Catastrophic overfitting: more than half of what withstands FGSM, and 10 points at least, falls to PGD.

        Single-step training shows it as FGSM accuracy rising above 90 while PGD accuracy falls to 0 (Wong et al. 2020);
        in every adversarially trained row of benchmarks/results/digits-recipes.md PGD stays within a third of FGSM.
        """
        return self.fgsm - self.pgd >= 10 and self.pgd < self.fgsm / 2


class Monitor:
    """The held-out images, their attack's bound and its fixed noise; measuring leaves the model as it was."""

    def __init__(self, held_out: ImageSet, epsilon: float, device: torch.device, seed: int) -> None:
        self.epsilon = epsilon
        self.images = to_unit(held_out.images.to(device))
        self.labels = held_out.labels.to(device)
        self.rng = torch.tensor([seed, 0], device=device)

    def measure(self, model: nn.Module) -> Watched:
        """The three accuracies of `model`, in evaluation mode."""
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            hits = torch.zeros(3, device=self.images.device)
            for images, labels in zip(self.images.split(BATCH), self.labels.split(BATCH), strict=True):
                noisy = random_start(images, self.epsilon, rng=self.rng, clip=True)
                fgsm = self._attack(model, images, images, labels, self.epsilon, 1)
                pgd = self._attack(model, images, noisy, labels, self.epsilon / 4, PGD_STEPS)
                with torch.no_grad():
                    for column, shown in enumerate((images, fgsm, pgd)):
                        hits[column] += (model(shown).argmax(1) == labels).sum()
            clean, one_step, many_steps = (100 * hits / len(self.labels)).tolist()
        finally:
            for module, training in modes.items():
                module.training = training
        return Watched(clean, one_step, many_steps)

    def _attack(
        self, model: nn.Module, origin: Tensor, start: Tensor, labels: Tensor, step_size: float, steps: int
    ) -> Tensor:
        images = start
        for _ in range(steps):
            images = images.detach().requires_grad_()
            logits = model(images)
            with torch.no_grad():
                ascent = joint_gradient(logits.detach(), labels, target="untargeted", label_scheme="none").grad_logits
            (grad,) = torch.autograd.grad(logits, images, ascent)
            images = perturb_step(images.detach(), origin, grad, step_size=step_size, epsilon=self.epsilon)
        return images.detach()
