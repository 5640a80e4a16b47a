"""The options of a training run, the defaults that are right for each data set, and what a resumed run may change."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmcla_fast.data import DATASETS
from rmcla_fast.epsilon import parse_epsilon
from rmcla_fast.errors import UserError
from rmcla_fast.precision import PRECISIONS
from rmcla_fast.training.schedule import SCHEDULES

CAPTURES = ("auto", "eager", "compile", "cuda-graph")

# Where a run is and how it is watched may differ when it is resumed; the rest decides the weights and may not.
FREE_ON_RESUME = frozenset(
    (
        "out",
        "resume",
        "data_dir",
        "device",
        "workers",
        "stop_on_overfitting",
        "skip_unreadable",
        "checkpoint_every",
        "log_every",
    )
)


BY_DATA: Any = None  # `resolve` puts the default for the data set here


@dataclass(frozen=True)
class TrainConfig:
    """The command line's options as fields; None means the default that is right for the data set.

    Args:
        data: "digits", "cifar10", "cifar100", "svhn", "imagenet" or "folder".
        data_dir: where its files are; see `rmcla_fast.data.load`.
        model: "small-cnn", "preact-resnet18", ..., or "package.module:factory".
        recipe: the training method by name; `rmcla recipes` lists them.
        epsilon: the bound on the perturbation of images in [0, 1], a number or "8/255".
        beta: how far the true class stays above the others in redistributed labels (the recipe's own is 9).
        epochs, batch_size: passes over the training images; images an update. An epoch's last batch may be smaller.
        accumulate: equal pieces that a batch is cut into where it does not fit the memory; still one update. Batch norm
            normalises by each piece.
        lr, schedule: the peak learning rate; "piecewise" (a tenth at half, a hundredth at 3/4) or "one-cycle".
        momentum, weight_decay: of SGD; only weights decay, biases and batch norm do not.
        ema: decay of the running average of the weights, which then is what is watched and loaded; 0 for none.
        clip_grad: largest norm of the gradient; 0 does not clip.
        epsilon_warmup: epochs over which epsilon grows from 0.
        precision: "fp32", "bf16" or "fp16" (master weights stay fp32).
        capture: how the update runs: "auto", "eager", "compile" or "cuda-graph".
        augment: crop with padding 4, and flip (svhn is not flipped).
        images_per_class: train on this many images of each class.
        seed: of the weights, the order, the noise and every other draw.
        out: the run folder; runs/DATA-RECIPE if None.
        resume: go on from the folder's last checkpoint; start anew where there is none. A factory is named again.
        skip_unreadable: leave out images that cannot be decoded.
        skip_nonfinite: leave out updates whose loss is not finite, and count them, instead of stopping.
        stop_on_overfitting: stop when catastrophic overfitting begins.
        monitor_images, monitor_every: training images held out to watch clean, FGSM and PGD accuracy on, every so many
            epochs; 0 images trains on everything, and then nothing is watched and no best checkpoint is kept.
        checkpoint_every, log_every: updates between two checkpoints within an epoch (0: at its end only), and between
            two logged ones.
        device: "cpu", "cuda" or "cuda:1"; a GPU where there is one if None.
        threads: CPU threads of the network's passes (torch's own choice if None; 1 for digits); a resumed run uses the
            same number, since sums depend on it.
        workers: processes that decode images, where the data set is streamed.
    """

    data: str = BY_DATA
    data_dir: str | None = None
    model: str = BY_DATA
    recipe: str = BY_DATA
    epsilon: float | str = BY_DATA
    beta: float = BY_DATA
    epochs: int = BY_DATA
    batch_size: int = BY_DATA
    accumulate: int = BY_DATA
    lr: float = BY_DATA
    schedule: str = BY_DATA
    momentum: float = BY_DATA
    weight_decay: float = BY_DATA
    ema: float = BY_DATA
    clip_grad: float = BY_DATA
    epsilon_warmup: int = BY_DATA
    precision: str = BY_DATA
    capture: str = BY_DATA
    augment: bool = BY_DATA
    images_per_class: int | None = None
    seed: int = BY_DATA
    out: str = BY_DATA
    resume: bool = False
    skip_unreadable: bool = BY_DATA
    skip_nonfinite: bool = BY_DATA
    stop_on_overfitting: bool = BY_DATA
    monitor_images: int = BY_DATA
    monitor_every: int = BY_DATA
    checkpoint_every: int = BY_DATA
    log_every: int = BY_DATA
    device: str | None = None
    threads: int | None = None
    workers: int = BY_DATA


COMMON: dict[str, Any] = {
    "recipe": "r-mc-la",
    "epsilon": 8 / 255,
    "beta": 9.0,
    "accumulate": 1,
    "momentum": 0.9,
    "weight_decay": 2e-4,
    "ema": 0.0,
    "clip_grad": 0.0,
    "epsilon_warmup": 0,
    "precision": "fp32",
    "capture": "auto",
    "seed": 0,
    "skip_unreadable": False,
    "skip_nonfinite": False,
    "stop_on_overfitting": False,
    "checkpoint_every": 500,
    "log_every": 50,
    "workers": 8,
}
# The paper: WRN-28-10, batches of 128, 200 epochs, rate 0.1 divided by 10 after epochs 100 and 150.
PAPER: dict[str, Any] = {
    "model": "wrn-28-10",
    "epochs": 200,
    "batch_size": 128,
    "lr": 0.1,
    "schedule": "piecewise",
    "augment": True,
    "monitor_images": 512,
    "monitor_every": 1,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    # 1,437 images: small batches, a high rate and strong decay, or the robustness is learnt by heart.
    "digits": {
        "model": "small-cnn",
        "epsilon": 0.15,
        "epochs": 60,
        "batch_size": 32,
        "lr": 0.2,
        "schedule": "one-cycle",
        "weight_decay": 3e-3,
        "clip_grad": 1.0,  # without batch norm and at this rate an undefended network can die
        "augment": False,
        "monitor_images": 64,
        "monitor_every": 5,
        "log_every": 10,
        "threads": 1,
    },
    "cifar10": PAPER,
    "cifar100": {**PAPER, "beta": 11.0},
    "svhn": PAPER,
    "folder": {**PAPER, "model": "preact-resnet18"},
    "imagenet": {
        **PAPER,
        "model": "resnet50",
        "epochs": 90,
        "batch_size": 256,
        "epsilon": 16 / 255,
        "monitor_images": 256,
    },
}


def resolve(config: TrainConfig) -> TrainConfig:
    """Every None replaced by the default for the data set, every value checked.

    Raises:
        UserError: one sentence: the data set is missing or unknown, or a value is out of range.
    """
    if config.data is None:
        raise UserError(f"--data is missing; one of: {', '.join(DATASETS)}")
    if config.data not in DEFAULTS:
        raise UserError(f"unknown data set {config.data!r}; one of: {', '.join(DATASETS)}")
    defaults = COMMON | DEFAULTS[config.data]
    filled: dict[str, Any] = {
        field.name: defaults.get(field.name) if (value := getattr(config, field.name)) is None else value
        for field in dataclasses.fields(config)
    }
    filled["epsilon"] = parse_epsilon(filled["epsilon"])
    if filled["data_dir"] is not None:  # a run may be resumed and evaluated from another folder
        filled["data_dir"] = str(Path(filled["data_dir"]).expanduser().absolute())
    if filled["out"] is None:
        filled["out"] = f"runs/{config.data}-{filled['recipe']}"
    resolved = TrainConfig(**filled)
    _check(resolved)
    return resolved


def _check(config: TrainConfig) -> None:
    for name in ("epochs", "batch_size", "accumulate", "monitor_every", "log_every"):
        _require(getattr(config, name) >= 1, name, config, "at least 1")
    for name in ("epsilon_warmup", "monitor_images", "checkpoint_every", "workers"):
        _require(getattr(config, name) >= 0, name, config, "0 or more")
    for name in ("images_per_class", "threads"):
        _require(getattr(config, name) is None or getattr(config, name) >= 1, name, config, "at least 1")
    for name in ("lr", "beta"):
        _require(
            math.isfinite(getattr(config, name)) and getattr(config, name) > 0, name, config, "positive and finite"
        )
    for name in ("weight_decay", "clip_grad"):
        _require(math.isfinite(getattr(config, name)) and getattr(config, name) >= 0, name, config, "0 or more")
    for name in ("momentum", "ema"):
        _require(0 <= getattr(config, name) < 1, name, config, "in [0, 1)")
    _require(0 <= config.seed < 2**32, "seed", config, "in [0, 2^32)")
    for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS), ("capture", CAPTURES)):
        _require(getattr(config, name) in known, name, config, f"one of {', '.join(known)}")


def _require(fine: bool, name: str, config: TrainConfig, expected: str) -> None:
    if not fine:
        raise UserError(f"--{name.replace('_', '-')} must be {expected}; got {getattr(config, name)}")


def resumed(asked: TrainConfig, recorded: dict[str, Any]) -> TrainConfig:
    """The recorded run's options, with what may change taken from `asked`.

    Raises:
        UserError: an option was given that differs from the recorded one and would change the weights.
    """
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    merged = {name: value for name, value in recorded.items() if name in known}
    for name in known:
        value = getattr(asked, name)
        if value is None:
            continue
        if name == "epsilon":
            value = parse_epsilon(value)
        if name not in FREE_ON_RESUME and name in merged and value != merged[name]:
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"the run was started with {option} {merged[name]} and cannot be resumed with {value}; "
                f"leave {option} out, or start another run with --out"
            )
        merged[name] = value
    return TrainConfig(**merged)


def read_recorded(path: Path) -> dict[str, Any]:
    """The options in a config.json; UserError where it cannot be read."""
    try:
        recorded = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as the options of a run ({error})") from error
    if not isinstance(recorded, dict):
        raise UserError(f"{path} does not hold the options of a run")
    return recorded
