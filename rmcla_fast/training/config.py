"""The options of a training run, and the defaults that are right for each data set."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rmcla_fast.data import DATASETS
from rmcla_fast.options import (
    AT_LEAST_1,
    BELOW_1,
    BETWEEN_0_AND_1,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    THREADS,
    Rule,
    as_text,
    documented,
    one_of,
    option,
)
from rmcla_fast.precision import PRECISIONS
from rmcla_fast.training.protocol import PROTOCOLS
from rmcla_fast.training.schedule import SCHEDULES
from rmcla_fast.training.step import CAPTURES

EXTRA_FRACTION = 0.7  # as in Rebuffi et al. (2021), Gowal et al. (2021) and Wang et al. (2023)
PRETRAINED = "pretrained"  # the value of `init` that stands for the weights of the model's library
SHA256 = Rule(lambda value: bool(re.fullmatch("[0-9a-f]{64}", value)), "64 hexadecimal digits")

Value = TypeVar("Value")


def setting(help: str, default: Value | None, rule: Rule | None = None, **for_data: Value) -> Value | None:
    """Declare an option that is None until `resolve` puts its default in.

    A resumed run must tell a given value from a default one: it takes what was not given from the recorded run.

    Args:
        help: what the option does.
        default: the value for every data set that is not named; None leaves the choice to torch.
        rule: the condition that the value is held to.
        for_data: the values for single data sets, by name, in which an underscore stands for a hyphen.
    """
    for_data = {name.replace("_", "-"): value for name, value in for_data.items()}
    by_data = [f"{name}: {as_text(value) or 'off'}" for name, value in for_data.items()]
    shown = "; ".join(filter(None, ("torch's choice" if default is None else as_text(default), *by_data)))
    return option(help, None, rule, shown=shown, default_for={name: for_data.get(name, default) for name in DATASETS})


# The defaults that name no data set are the paper's: a WRN-28-10 trained for 200 epochs in batches of 128, at a rate of
# 0.1 that is divided by 10 after epochs 100 and 150. The digits are 1,437 images, which a network soon overfits: they
# need small batches, a high rate and strong weight decay.
@documented
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The options of a training run, as they were given. None means the default, which `resolve` puts in."""

    data: str | None = option(f"data set, one of {', '.join(DATASETS)} (train/CLASS/*.png and test/CLASS/*.png)", None)
    data_dir: str | Path | None = option("folder that holds the data set's own folder, or that folder itself", None)
    extra_data: str | Path | None = option(
        "more training images: an .npz file with the arrays image (uint8, N x H x W x C) and label (N)", None
    )
    extra_fraction: float | None = option(
        "share of each batch that is drawn from --extra-data; an epoch keeps its number of updates, so it has only the "
        "other share of the data set's own images",
        None,
        BETWEEN_0_AND_1,
        shown=f"{EXTRA_FRACTION} with --extra-data",
    )
    protocol: str | None = option(
        "fastat: the network, schedule, label smoothing, average and held-out images of the FastAT Benchmark; an "
        "option that is given wins over it",
        None,
        one_of(PROTOCOLS),
        shown="none",
    )
    model: str | None = setting(
        "small-cnn, resnet18, resnet18-silu, preact-resnet18, preact-resnet18-silu, "
        "wrn-28-10, wrn-34-10, resnet50, timm:NAME, hf:NAME-OR-FOLDER, torchvision:NAME, or package.module:factory",
        "wrn-28-10",
        digits="small-cnn",
        folder="preact-resnet18",
        imagenet="resnet50",
        tiny_imagenet="preact-resnet18",
    )
    init: str | Path | None = option(
        "weights to start from: a file (safetensors, or a state dict), a run folder, or pretrained for those that the "
        "library of the model has put into your cache",
        None,
        shown="random weights",
    )
    init_sha256: str | None = option(
        "SHA-256 that these weights must have; config.json records it, so that a repeat notices other weights",
        None,
        SHA256,
    )
    recipe: str | None = setting("training method; `rmcla recipes` lists them", "r-mc-la")
    epsilon: float | str | None = setting(
        "bound on the perturbation of images in [0, 1], such as 8/255 or 0.031",
        "8/255",
        digits="0.15",
        imagenet="16/255",
    )
    beta: float | None = setting(
        "how far the true class stays above the others in redistributed labels", 9.0, POSITIVE, cifar100=11.0
    )
    label_smoothing: float | None = setting(
        "share of each label in the loss that goes to all classes alike", 0.0, BELOW_1
    )
    epochs: int | None = setting("passes over the training images", 200, AT_LEAST_1, digits=60, imagenet=90)
    batch_size: int | None = setting(
        "images in one update; an epoch's last batch may be smaller", 128, AT_LEAST_1, digits=32, imagenet=256
    )
    accumulate: int | None = setting(
        "equal pieces that a batch is cut into if memory is short; it stays one update, and batch norm normalises "
        "each piece by itself",
        1,
        AT_LEAST_1,
    )
    lr: float | None = setting("peak learning rate", 0.1, POSITIVE, digits=0.2)
    schedule: str | None = setting(
        "learning rate over time: piecewise (a tenth after half, a hundredth after three quarters), "
        "one-cycle, or one-cycle-cosine",
        "piecewise",
        one_of(SCHEDULES),
        digits="one-cycle",
    )
    momentum: float | None = setting("momentum of SGD", 0.9, BELOW_1)
    weight_decay: float | None = setting(
        "weight decay of SGD; biases and batch norm do not decay", 2e-4, NOT_NEGATIVE, digits=3e-3
    )
    ema: float | None = setting(
        "decay of a running average of the weights, which is then evaluated and loaded in their place; 0 keeps none",
        0.0,
        BELOW_1,
    )
    # The digits' network has no batch norm. At their high rate, its standard training can fail without clipping.
    clip_grad: float | None = setting("largest norm of the gradient; 0 does not clip", 0.0, NOT_NEGATIVE, digits=1.0)
    epsilon_warmup: int | None = setting("epochs over which epsilon grows from 0", 0, NOT_NEGATIVE)
    precision: str | None = setting(
        "the network computes in fp32, bf16 or fp16; master weights stay fp32", "fp32", one_of(PRECISIONS)
    )
    capture: str | None = setting("how the update runs: auto, eager, compile or cuda-graph", "auto", one_of(CAPTURES))
    augment: bool | None = setting("crop with padding 4, and flip (svhn is not flipped)", True, digits=False)
    cutmix: bool | None = setting(
        "paste a rectangle of another image into each, and mix their labels; for recipes with an untargeted attack and "
        "one-hot labels",
        False,
    )
    images_per_class: int | None = option("train on this many images of each class", None, AT_LEAST_1, shown="all")
    seed: int | None = setting("seed of the weights, the order, the noise and every other draw", 0, SEED)
    out: str | Path | None = option("run folder to write", None, shown="runs/DATA-RECIPE")
    resume: bool = option(
        "continue from the folder's last checkpoint, or start if there is none; --model must name a factory again",
        False,
    )
    skip_unreadable: bool | None = setting("leave out images that cannot be decoded", False)
    skip_nonfinite: bool | None = setting(
        "leave out updates whose loss is not finite, and count them, instead of stopping", False
    )
    stop_on_overfitting: bool | None = setting("stop when catastrophic overfitting begins", False)
    monitor_images: int | None = setting(
        "training images held out to measure clean, FGSM and PGD accuracy, at most a tenth of all; with 0, nothing is "
        "measured and no best checkpoint is kept",
        512,
        NOT_NEGATIVE,
        digits=64,
        imagenet=256,
    )
    monitor_every: int | None = setting("number of epochs between two measurements on them", 1, AT_LEAST_1, digits=5)
    checkpoint_every: int | None = setting(
        "number of updates between two checkpoints within an epoch; 0 writes one only at the end of each epoch",
        500,
        NOT_NEGATIVE,
    )
    log_every: int | None = setting("number of updates between two logged ones", 50, AT_LEAST_1, digits=10)
    device: str | None = option("cpu, cuda or cuda:1", None, shown="a GPU if there is one")
    threads: int | None = setting(
        "CPU threads of the network's passes; a resumed run keeps their number, because sums depend on it",
        None,
        THREADS,
        digits=1,
    )
    workers: int | None = setting("processes that decode images if the data set is streamed", 8, NOT_NEGATIVE)
    # `training/torch_settings.py` says what this sets. A CPU repeats its bits without it. There the only effect is that
    # an operation which torch knows not to repeat its bits stops the run. The networks of this package have none.
    deterministic: bool | None = setting(
        "use only algorithms that give the same bits in every run on the same GPU, and stop at an operation that has "
        "none; a CPU gives the same bits without it",
        False,
    )


class ResolvedConfig(TrainConfig):
    """The options of a run after `resolve`, which has put in every default and checked every value.

    The fields are those of `TrainConfig`. The declarations here narrow their types.
    """

    data: str
    data_dir: str | None
    extra_data: str | None
    extra_fraction: float | None
    protocol: str | None
    model: str
    init: str | None
    recipe: str
    epsilon: float
    beta: float
    label_smoothing: float
    epochs: int
    batch_size: int
    accumulate: int
    lr: float
    schedule: str
    momentum: float
    weight_decay: float
    ema: float
    clip_grad: float
    epsilon_warmup: int
    precision: str
    capture: str
    augment: bool
    cutmix: bool
    seed: int
    out: str
    skip_unreadable: bool
    skip_nonfinite: bool
    stop_on_overfitting: bool
    monitor_images: int
    monitor_every: int
    checkpoint_every: int
    log_every: int
    workers: int
    deterministic: bool


# For each data set, the default of each option that has one.
DEFAULTS: dict[str, dict[str, Any]] = {
    data: {
        field.name: field.metadata["default_for"][data]
        for field in dataclasses.fields(TrainConfig)
        if "default_for" in field.metadata
    }
    for data in DATASETS
}
