"""The monitor of catastrophic overfitting: on held-out images, FGSM accuracy stays high while PGD accuracy falls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from rmcla_fast.attacks.batches import Examples
from rmcla_fast.attacks.checked_model import checked
from rmcla_fast.attacks.pgd import PGDAttack
from rmcla_fast.attacks.pgd_settings import PGDSettings
from rmcla_fast.data import ImageSet

PGD_STEPS = 10
BATCH = 256


@dataclass(frozen=True)
class Accuracies:
    """Accuracies in % on the held-out images: clean, under FGSM and under PGD (10 steps of epsilon / 4)."""

    clean: float
    fgsm: float
    pgd: float

    @property
    def overfitted(self) -> bool:
        """Return whether PGD accuracy is less than half of FGSM accuracy and at least 10 points below it.

        Single-step training shows catastrophic overfitting as FGSM accuracy that rises above 90 while PGD accuracy
        falls to 0 (Wong et al. 2020). In every adversarially trained row of benchmarks/results/digits-recipes.md, PGD
        accuracy is more than two thirds of FGSM accuracy.
        """
        return self.fgsm - self.pgd >= 10 and self.pgd < self.fgsm / 2


class Monitor:
    """The held-out images and the attacks on them. Their noise is the same in every measurement."""

    def __init__(self, held_out: ImageSet, epsilon: float, device: torch.device, seed: int) -> None:
        self.images = held_out.images.to(device)
        self.labels = held_out.labels.to(device)
        self.seed = seed
        self.attacks: tuple[PGDSettings, ...] = ()  # FGSM and PGD; none where epsilon is 0, which moves no image
        if epsilon > 0:
            self.attacks = (
                PGDSettings(epsilon, step_size=epsilon, steps=1, random_start=False),
                PGDSettings(epsilon, step_size=epsilon / 4, steps=PGD_STEPS),
            )

    def measure(self, model: nn.Module) -> Accuracies:
        """Return the three accuracies of the model in evaluation mode, and leave model and random states as they were.

        Every image is attacked, also one that is misclassified without an attack.
        """
        right = torch.zeros(3, dtype=torch.int64, device=self.images.device)
        with checked(model) as asked:
            attack = PGDAttack(asked)
            for batch in Examples(asked, self.images, self.labels).batches(BATCH):
                clean = asked.predict(batch.images) == batch.labels
                attacked = [
                    attack.run(batch.images, batch.labels, settings, seed=batch.seeds(self.seed)).right
                    for settings in self.attacks
                ]
                right += torch.stack([clean, *(attacked or [clean, clean])]).sum(1)
        return Accuracies(*(100 * right / len(self.labels)).tolist())
