"""The monitor of catastrophic overfitting: on held-out images, FGSM accuracy stays high while PGD accuracy falls."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn

from rmcla_fast.attacks.batches import Examples
from rmcla_fast.attacks.checked_model import checked
from rmcla_fast.attacks.pgd import PGDAttack
from rmcla_fast.attacks.pgd_settings import PGDSettings
from rmcla_fast.data import ImageSet

PGD_STEPS = 10
BATCH = 256
BEST_OF = ("average", "weights")


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


@dataclass(frozen=True)
class Measured:
    """The accuracies of the model that is later loaded and, where it is an average, of the weights themselves."""

    seen: Accuracies
    of_weights: Accuracies | None

    @property
    def best_of(self) -> str:
        """Return which of BEST_OF has the higher PGD accuracy; "average" if both are equal, or there is one model."""
        return BEST_OF[self.pgd > self.seen.pgd]

    @property
    def pgd(self) -> float:
        """Return the higher PGD accuracy in %."""
        return self.seen.pgd if self.of_weights is None else max(self.seen.pgd, self.of_weights.pgd)

    @property
    def newest(self) -> Accuracies:
        """Return the accuracies of the weights, which overfit before their average does."""
        return self.of_weights or self.seen

    def values(self) -> dict[str, float]:
        """Return the accuracies by the names that they have in metrics.jsonl."""
        found = asdict(self.seen)
        if self.of_weights is not None:
            found |= {f"weights_{name}": value for name, value in asdict(self.of_weights).items()}
        return found


class Monitor:
    """The held-out images and the attacks on them. Their noise is the same in every measurement."""

    def __init__(self, held_out: ImageSet, epsilon: float, device: torch.device, seed: int) -> None:
        self.images = held_out.images.to(device)
        self.labels = held_out.labels.to(device)
        self.seed = seed
        self.stuck = 0
        self.attacks: tuple[PGDSettings, ...] = ()  # FGSM and PGD; none where epsilon is 0, which moves no image
        if epsilon > 0:
            self.attacks = (
                PGDSettings(epsilon, step_size=epsilon, steps=1, random_start=False),
                PGDSettings(epsilon, step_size=epsilon / 4, steps=PGD_STEPS),
            )

    def measure_run(self, model: nn.Module, average: nn.Module | None) -> Measured:
        """Return the accuracies of a run's model, and of the average of its weights if it keeps one."""
        of_weights = self.measure(model)
        return Measured(of_weights, None) if average is None else Measured(self.measure(average), of_weights)

    def measure(self, model: nn.Module) -> Accuracies:
        """Return the three accuracies of the model in evaluation mode, and leave model and random states as they were.

        Every image is attacked, also one that is misclassified without an attack. `stuck` then says for how many images
        PGD found a gradient of exactly zero.
        """
        stuck = torch.zeros((), dtype=torch.int64, device=self.images.device)
        right = torch.zeros(3, dtype=torch.int64, device=self.images.device)
        with checked(model) as asked:
            attack = PGDAttack(asked)
            for batch in Examples(asked, self.images, self.labels).batches(BATCH):
                clean = asked.predict(batch.images) == batch.labels
                attacked = [
                    attack.run(batch.images, batch.labels, settings, seed=batch.seeds(self.seed))
                    for settings in self.attacks
                ]
                right += torch.stack([clean, *([one.right for one in attacked] or [clean, clean])]).sum(1)
                if attacked:
                    stuck += attacked[-1].unmoved.sum()
        self.stuck = int(stuck)
        return Accuracies(*(100 * right / len(self.labels)).tolist())
