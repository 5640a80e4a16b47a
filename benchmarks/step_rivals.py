"""The rivals of `bench_train_step.py`: our step, its passes, the public step, an unfused one, torchattacks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]
from public_port import public_step  # noqa: E402

from rmcla_fast import Recipe, backend, models, random_start, recipes  # noqa: E402
from rmcla_fast.example import attack_mode  # noqa: E402
from rmcla_fast.training import TrainStep  # noqa: E402
from rmcla_fast.training.graph import CapturedUpdate  # noqa: E402
from rmcla_fast.training.passes import Passes  # noqa: E402

Run = Callable[[], Any]


class Rivals:
    """The network, the batch, and every rival as a function without arguments."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        generator = torch.Generator().manual_seed(0)
        shape = (options.batch, 3, options.size, options.size)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(self.device)
        self.labels = torch.randint(0, options.classes, (options.batch,), generator=generator).to(self.device)
        self.clean = self.images.float() / 255
        self.noise = random_start(
            torch.zeros_like(self.clean), 8 / 255, rng=torch.zeros(2, dtype=torch.int64).to(self.clean.device)
        )

    def network(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = models.create(self.options.model, self.options.classes).to(self.device)
        if self.options.channels_last:
            model.to(memory_format=torch.channels_last)
        groups = models.weight_groups(model, 2e-4)
        return model, torch.optim.SGD(groups, lr=0.01, momentum=0.9, fused=True)

    def step(self, recipe: Recipe) -> Run:
        model, optimizer = self.network()
        step = TrainStep(model, optimizer, recipe, precision=self.options.precision, capture=self.options.capture)
        return lambda: step(self.images, self.labels)

    def passes(self, recipe: Recipe) -> Run:
        """The recipe's forward and backward passes alone, on ready images with ready gradients, by the same means."""
        model, optimizer = self.network()
        options = self.options
        passes = Passes(model, options.precision, compiled=options.capture in ("compile", "cuda-graph"))
        images = passes.layout(self.clean)
        with torch.no_grad():
            gradient = (passes.attack(images) * 0 + 0.01).detach()

        def update(images: Tensor, *_: Any) -> Tensor:
            model.zero_grad(set_to_none=True)
            with attack_mode(model, "eval"):
                if recipe.clean_forward:
                    with torch.no_grad():
                        passes.attack(images)
                for _ in range(recipe.steps):
                    moved = images.detach().requires_grad_()
                    torch.autograd.grad(passes.attack(moved), moved, gradient)
            for _ in range(2 if recipe.outer_loss == "trades" else 1):
                logits = passes.update(images)
                logits.backward(gradient)
            return logits.detach().sum()

        model.train()
        if options.capture == "cuda-graph":
            captured = CapturedUpdate(update, optimizer, self.device)
            return lambda: captured(images, self.labels)
        return lambda: update(images)

    def port(self, compiled: bool) -> Run:
        """The public code's step: extra clean forward, weight gradients in the attack, labels in eager torch."""
        model, optimizer = self.network()
        network = torch.compile(model, dynamic=False) if compiled else model
        clean = self.clean.contiguous(memory_format=torch.channels_last) if self.options.channels_last else self.clean
        return lambda: public_step(network, optimizer, clean, self.labels, self.noise, epsilon=8 / 255)

    def unfused(self, recipe: Recipe) -> Run:
        """Our eager step with the plain-torch reference of every operator."""
        model, optimizer = self.network()
        step = TrainStep(model, optimizer, recipe, precision=self.options.precision, capture="eager")

        def run() -> None:
            chosen, known = backend._from_environment, dict(backend._resolved)
            backend._from_environment = "reference"
            backend._resolved.clear()
            try:
                step(self.images, self.labels)
            finally:
                backend._from_environment = chosen
                backend._resolved.clear()
                backend._resolved.update(known)

        return run

    def torchattacks_pgd(self, steps: int) -> Run | None:
        """torchattacks' PGD in a plain loop; None where it is not installed (pip install --no-deps torchattacks)."""
        try:
            import torchattacks
        except ImportError:
            return None
        model, optimizer = self.network()
        attack = torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=steps)

        def run() -> None:
            model.train()
            moved = attack(self.clean, self.labels)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(moved), self.labels).backward()
            optimizer.step()

        return run

    def check(self) -> float:
        """The step's loss against the port's over two updates in float32, before anything is timed."""
        (ours, first), (theirs, second) = self.network(), self.network()
        step = TrainStep(ours, first, recipes.get("r-mc-la+"), capture="eager")
        worst = 0.0
        for n in range(2):
            rng = torch.tensor([0, n], device=self.device)
            noise = random_start(torch.zeros_like(self.clean), 8 / 255, rng=rng)
            if self.options.channels_last:  # the noise follows memory order
                noise = random_start(torch.zeros_like(self.clean, memory_format=torch.channels_last), 8 / 255, rng=rng)
            expected = public_step(theirs, second, self.clean, self.labels, noise, epsilon=8 / 255)
            worst = max(worst, float((step(self.images, self.labels) - expected).abs() / expected))
        if worst > 2e-3:
            raise SystemExit(f"the step and the independent port disagree by {worst:.1e}: nothing is timed")
        return worst
