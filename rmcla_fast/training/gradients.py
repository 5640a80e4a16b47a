"""The part of an update that runs the model: attack, forward and backward pass of every piece of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rmcla_fast.adversarial_example import AdversarialExample, Radii, attack, radii
from rmcla_fast.any_model import attack_mode, writable
from rmcla_fast.ops import dispatch, soft_cross_entropy
from rmcla_fast.ops.tensors import to_unit
from rmcla_fast.recipes import Recipe
from rmcla_fast.target_classes import last_linear
from rmcla_fast.training.forward import Passes


class Gradients:
    """The gradients of one update: `gradients(images, labels)` stores them in `.grad` and returns the loss.

    Args:
        model: the model, perhaps wrapped in DistributedDataParallel.
        optimizer: the optimizer, whose gradients are cleared first.
        recipe: how the adversarial images and labels are made, and which loss is descended.
        passes: the model's passes for the attack and for the update.
        seed: the seed of the noise; see `TrainStep`.
        accumulate: how many pieces a batch is cut into; they run one after the other.
        loss_scale: a float32 scalar on the device that multiplies the gradients, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        passes: Passes,
        seed: int,
        accumulate: int,
        loss_scale: Tensor | None,
    ) -> None:
        device = passes.device
        self.rng = torch.tensor([_as_int64(seed), 0], dtype=torch.int64, device=device)  # (seed, step)
        self._model, self._optimizer, self._recipe, self._passes = model, optimizer, recipe, passes
        self._accumulate, self._loss_scale = accumulate, loss_scale
        self._radii = torch.tensor(radii(recipe), dtype=torch.float32, device=device)
        self._last_weight = last_linear(model) if recipe.target in ("mosa", "mix") else None

    def set_epsilon(self, epsilon: float) -> None:
        """Set epsilon for the next attacks, and scale step and start with it. A captured graph reads the new sizes."""
        for place, size in enumerate(radii(self._recipe, epsilon)):
            self._radii[place].fill_(size)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        count = max(1, min(self._accumulate, len(images) // 2))
        pieces = zip(images.tensor_split(count), labels.tensor_split(count), strict=True)
        losses = []
        with self._others_kept():
            for number, (piece, piece_labels) in enumerate(pieces):
                with self._synchronised(last=number + 1 == count):
                    losses.append(self._add_piece(piece, piece_labels, total=len(images)))
                self.rng[1].add_(1)
        if count < self._accumulate:
            self.rng[1].add_(self._accumulate - count)
        return losses[0] if count == 1 else torch.stack(losses).sum()

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Let the ranks sum their gradients only in the backward pass of the last piece."""
        wrapped = isinstance(self._model, DistributedDataParallel)
        return self._model.no_sync() if wrapped and not last else nullcontext()  # type: ignore[operator]

    @contextmanager
    def _others_kept(self) -> Iterator[None]:
        """Keep the gradients of weights that the optimizer does not own as they were before the `with` block.

        They are read at each update, since an optimizer may get more weights later.
        """
        owned = [one for group in self._optimizer.param_groups for one in group["params"]]
        numbers = {id(one) for one in owned}
        others = [(one, one.grad) for one in self._model.parameters() if id(one) not in numbers]
        for parameter, _ in others:
            parameter.grad = None
        try:
            yield
            if all(one.grad is None for one in owned):
                raise ValueError("the loss depends on none of the weights that the optimizer holds, so none is trained")
        finally:
            for parameter, gradient in others:
                parameter.grad = gradient

    def _add_piece(self, images: Tensor, labels: Tensor, total: int) -> Tensor:
        """Add the gradients of some of the update's `total` images, and return their part of its loss."""
        images = self._passes.layout(images.detach())
        with attack_mode(self._passes.attacked, self._recipe.attack_mode):
            example = attack(
                self._passes.attack,
                images,
                labels,
                self._recipe,
                Radii(*self._radii.unbind()),
                rng=self.rng,
                weight=self._last_weight,
            )
        return self._backward(example, images, labels, total)

    def _backward(self, example: AdversarialExample, images: Tensor, labels: Tensor, total: int) -> Tensor:
        """Run the forward pass in training mode, the loss, and the backward pass to the weights."""
        share = len(labels) / total
        recipe, scale = self._recipe, self._loss_scale
        if recipe.outer_loss == "trades":
            loss = self._trades_loss(example, images, labels)
            loss = loss if share == 1 else loss * share
            (loss if scale is None else loss * scale).backward()
            return loss.detach()
        logits = self._passes.update(example.images)
        targets = labels if example.soft_labels is None else example.soft_labels
        # The operator returns loss and gradient in one pass. Calling it outside autograd saves the graph's nodes.
        operator = dispatch.choose("soft_cross_entropy", logits, None)
        loss, grad_logits, _ = operator(logits.detach(), targets, "mean", False, recipe.label_smoothing)
        if scale is None:
            grad_logits.div_(total)
        else:  # in float32, since some devices round a scalar to the tensor's dtype, and the scale may exceed float16
            grad_logits = (grad_logits.float() * (scale / total)).to(logits.dtype)
        logits.backward(grad_logits)
        return loss if share == 1 else loss * share

    def _trades_loss(self, example: AdversarialExample, images: Tensor, labels: Tensor) -> Tensor:
        clean, adversarial = self._passes.update(to_unit(images)), self._passes.update(example.images)
        divergence = nn.functional.kl_div(
            adversarial.float().log_softmax(1), clean.float().log_softmax(1), reduction="batchmean", log_target=True
        )
        supervised = soft_cross_entropy(clean, labels, label_smoothing=self._recipe.label_smoothing)
        return supervised + self._recipe.trades_weight * divergence

    def remember(self) -> Callable[[], None]:
        """Return a function that undoes what a call changes.

        It puts back the noise counter, torch's random states, and the buffers, which a module may also replace. It
        clears the gradients.
        """
        device = self.rng.device
        torch_state = torch.get_rng_state()  # dropout draws from torch's own generators
        gpu_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        eager = [module for module in self._model.modules() if not isinstance(module, torch.jit.ScriptModule)]
        buffers = [(module, dict(module._buffers)) for module in eager]
        tensors = [tensor for tensor in (*self._model.buffers(), self.rng) if writable(tensor)]
        values = [tensor.detach().clone() for tensor in tensors]

        @torch.no_grad()
        def restore() -> None:
            for module, held in buffers:
                module._buffers.update(held)
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
            torch.set_rng_state(torch_state)
            if gpu_state is not None:
                torch.cuda.set_rng_state(gpu_state, device)
            self._optimizer.zero_grad(set_to_none=True)

        return restore


def _as_int64(seed: int) -> int:
    """Return the int64 with the seed's 64 bits."""
    return seed - 2**64 if seed >= 2**63 else seed
