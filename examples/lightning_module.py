"""Train with Lightning: the training step attacks its batch, and the validation step reports accuracy under attack.

    python examples/lightning_module.py

It needs torch and lightning, and scikit-learn for the images. It prints the accuracies on the test images, clean and
under PGD, as Lightning has logged them.
"""

from __future__ import annotations

import argparse
import logging
import warnings

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import rmcla_fast
from rmcla_fast import adversarial_example, recipes, soft_cross_entropy

EPSILON = 0.15  # pixels lie in [0, 1]
SEED = 0


class RobustClassifier(lightning.LightningModule):
    """A network, the recipe that it is trained with, and its validation under attack."""

    def __init__(self, network: torch.nn.Module, recipe: rmcla_fast.Recipe, total_steps: int) -> None:
        super().__init__()
        self.network, self.recipe, self.total_steps = network, recipe, total_steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, labels = batch
        # The noise of the attack is a function of seed and step. The rank is in the seed, so that several GPUs draw
        # different noise. With `precision="bf16-mixed"` Lightning runs all of this under autocast.
        rng = torch.tensor([SEED + (self.global_rank << 32), self.global_step], device=self.device)
        example = adversarial_example(self.network, images, labels, self.recipe, rng=rng)
        return soft_cross_entropy(self.network(example.images), example.soft_labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        # Lightning validates in torch.inference_mode, in which nothing can be differentiated. `evaluate` leaves this
        # mode for its attacks, so it needs no `Trainer(inference_mode=False)`.
        images, labels = batch
        found = rmcla_fast.attacks.evaluate(
            self.network, images, labels, attacks="clean,ce20", epsilon=self.recipe.epsilon
        )
        accuracies = {f"val_{name}": result.accuracy for name, result in found.items()}
        self.log_dict(accuracies, batch_size=len(labels), sync_dist=True)  # the mean over all images

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(epochs: int) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its tips and its list of devices
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # these images are in memory
    lightning.seed_everything(SEED, verbose=False)
    data = rmcla_fast.data.load("digits")  # uint8 images (N, 1, 8, 8) and int64 labels (N,)
    train = TensorDataset(data.train.images, data.train.labels)
    test = TensorDataset(data.test.images, data.test.labels)
    loader = DataLoader(train, batch_size=64, shuffle=True, drop_last=True)
    network = rmcla_fast.models.create("small-cnn", data.num_classes, 1)
    recipe = recipes.get("r-mc-la").replace(epsilon=EPSILON)
    module = RobustClassifier(network, recipe, total_steps=epochs * len(loader))

    trainer = lightning.Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=max(1, epochs // 3),
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        devices=1,
    )
    trainer.fit(module, loader, DataLoader(test, batch_size=360))
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print(f"clean accuracy {found['val_clean']:.1f} % after {trainer.current_epoch} epochs")
    print(f"PGD accuracy {found['val_ce20']:.1f} % (20 steps, epsilon {EPSILON})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    main(parser.parse_args().epochs)
