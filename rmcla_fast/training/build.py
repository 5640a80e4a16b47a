"""The parts of a run, built from its options: model, optimizer, update, loader and monitor."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rmcla_fast import models, recipes
from rmcla_fast.data.imagenet import centers
from rmcla_fast.data.splits import DataSplits, ImageSet, StreamedSet, hold_out
from rmcla_fast.errors import UserError
from rmcla_fast.models.weights import put_into
from rmcla_fast.ops import dispatch
from rmcla_fast.options import flag
from rmcla_fast.precision import require_precision
from rmcla_fast.recipes import Recipe
from rmcla_fast.training.config import ResolvedConfig
from rmcla_fast.training.cutmix import CutMix
from rmcla_fast.training.distributed import ALONE, World
from rmcla_fast.training.ema import ExponentialAverage
from rmcla_fast.training.loader import Batches, ExtraShare, Loader, StreamedLoader, steps_in_epoch
from rmcla_fast.training.monitor import Monitor
from rmcla_fast.training.rehearsal import initialise, rehearse
from rmcla_fast.training.resolve import extra_in_batch
from rmcla_fast.training.schedule import Schedule, build_optimizer
from rmcla_fast.training.step import TrainStep


@dataclass(frozen=True)
class Parts:
    """The parts of a run. `remarks` are sentences about the weights that it starts from."""

    device: torch.device
    recipe: Recipe
    model: nn.Module
    ema: ExponentialAverage | None
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    step: TrainStep
    loader: Batches
    monitor: Monitor | None
    warm_up_steps: int
    world: World
    remarks: tuple[str, ...] = ()


def choose_device(name: str | None) -> torch.device:
    """Return the device called `name`. None means a GPU if there is one, else the CPU. A GPU has its index.

    Raises:
        UserError: the device does not exist or cannot be used.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(0, device=torch.device(name)).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} cannot be used: it is neither a CPU nor a CUDA device")
    return device


def choose_recipe(config: ResolvedConfig) -> Recipe:
    """Return the run's recipe with the run's epsilon, beta and label smoothing; raise UserError if there is none."""
    own = {"epsilon": config.epsilon, "beta": config.beta, "label_smoothing": config.label_smoothing}
    for name in own:
        if f",{name}=" in config.recipe:
            raise UserError(f"--recipe {config.recipe} cannot set {name}, which is an option; give {flag(name)}")
    try:
        return recipes.get(config.recipe).replace(**own)
    except ValueError as error:
        raise UserError(str(error)) from error


def build(
    config: ResolvedConfig,
    splits: DataSplits,
    device: torch.device,
    world: World,
    weights: Mapping[str, Tensor] | None = None,
) -> Parts:
    """Return the parts of a run at step 0. `config` is resolved.

    `weights` is the state dict that the network starts from, if it does not start from random weights. With several
    ranks, they all start from those of rank 0.

    Raises:
        UserError: one sentence: an unknown recipe or model, a precision that the device lacks, too few images, a
            batch that cannot be cut into equal pieces, no held-out images for `stop_on_overfitting`, or weights that
            do not fit.
    """
    recipe = choose_recipe(config)
    if config.cutmix and not recipe.takes_soft_labels:
        raise UserError(
            f"--cutmix gives soft labels, which --recipe {config.recipe} cannot take; give a recipe with an untargeted "
            "attack and one-hot labels, such as n-fgsm"
        )
    seed, batch_size, precision = config.seed, config.batch_size, config.precision
    require_precision(precision, device)
    try:
        dispatch.resolve(device.type, None)
    except ValueError as error:  # by the environment variable
        raise UserError(str(error)) from error
    pieces = config.accumulate * world.size
    if config.accumulate > 1 and (batch_size % pieces or batch_size < 2 * pieces):
        raise UserError(
            f"--accumulate {config.accumulate} needs a --batch-size that gives {pieces} equal pieces of at least two "
            f"images; got {batch_size}"
        )
    train, held_out = _held_out(config, splits)
    if config.stop_on_overfitting and held_out is None:
        raise UserError("--stop-on-overfitting needs images to watch, and none are held out; give --monitor-images")
    updates = steps_in_epoch(len(train), batch_size, world.size)
    torch.manual_seed(seed)
    model = create_model(config.model, splits.num_classes, splits.train.shape).to(device)
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    remarks = [] if weights is None else _start_from(weights, model, config, splits.num_classes)
    schedule = Schedule(config.schedule, config.lr, config.epochs * updates)

    def step_for(model: nn.Module, capture: str = "eager", world: World = ALONE) -> TrainStep:
        return TrainStep(
            world.wrap(model, device),
            build_optimizer(model, schedule.rate(0), config.momentum, config.weight_decay),
            recipe,
            ema=ExponentialAverage(model, config.ema) if config.ema else None,
            precision=precision,
            capture=capture,
            seed=world.seed(seed),
            clip_norm=config.clip_grad or None,
            skip_nonfinite=config.skip_nonfinite,
            accumulate=config.accumulate,
        )

    rehearse(model, config.model, train, splits.num_classes, batch_size, world.size, step_for)
    try:
        step = step_for(model, config.capture, world)
    except ValueError as error:
        raise UserError(str(error)) from error
    loader: Batches
    if isinstance(train, StreamedSet):
        loader = StreamedLoader(train, batch_size, seed, device, config.augment, config.workers, world)
    else:
        flip = config.data != "svhn"  # a mirrored digit is no longer that digit
        loader = Loader(
            train, batch_size, seed, device, step.rng, config.augment, flip, world, _extra_share(config, splits)
        )
    if config.cutmix:
        loader = CutMix(loader, splits.num_classes, seed)
    torch.manual_seed(world.torch_seed(seed))  # seeds the network's own draws, such as those of dropout
    monitor = (
        Monitor(held_out, recipe.epsilon, device, seed)
        if held_out is not None and len(held_out) and world.is_main
        else None
    )
    warm_up_steps = config.epsilon_warmup * updates
    said = tuple(remarks)
    ema, optimizer = step.ema, step.optimizer
    return Parts(device, recipe, model, ema, optimizer, schedule, step, loader, monitor, warm_up_steps, world, said)


def _extra_share(config: ResolvedConfig, splits: DataSplits) -> ExtraShare | None:
    """Return the extra images and how many of them are in a batch; None for a run without any."""
    if splits.extra is None or config.extra_fraction is None:
        return None
    return ExtraShare(splits.extra, extra_in_batch(config.batch_size, config.extra_fraction))


def held_out_images(config: ResolvedConfig, train_images: int) -> int:
    """Return how many of a data set's training images are held out: at most a tenth of them."""
    return min(config.monitor_images, train_images // 10)


def _held_out(config: ResolvedConfig, splits: DataSplits) -> tuple[ImageSet | StreamedSet, ImageSet | None]:
    """Return (images to train on, held-out images)."""
    count = held_out_images(config, len(splits.train))
    if not count:
        return splits.train, None
    if isinstance(splits.train, StreamedSet):
        streamed, held_out = hold_out(splits.train, count, splits.num_classes, config.seed)
        return streamed, centers(held_out)
    return hold_out(splits.train, count, splits.num_classes, config.seed)


def create_model(name: str, num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """Return the network called `name` for images of a shape (C, H, W).

    Raises:
        UserError: there is none, with the known names, or it cannot be made.
    """
    channels, height, width = shape
    try:
        model = models.create(name, num_classes, channels, image_size=(height, width))
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(str(error)) from error
    if any(is_lazy(one) for one in (*model.parameters(), *model.buffers())):
        initialise(model, name, shape)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise UserError(f"model {name} has weights without values, on the device meta; its factory must make values")
    return model


def _start_from(weights: Mapping[str, Tensor], model: nn.Module, config: ResolvedConfig, num_classes: int) -> list[str]:
    """Put the weights of --init into the model, and return what there is to say about it.

    Raises:
        UserError: they do not fit.
    """
    try:
        remarks = put_into(model, weights, num_classes)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch raises all kinds of exceptions for what it cannot load
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the weights of --init {config.init} do not fit the model {config.model}: {why}; --model must name the "
            "network that they belong to"
        ) from error
    return [f"the run starts from the weights of --init {config.init}", *remarks]


def computed_by(parts: Parts) -> dict[str, Any]:
    """Return what the bits of the weights depend on besides the options and the version of torch."""
    device = parts.device
    facts: dict[str, Any] = {
        "device": str(device),
        "backend": dispatch.resolve(device.type, None),
        "capture": parts.step.capture,  # the one that the run begins with
        "processes": parts.world.size,
        "cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    }
    if device.type == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32_convolutions": torch.backends.cudnn.allow_tf32,
            "float32_matmul": torch.get_float32_matmul_precision(),
        }
    return facts
