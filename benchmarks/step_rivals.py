"""Build the rivals of `bench_train_step.py`: our step, its passes alone, the public step, a lean step, torchattacks."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]
from public_port import public_step  # noqa: E402

from rmcla_fast import Recipe, models, random_start, recipes  # noqa: E402
from rmcla_fast.any_model import attack_mode  # noqa: E402
from rmcla_fast.cuda_graph import CapturedUpdate  # noqa: E402
from rmcla_fast.ops import dispatch  # noqa: E402
from rmcla_fast.ops.tensors import to_unit  # noqa: E402
from rmcla_fast.precision import PRECISIONS  # noqa: E402
from rmcla_fast.training import TrainStep  # noqa: E402
from rmcla_fast.training.ema import ExponentialAverage  # noqa: E402
from rmcla_fast.training.forward import Passes  # noqa: E402

Run = Callable[[], Any]
EPSILON = 8 / 255


class RepeatedCrops(Dataset[tuple[Tensor, Tensor]]):
    """A data set that repeats some images, cropping (with a padding of 4) and flipping them one by one."""

    def __init__(self, images: Tensor, labels: Tensor, count: int) -> None:
        self.images, self.labels, self.count = images, labels, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index %= len(self.images)
        size = self.images.shape[-1]
        padded = nn.functional.pad(self.images[index].float() / 255, [4] * 4)
        down, right, flipped = torch.randint(9, (3,)).tolist()
        crop = padded[:, down : down + size, right : right + size]
        return crop.flip(2) if flipped % 2 else crop.clone(), self.labels[index]


class Rivals:
    """One batch of images, and methods that build each rival as a function without arguments."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.layout = torch.channels_last if options.channels_last else torch.contiguous_format
        generator = torch.Generator().manual_seed(0)
        shape = (options.batch, 3, options.size, options.size)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(self.device)
        self.labels = torch.randint(0, options.classes, (options.batch,), generator=generator).to(self.device)
        self.clean = to_unit(self.images)
        self.noise = random_start(
            torch.zeros_like(self.clean), EPSILON, rng=torch.zeros(2, dtype=torch.int64).to(self.clean.device)
        )

    def network(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = models.create(self.options.model, self.options.classes).to(self.device)
        model.to(memory_format=self.layout)
        groups = models.weight_groups(model, 2e-4)
        return model, torch.optim.SGD(groups, lr=0.01, momentum=0.9, fused=True)

    def step(self, recipe: Recipe, decay: float | None = None) -> Run:
        """Build our step; with a `decay`, it also averages the weights."""
        model, optimizer = self.network()
        ema = None if decay is None else ExponentialAverage(model, decay)
        how = {"precision": self.options.precision, "capture": self.options.capture}
        step = TrainStep(model, optimizer, recipe, ema=ema, **how)
        return lambda: step(self.images, self.labels)

    def passes(self, recipe: Recipe) -> Run:
        """Build the recipe's passes alone, forward and backward, on fixed gradients, compiled like our step."""
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
        return self._capture_if_asked(update, optimizer)

    def port(self) -> Run:
        """Build the public step as it is: float32, an extra clean forward pass, weight gradients in the attack."""
        return self._public_step(precision="fp32", compiled=False)

    def plain(self, compiled: bool) -> Run:
        """Build the public step as in a fast plain loop: under autocast, in the precision and layout of the options.

        If `compiled`, the network is compiled in both modes, and the step is one CUDA graph if our step is. The method
        is r-mc-la+, which takes the target and the labels from a clean forward pass.
        """
        return self._public_step(self.options.precision, compiled)

    def _public_step(self, precision: str, compiled: bool) -> Run:
        model, optimizer = self.network()
        network = torch.compile(model, dynamic=False) if compiled else model
        clean = self.clean.contiguous(memory_format=self.layout)
        noise = self.noise.contiguous(memory_format=self.layout)

        def update(*_: Any) -> Tensor:
            with self.autocast(precision):
                return public_step(network, optimizer, clean, self.labels, noise, epsilon=EPSILON)

        return self._capture_if_asked(update, optimizer) if compiled else update

    def lean(self) -> Run:
        """Build R-MC-LA as an expert would write it without this library, with default settings of torch.compile.

        There is no clean forward pass. The network of the attack has frozen weights, so that no weight gradient is
        computed. The labels, the gradient of the logits, the noise and the signed step are compiled functions. The step
        is one CUDA graph if our step is. Its noise comes from torch's own generator, and its images are already float.
        """
        model, optimizer = self.network()
        compiled = partial(torch.compile, dynamic=False, fullgraph=True)

        @compiled
        def attack_logits(start: Tensor) -> Tensor:
            frozen = {name: weight.detach() for name, weight in model.named_parameters()}
            with self.autocast(self.options.precision):
                return torch.func.functional_call(model, frozen, (start,))

        @compiled
        def random_start_of(clean: Tensor) -> Tensor:
            return clean + EPSILON * (2 * torch.rand_like(clean) - 1)

        @compiled
        def update_loss(images: Tensor, soft_labels: Tensor) -> Tensor:
            with self.autocast(self.options.precision):
                logits = model(images)
            return nn.functional.cross_entropy(logits.float(), soft_labels)

        labels_and_gradient, move = compiled(plain_labels_and_gradient), compiled(plain_signed_step)

        def update(clean: Tensor, labels: Tensor, *_: Any) -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            start = random_start_of(clean).requires_grad_()
            model.eval()
            logits = attack_logits(start)
            grad_logits, soft_labels = labels_and_gradient(logits.detach(), labels)
            (grad,) = torch.autograd.grad(logits, start, grad_logits)
            moved = move(start.detach(), clean, grad)
            model.train()
            loss = update_loss(moved, soft_labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return self._capture_if_asked(update, optimizer)

    def _capture_if_asked(self, update: Callable[..., Tensor], optimizer: torch.optim.Optimizer) -> Run:
        """Return a call of the update on float images, captured as one CUDA graph if our own step is."""
        clean = self.clean.contiguous(memory_format=self.layout)
        if self.options.capture != "cuda-graph":
            return lambda: update(clean, self.labels)
        captured = CapturedUpdate(update, optimizer, self.device)
        return lambda: captured(clean, self.labels)

    def autocast(self, precision: str) -> torch.autocast:
        dtype = PRECISIONS[precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def port_with_data_loader(self) -> Run:
        """Build the public step in a usual loop, where a DataLoader crops and flips and each batch gets new noise."""
        model, optimizer = self.network()
        workers = min(8, os.cpu_count() or 1)
        crops = RepeatedCrops(self.images.cpu(), self.labels.cpu(), 100_000 * self.options.batch)
        pin = self.device.type == "cuda"
        loader = DataLoader(crops, self.options.batch, num_workers=workers, pin_memory=pin, drop_last=True)

        def batches_of() -> Iterator[list[Tensor]]:  # starts the worker processes at the first batch
            yield from loader

        batches = batches_of()

        def run() -> None:
            images, labels = (tensor.to(self.device, non_blocking=True) for tensor in next(batches))
            noise = torch.empty_like(images).uniform_(-EPSILON, EPSILON)
            public_step(model, optimizer, images, labels, noise, epsilon=EPSILON)

        return run

    def unfused(self, recipe: Recipe) -> Run:
        """Build our eager step with the plain-torch reference of every operator."""
        model, optimizer = self.network()
        step = TrainStep(model, optimizer, recipe, precision=self.options.precision, capture="eager")

        def run() -> None:
            chosen, known = dispatch._from_environment, dict(dispatch._resolved)
            dispatch._from_environment = "reference"
            dispatch._resolved.clear()
            try:
                step(self.images, self.labels)
            finally:
                dispatch._from_environment = chosen
                dispatch._resolved.clear()
                dispatch._resolved.update(known)

        return run

    def torchattacks_pgd(self, steps: int) -> Run | None:
        """Build PGD by torchattacks in a plain loop, or return None if torchattacks is not installed.

        To install it: pip install --no-deps torchattacks.
        """
        try:
            import torchattacks
        except ImportError:
            return None
        model, optimizer = self.network()
        attack = torchattacks.PGD(model, eps=EPSILON, alpha=2 / 255, steps=steps)

        def run() -> None:
            model.train()
            moved = attack(self.clean, self.labels)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(moved), self.labels).backward()
            optimizer.step()

        return run

    def compare_with_port(self) -> float:
        """Return the largest relative difference in loss between our step and the port, over two float32 updates."""
        cudnn = torch.backends.cudnn
        before = cudnn.deterministic, cudnn.allow_tf32
        cudnn.deterministic, cudnn.allow_tf32 = True, False
        (ours, first), (theirs, second) = self.network(), self.network()
        step = TrainStep(ours, first, recipes.get("r-mc-la+"), capture="eager")
        images, labels, clean = self.images[:32], self.labels[:32], self.clean[:32]
        still = torch.zeros_like(clean, memory_format=self.layout)  # noise is drawn in memory order
        worst = 0.0
        for n in range(2):
            noise = random_start(still, EPSILON, rng=torch.tensor([0, n], device=self.device))
            expected = public_step(theirs, second, clean, labels, noise, epsilon=EPSILON)
            worst = max(worst, float((step(images, labels) - expected).abs() / expected))
        cudnn.deterministic, cudnn.allow_tf32 = before
        if worst > 2e-3:
            raise SystemExit(f"nothing is timed: the losses of the step and the independent port differ by {worst:.1e}")
        return worst

    def compare_with_eager(self) -> float:
        """Return the largest relative difference in loss between the timed and the eager step, over six updates."""
        (ours, first), (theirs, second) = self.network(), self.network()
        recipe, precision = recipes.get("r-mc-la"), self.options.precision
        timed = TrainStep(ours, first, recipe, precision=precision, capture=self.options.capture)
        eager = TrainStep(theirs, second, recipe, precision=precision, capture="eager")
        worst = 0.0
        for _ in range(6):  # the first three warm the graph up
            loss, expected = float(timed(self.images, self.labels)), float(eager(self.images, self.labels))
            worst = max(worst, abs(loss - expected) / expected)
        if not worst < (2e-3 if precision == "fp32" else 0.05):
            raise SystemExit(f"nothing is timed: the losses of the timed and the eager step differ by {worst:.1e}")
        return worst


def plain_labels_and_gradient(
    logits: Tensor, labels: Tensor, beta: float = 9.0, gamma: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Return the gradient of -CE(z, most confusing class) in the logits, and the adversarial labels.

    This is plain torch that does not handle NaN and ties. `logits` are (B, C), and `labels` are int64 (B,).
    """
    z = logits.float()
    true = nn.functional.one_hot(labels, z.shape[1]).bool()
    others = z.masked_fill(true, -torch.inf)
    target = others.argmax(1)
    grad = nn.functional.one_hot(target, z.shape[1]) - z.softmax(1)
    share = (others.amax(1, keepdim=True) - z + gamma).masked_fill(true, 0)
    kept = beta * share.amax(1, keepdim=True)
    soft = torch.where(true, kept, share) / (share.sum(1, True) + kept)
    return grad.to(logits.dtype), soft


def plain_signed_step(start: Tensor, clean: Tensor, grad: Tensor) -> Tensor:
    """Return the clipped signed step in plain torch."""
    moved = start + EPSILON * grad.sign()
    return torch.min(torch.max(moved, clean - EPSILON), clean + EPSILON).clamp(0, 1)
