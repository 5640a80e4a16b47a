"""One update of adversarial training, for every recipe: attack, loss, backward, optimizer, average."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rmcla_fast.adversarial_example import AdversarialExample, Radii, attack, attack_mode, check, radii, writable
from rmcla_fast.cuda_graph import CapturedUpdate, CaptureFailed, first_line, is_fused, resolve_capture
from rmcla_fast.errors import UserError
from rmcla_fast.ops import checks, dispatch, soft_cross_entropy
from rmcla_fast.ops.tensors import to_unit
from rmcla_fast.precision import check_precision
from rmcla_fast.recipes import Recipe
from rmcla_fast.target_classes import last_linear
from rmcla_fast.training.ema import ExponentialAverage
from rmcla_fast.training.forward import Passes
from rmcla_fast.training.loss_scale import LossScale

CAPTURES = ("auto", "eager", "compile", "cuda-graph")


class CompileFailed(Exception):
    """Why the passes cannot be compiled, in one sentence."""


class TrainStep:
    """`step(images, labels)` is one update of the model; it returns the loss, a detached scalar on the device.

    The attack computes the gradient of the images alone, in the recipe's mode; the update computes the gradients of the
    weights alone, in training mode, so that batch norm's statistics move once (for "trades", whose update has two
    forward passes, once in each). No call reads a tensor on the host, so a GPU never waits.

    With `accumulate` pieces the memory is a piece's and the update is the batch's: its gradients are the mean over all
    images, each piece draws noise of its own, DistributedDataParallel sums the ranks' gradients once. Batch norm sees
    the pieces: it normalises by each, and its statistics move once a piece.

    Args:
        model: maps images in [0, 1] to logits; may be wrapped in DistributedDataParallel (not with "cuda-graph").
        optimizer: over the model's parameters. Fused (`fused=True`) for "cuda-graph", "fp16" and `skip_nonfinite`.
        recipe: a value of `rmcla_fast.recipes`.
        ema: follows the weights after each update.
        precision: "fp32", "bf16" or "fp16": the passes run under autocast; weights, images and loss stay float32.
            "fp16" multiplies the loss by a scale that lives on the device. In "fp32" a GPU computes convolutions in
            TF32, as PyTorch does by default (`torch.backends.cudnn.allow_tf32`), and the linear layers where
            `torch.set_float32_matmul_precision` allows it, which by default it does not.
        capture: "eager"; "compile": the passes as two compiled modules that share the weights; "cuda-graph": the whole
            update, around these two, as one CUDA graph; "auto": "cuda-graph" on a GPU where model and optimizer allow
            it, "compile" on a GPU where not, else "eager". The numbers agree within rounding. A batch of another shape
            than the largest runs eager. What turns out to fail is a UserError; with "auto" it is a warning, and the
            update, of which nothing was done, and the later ones take the next simpler way, which is `capture` then.
        seed: of the noise; the n-th call draws from (seed, n), with pieces from (seed, n `accumulate` + piece). A rank
            goes into the upper 32 bits.
        clip_norm: gradients are scaled down to this norm, where given.
        skip_nonfinite: an update whose gradients are not finite leaves the model as it was; `skipped` counts them.
        accumulate: pieces that a batch is cut into, one after the other; fewer where they would be single images.

    Raises:
        TypeError, ValueError: one sentence that names the argument.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        *,
        ema: ExponentialAverage | None = None,
        precision: str = "fp32",
        capture: str = "auto",
        seed: int = 0,
        clip_norm: float | None = None,
        skip_nonfinite: bool = False,
        accumulate: int = 1,
    ) -> None:
        _check_arguments(model, optimizer, recipe, ema, precision, capture, seed, clip_norm, accumulate)
        self.model, self.optimizer, self.recipe, self.ema = model, optimizer, recipe, ema
        self.accumulate = accumulate
        self.calls = 0
        device = next(model.parameters()).device
        self._auto = capture == "auto"
        capture = resolve_capture(capture, model, optimizer, device)
        self.capture = capture  # "auto" becomes what it turns out to be
        self._tried = 0  # images of the largest batch whose passes were compiled
        self._clip_norm = clip_norm
        self._passes = Passes(model, precision, compiled=capture in ("compile", "cuda-graph"))
        self._weight = last_linear(model) if recipe.target in ("mosa", "mix") else None
        self.rng = torch.tensor([_signed(seed), 0], dtype=torch.int64, device=device)
        self._radii = torch.tensor(radii(recipe), dtype=torch.float32, device=device)
        self._epsilon = recipe.epsilon
        self._guard: LossScale | None = None
        if precision == "fp16" or skip_nonfinite:
            if not is_fused(optimizer):
                what = 'precision "fp16"' if precision == "fp16" else "skip_nonfinite"
                raise ValueError(f"{what} needs an optimizer made with fused=True, which can skip an update by itself")
            self._guard = LossScale(device, scaled=precision == "fp16")
        self._captured: CapturedUpdate | None = None
        if capture == "cuda-graph":
            self._captured = CapturedUpdate(self._update, optimizer, device, self._rehearse)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """One update.

        Args:
            images: (B, C, H, W) float in [0, 1], or uint8 that means value / 255, on the model's device.
            labels: (B,) int64.
        """
        check(self.model, images, labels, self.recipe)
        if len(images) == 0:
            raise ValueError("images must hold at least one image; got an empty batch")
        checks.same_device("images", images, self.rng, "the model")
        if not self.model.training:
            self.model.train()
        update = self._update if self._captured is None else self._captured
        simpler = why = ""
        try:
            loss = update(images, labels)
        except (CaptureFailed, CompileFailed) as error:  # nothing of this update was done
            simpler, why = self._simpler_way(error)
        if simpler:  # only now is the memory free that the error held
            before = self.capture, self._captured
            self.capture, self._captured, self._passes.eager = simpler, None, simpler == "eager"
            try:
                loss = self._update(images, labels)
            except BaseException:  # the error is the caller's, or the model's own: the capture was not to blame
                (self.capture, self._captured), self._passes.eager = before, False
                raise
            warnings.warn(f"training goes on with capture {simpler!r}, since {why}", stacklevel=2)
        self.calls += 1
        return loss

    @property
    def epsilon(self) -> float:
        """The radius of the next update. Setting it scales the attack's step and start too, and recaptures nothing."""
        return self._epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        if value == self._epsilon:  # a schedule may set it before every update
            return
        self._epsilon = checks.not_negative("epsilon", value)
        for place, size in enumerate(radii(self.recipe, value)):
            self._radii[place].fill_(size)

    @property
    def skipped(self) -> Tensor | None:
        """How many updates were skipped, an int64 scalar on the device; None where none can be."""
        return None if self._guard is None else self._guard.skipped

    def state_dict(self) -> dict[str, Any]:
        """What the next call depends on beside model, optimizer and average: the count of calls and the loss scale."""
        guard = {} if self._guard is None else {"guard": self._guard.state_dict()}
        return {"step": self.calls, "epsilon": self._epsilon, **guard}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls = int(state["step"])
        self.rng[1].fill_(self.calls * self.accumulate)
        self.epsilon = state["epsilon"]
        if self._guard is not None and "guard" in state:
            self._guard.load_state_dict(state["guard"])

    def _simpler_way(self, error: Exception) -> tuple[str, str]:
        """The capture that needs not what failed, and why it is taken; UserError if another was asked for."""
        failed, simpler, what = "cuda-graph", "compile", "the update cannot be captured in a CUDA graph"
        if isinstance(error, CompileFailed):
            failed, simpler, what = self.capture, "eager", "torch.compile cannot compile the model"
        if not self._auto:
            raise UserError(
                f"capture {failed!r} cannot be had, since {what}: {error}; capture {simpler!r} trains the same"
            ) from error
        return simpler, f"{what}: {error}"

    def _update(self, images: Tensor, labels: Tensor) -> Tensor:
        guard = self._guard
        before = [] if guard is None else guard.remember(self.model)
        compiles = self.capture in ("compile", "cuda-graph") and len(images) > self._tried
        loss = (self._first_gradients if compiles else self._gradients)(images, labels)
        if guard is not None:
            guard.unscale(self.optimizer)
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        self.optimizer.step()
        if guard is not None:
            guard.settle(self.model, self.optimizer, before)
        if self.ema is not None:
            self.ema.update(self._passes.attacked)
        return loss

    def _gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """Attack, forward and backward of each piece: all of an update that runs the model; returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        count = max(1, min(self.accumulate, len(images) // 2))
        losses = []
        pieces = zip(images.tensor_split(count), labels.tensor_split(count), strict=True)
        for number, (some, of_them) in enumerate(pieces):
            with self._synchronised(last=number + 1 == count):
                losses.append(self._piece(some, of_them, total=len(images)))
            self.rng[1].add_(1)
        if count < self.accumulate:
            self.rng[1].add_(self.accumulate - count)
        return losses[0] if count == 1 else torch.stack(losses).sum()

    def _first_gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """`_gradients`, whose passes compile as they run; CompileFailed, with nothing changed, where they cannot."""
        restore = self._remembered()
        try:
            loss = self._gradients(images, labels)
        except BaseException as error:
            restore()
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            from torch._dynamo.exc import TorchDynamoException  # slow to import, and here it is already

            # Where there is another way, it shows whether the error is the model's own.
            if self._auto or isinstance(error, TorchDynamoException):
                raise CompileFailed(first_line(getattr(error, "inner_exception", error))) from error
            raise
        self._tried = len(images)
        return loss

    def _rehearse(self, images: Tensor, labels: Tensor) -> None:
        """Asks the model all that an update asks of it, and puts everything back."""
        restore = self._remembered()
        try:
            self._gradients(images, labels)
        finally:
            restore()

    def _remembered(self) -> Callable[[], None]:
        """A function that puts back what `_gradients` changes.

        These are the noise counter, torch's random states, and buffers, which a module may replace, too.
        """
        device = self.rng.device
        drawn = torch.get_rng_state()  # dropout draws from torch's own generators
        drawn_on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        buffers = [(module, dict(module._buffers)) for module in self.model.modules()]
        changed = [tensor for tensor in (*self.model.buffers(), self.rng) if writable(tensor)]
        before = [tensor.detach().clone() for tensor in changed]

        @torch.no_grad()
        def restore() -> None:
            for module, held in buffers:
                module._buffers.update(held)
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
            torch.set_rng_state(drawn)
            if drawn_on_gpu is not None:
                torch.cuda.set_rng_state(drawn_on_gpu, device)
            self.optimizer.zero_grad(set_to_none=True)

        return restore

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """The ranks' gradients are summed in the last piece's backward: by then each rank holds its own sum."""
        wrapped = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if wrapped and not last else nullcontext()  # type: ignore[operator]

    def _piece(self, images: Tensor, labels: Tensor, total: int) -> Tensor:
        """Attack and backward of some of the update's `total` images; returns their part of its loss."""
        images = self._passes.layout(images.detach())
        with attack_mode(self._passes.attacked, self.recipe.attack_mode):
            example = attack(
                self._passes.attack,
                images,
                labels,
                self.recipe,
                Radii(*self._radii.unbind()),
                rng=self.rng,
                weight=self._weight,
            )
        return self._backward(example, images, labels, total)

    def _backward(self, example: AdversarialExample, images: Tensor, labels: Tensor, total: int) -> Tensor:
        """The forward in training mode, the loss, and the weights' gradients (times the loss scale)."""
        share = len(labels) / total
        scale = None if self._guard is None else self._guard.scale
        if self.recipe.outer_loss == "trades":
            clean, adversarial = self._passes.update(to_unit(images)), self._passes.update(example.images)
            divergence = nn.functional.kl_div(
                adversarial.float().log_softmax(1), clean.float().log_softmax(1), reduction="batchmean", log_target=True
            )
            loss = soft_cross_entropy(clean, labels) + self.recipe.trades_weight * divergence
            loss = loss if share == 1 else loss * share
            (loss if scale is None else loss * scale).backward()
            return loss.detach()
        logits = self._passes.update(example.images)
        targets = labels if example.soft_labels is None else example.soft_labels
        # Loss and gradient leave one pass: no node of autograd stands between the operator and the network.
        operator = dispatch.choose("soft_cross_entropy", logits, None)
        loss, grad_logits, _ = operator(logits.detach(), targets, "mean", False)
        if scale is None:
            grad_logits.div_(total)
        else:  # in float32: some devices round a scalar to the tensor's dtype, and the scale may be beyond float16
            grad_logits = (grad_logits.float() * (scale / total)).to(logits.dtype)
        logits.backward(grad_logits)
        return loss if share == 1 else loss * share


def _check_arguments(
    model: Any,
    optimizer: Any,
    recipe: Any,
    ema: Any,
    precision: Any,
    capture: Any,
    seed: Any,
    clip_norm: Any,
    accumulate: Any,
) -> None:
    for name, value, kind in (
        ("model", model, nn.Module),
        ("optimizer", optimizer, torch.optim.Optimizer),
        ("recipe", recipe, Recipe),
        ("ema", ema, ExponentialAverage),
        ("seed", seed, int),
        ("accumulate", accumulate, int),
    ):
        if not isinstance(value, kind) and not (name == "ema" and value is None):
            raise TypeError(f"{name} must be of type {kind.__name__}; got {type(value).__name__}")
    if next(model.parameters(), None) is None:
        raise ValueError("model must have parameters; it has none")
    check_precision(precision)
    if capture not in CAPTURES:
        raise ValueError(f"capture must be one of {', '.join(map(repr, CAPTURES))}; got {capture!r}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit 64 bits; got {seed}")
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1; got {accumulate}")
    if clip_norm is not None:
        checks.positive("clip_norm", clip_norm)


def _signed(seed: int) -> int:
    """The int64 with the seed's 64 bits."""
    return seed - 2**64 if seed >= 2**63 else seed
