"""One update of adversarial training, for every recipe: gradients, optimizer and average, captured where possible."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rmcla_fast.adversarial_example import check
from rmcla_fast.any_model import check_model, check_pixels_once, set_mode, weight_dtype
from rmcla_fast.cuda_graph import CapturedUpdate, CaptureFailed, first_line, is_fused, resolve_capture
from rmcla_fast.errors import UserError
from rmcla_fast.ops import checks
from rmcla_fast.precision import check_weights
from rmcla_fast.recipes import Recipe
from rmcla_fast.training.ema import ExponentialAverage
from rmcla_fast.training.forward import Passes
from rmcla_fast.training.gradients import Gradients
from rmcla_fast.training.loss_scale import LossScale

CAPTURES = ("auto", "eager", "compile", "cuda-graph")


class CompileFailed(Exception):
    """The passes cannot be compiled. The message says why in one sentence."""


class TrainStep:
    """One update of the model: `step(images, labels)` makes it and returns the loss, a detached scalar on the device.

    The attack computes the gradient of the images alone, in the recipe's mode. The update computes the gradients of the
    weights alone, in training mode, so that batch norm's statistics move once ("trades" has two forward passes in its
    update, which both move them). No call reads a tensor on the host, so that a GPU never waits.

    `accumulate` cuts a batch into pieces, which lowers the memory to that of a piece. It is still one update: its
    gradients are the mean over all images, and DistributedDataParallel sums the ranks' gradients once. Each piece draws
    noise of its own. Batch norm normalises by each piece, and its statistics move once per piece.

    Args:
        model: maps images in [0, 1] to logits; may be wrapped in DistributedDataParallel (not with "cuda-graph").
        optimizer: over the model's parameters, or some of them. The gradients of the others stay as they are. It must
            be fused (`fused=True`) for "cuda-graph", "fp16" and `skip_nonfinite`.
        recipe: a value of `rmcla_fast.recipes`.
        ema: the moving average of the weights, which is updated after each update.
        precision: "fp32", "bf16" or "fp16". In 16 bits the passes run under autocast; weights, images and loss stay
            float32. "fp16" multiplies the loss by a scale that lives on the device. In "fp32" a GPU computes
            convolutions in TF32, as PyTorch does by default (`torch.backends.cudnn.allow_tf32`), and linear layers only
            where `torch.set_float32_matmul_precision` allows it.
        capture: how the update runs; the results agree within rounding. "eager" runs it as it is. "compile" compiles
            the passes as two modules that share the weights. "cuda-graph" compiles them too, and captures the whole
            update as one CUDA graph. "auto" is "cuda-graph" on a GPU if model and optimizer allow it, "compile" on a
            GPU if they do not, and "eager" elsewhere. A batch of another shape than the largest runs eagerly. If an
            update cannot be compiled or captured, nothing of it is done, and a UserError is raised. With "auto" there
            is a warning instead: this update and all later ones run in the next simpler way, which the attribute
            `capture` then names.
        seed: the seed of the noise. Piece p of call n, both counted from 0, draws from (seed, n * accumulate + p). The
            upper 32 bits are for the rank of a process.
        clip_norm: the largest norm of the optimizer's gradients; larger ones are scaled down to it. None does not clip.
        skip_nonfinite: whether an update whose gradients are not finite leaves the model as it was; `skipped` counts
            such updates.
        accumulate: how many pieces a batch is cut into; fewer if a piece would be a single image.

    Attributes:
        rng: int64 (seed, step) on the device, from which the next call draws. The call advances it. Augmentation also
            draws from it, in another stream.
        capture: the way in which updates run now.
        calls: the number of updates so far.

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
        check_model(model, trained=True)
        kinds = {"optimizer": torch.optim.Optimizer, "recipe": Recipe, "seed": int}
        kinds |= {"accumulate": int} | ({} if ema is None else {"ema": ExponentialAverage})
        given = locals()
        for name, kind in kinds.items():
            if not isinstance(given[name], kind):
                raise TypeError(f"{name} must be of type {kind.__name__}; got {type(given[name]).__name__}")
        trained = {one for one in model.parameters() if one.requires_grad}
        if not trained:
            raise ValueError(
                "model must have parameters that require gradients; it has none, so nothing can be trained"
            )
        if trained.isdisjoint(one for group in optimizer.param_groups for one in group["params"]):
            raise ValueError("optimizer must hold parameters of model that require gradients; it holds none of them")
        check_weights(precision, weight_dtype(model))
        if torch.is_inference_mode_enabled():
            raise ValueError("a TrainStep must be made outside of torch.inference_mode")
        if capture not in CAPTURES:
            raise ValueError(f"capture must be one of {', '.join(map(repr, CAPTURES))}; got {capture!r}")
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed must fit 64 bits; got {seed}")
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1; got {accumulate}")
        if clip_norm is not None:
            checks.positive("clip_norm", clip_norm)
        if (precision == "fp16" or skip_nonfinite) and not is_fused(optimizer):
            what = 'precision "fp16"' if precision == "fp16" else "skip_nonfinite"
            raise ValueError(f"{what} needs an optimizer made with fused=True, which can skip an update by itself")
        if ema is not None and not ema.follows(model):
            raise ValueError("ema must be an average of this model; its weights and buffers have other shapes")
        device = next(model.parameters()).device
        self.model, self.optimizer, self.recipe, self.ema = model, optimizer, recipe, ema
        self.calls = 0
        self.capture = resolve_capture(capture, model, optimizer, device)
        self._auto = capture == "auto"
        self._clip_norm = clip_norm
        self._accumulate = accumulate
        self._epsilon = recipe.epsilon
        self._loss_scale: LossScale | None = None
        if precision == "fp16" or skip_nonfinite:
            self._loss_scale = LossScale(device, scaled=precision == "fp16")
        self._passes = Passes(model, precision, compiled=self.capture in ("compile", "cuda-graph"))
        scale = None if self._loss_scale is None else self._loss_scale.scale
        self._gradients = Gradients(model, optimizer, recipe, self._passes, seed, accumulate, scale)
        self.rng = self._gradients.rng
        self._compiled_images = 0  # in the largest batch that was compiled
        self._captured: CapturedUpdate | None = None
        if self.capture == "cuda-graph":
            self._captured = CapturedUpdate(self._update, optimizer, device, self._rehearse)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Make one update.

        Args:
            images: (B, C, H, W) float in [0, 1], or uint8 that means value / 255, on the model's device.
            labels: (B,) int64, or soft labels as `adversarial_example` takes them.

        Raises:
            TypeError, ValueError: as for `adversarial_example`; a call in `torch.inference_mode`, or a model from whose
                logits autograd cannot reach the weights. No weight has changed then.
        """
        self._prepare(images, labels)
        update = self._update if self._captured is None else self._captured
        simpler = why = ""
        try:
            loss = update(images, labels)
        except (CaptureFailed, CompileFailed) as error:  # nothing of this update was done
            simpler, why = self._simpler_way(error)
        if simpler:  # not in the handler, where the error would keep memory alive
            before = self.capture, self._captured
            self.capture, self._captured, self._passes.eager = simpler, None, simpler == "eager"
            try:
                loss = self._update(images, labels)
            except BaseException:  # it fails in the simpler way too, so the capture was not the cause
                (self.capture, self._captured), self._passes.eager = before, False
                raise
            warnings.warn(f"training goes on with capture {simpler!r}, since {why}", stacklevel=2)
        self.calls += 1
        return loss

    def _prepare(self, images: Tensor, labels: Tensor) -> None:
        """Check a batch, and put the model into training mode."""
        if torch.is_inference_mode_enabled():
            raise ValueError("a model cannot be trained inside torch.inference_mode, which records no gradients")
        check(images, labels, self.recipe)
        if len(images) == 0:
            raise ValueError("images must hold at least one image; got an empty batch")
        checks.same_device("images", images, self.rng, "the model")
        check_pixels_once(images, self)
        if not self.model.training:
            set_mode(self.model, training=True)

    @property
    def epsilon(self) -> float:
        """Return the radius of the next update. Setting it also scales step and start, and needs no new capture."""
        return self._epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        if value == self._epsilon:  # a schedule may set it before every update
            return
        self._epsilon = checks.not_negative("epsilon", value)
        self._gradients.set_epsilon(self._epsilon)

    @property
    def skipped(self) -> Tensor | None:
        """Return the number of skipped updates, an int64 scalar on the device; None if updates are never skipped."""
        return None if self._loss_scale is None else self._loss_scale.skipped

    def state_dict(self) -> dict[str, Any]:
        """Return what the next call depends on besides model, optimizer and average: calls, epsilon and loss scale."""
        scale = {} if self._loss_scale is None else {"loss_scale": self._loss_scale.state_dict()}
        return {"step": self.calls, "epsilon": self._epsilon, **scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` of another step returned."""
        self.calls = int(state["step"])
        self.rng[1].fill_(self.calls * self._accumulate)
        self.epsilon = state["epsilon"]
        if self._loss_scale is not None and "loss_scale" in state:
            self._loss_scale.load_state_dict(state["loss_scale"])

    def _simpler_way(self, error: Exception) -> tuple[str, str]:
        """Return the next simpler capture and the reason for it; raise UserError unless "auto" was asked for."""
        failed, simpler, what = "cuda-graph", "compile", "the update cannot be captured in a CUDA graph"
        if isinstance(error, CompileFailed):
            failed, simpler, what = self.capture, "eager", "torch.compile cannot compile the model"
        if not self._auto:
            raise UserError(
                f"capture {failed!r} is not possible, since {what}: {error}; capture {simpler!r} trains the same model"
            ) from error
        return simpler, f"{what}: {error}"

    def _update(self, images: Tensor, labels: Tensor) -> Tensor:
        scale = self._loss_scale
        before = [] if scale is None else scale.remember(self.model)
        compiles = self.capture in ("compile", "cuda-graph") and len(images) > self._compiled_images
        loss = (self._compile_gradients if compiles else self._gradients)(images, labels)
        if scale is not None:
            scale.unscale(self.optimizer)
        if self._clip_norm is not None:
            # In the model's order, not that of the optimizer's groups, since the last bit of the norm depends on it.
            owned = dict.fromkeys(one for group in self.optimizer.param_groups for one in group["params"])
            ordered = dict.fromkeys(one for one in self.model.parameters() if one in owned)
            nn.utils.clip_grad_norm_([*ordered, *(one for one in owned if one not in ordered)], self._clip_norm)
        self.optimizer.step()
        if scale is not None:
            scale.finish(self.model, self.optimizer, before)
        if self.ema is not None:
            self.ema.update(self._passes.attacked)
        return loss

    def _compile_gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """Compute the gradients with passes that compile as they run.

        Where they cannot be compiled, CompileFailed is raised and nothing has changed.
        """
        restore = self._gradients.remember()
        try:
            loss = self._gradients(images, labels)
        except BaseException as error:
            restore()
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            from torch._dynamo.exc import TorchDynamoException  # slow to import; by now it has been imported

            # With "auto" the next simpler way tells whether the error is the model's own.
            if self._auto or isinstance(error, TorchDynamoException):
                raise CompileFailed(first_line(getattr(error, "inner_exception", error))) from error
            raise
        self._compiled_images = len(images)
        return loss

    def _rehearse(self, images: Tensor, labels: Tensor) -> None:
        """Run the part of an update that runs the model, and undo what it changes."""
        restore = self._gradients.remember()
        try:
            self._gradients(images, labels)
        finally:
            restore()
