"""A run tries its model before it begins: what does not fit is one sentence, and nothing is written or changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import small

from rmcla_fast import data, load
from rmcla_fast.errors import UserError
from rmcla_fast.training import TrainStep, checkpoint, train
from rmcla_fast.training.build import build, choose_device, choose_recipe
from rmcla_fast.training.distributed import World
from rmcla_fast.training.rehearsal import rehearse
from rmcla_fast.training.resolve import resolve
from rmcla_fast.training.run_state import restored


class Net(torch.nn.Module):
    """Flattens and multiplies, and then does what `after` says."""

    def __init__(self, num_classes: int, after: Callable[..., Any]) -> None:
        super().__init__()
        self.linear, self.after = torch.nn.Linear(64, num_classes), after

    def forward(self, images: torch.Tensor) -> Any:
        return self.after(self, self.linear(images.flatten(1)))


def frozen(num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes)).requires_grad_(False)


def answers_a_dict(num_classes: int) -> torch.nn.Module:
    return Net(num_classes, lambda _, z: {"logits": z})


def answers_a_tuple_in_training(num_classes: int) -> torch.nn.Module:
    return Net(num_classes, lambda net, z: (z, z) if net.training and net.linear.weight.requires_grad else z)


def cuts_the_gradient(num_classes: int) -> torch.nn.Module:
    return Net(num_classes, lambda _, z: z.detach())


def raises_in_training(num_classes: int) -> torch.nn.Module:
    return Net(num_classes, lambda net, z: {}["no such key"] if net.training else z)


class ByFirstBatch(torch.nn.Module):
    """Scales images by the deviation of the first batch that it sees, as ActNorm does."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scale, self.linear = torch.nn.Parameter(torch.ones(())), torch.nn.Linear(64, num_classes)
        self.scale.requires_grad_(False)
        self.seen = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.seen:
            self.scale.data.copy_(1 / images.detach().std())
            self.seen = True
        return self.linear(self.scale * images.flatten(1))


def by_first_batch(num_classes: int) -> torch.nn.Module:
    return ByFirstBatch(num_classes)


def with_an_idle_weight(num_classes: int) -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))
    model.register_parameter("idle", torch.nn.Parameter(torch.ones(3)))
    return model


class NewTensor(torch.nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training and not hasattr(self, "mean"):
            self.register_buffer("mean", images.detach().mean())
        return self.linear(images.flatten(1))


def new_tensor(num_classes: int) -> torch.nn.Module:
    return NewTensor(num_classes)


def lazy(num_classes: int) -> torch.nn.Module:
    layers = [
        torch.nn.LazyConv2d(4, 3),
        torch.nn.LazyBatchNorm2d(),
        torch.nn.Flatten(),
        torch.nn.LazyLinear(num_classes),
    ]
    return torch.nn.Sequential(*layers)


def lazy_for_others(num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.LazyConv2d(4, 11), torch.nn.Flatten(), torch.nn.LazyLinear(num_classes))


def with_batch_norm(num_classes: int) -> torch.nn.Module:
    layers = [torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, num_classes)]
    return torch.nn.Sequential(*layers)


def with_dropout(num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(with_batch_norm(num_classes), torch.nn.Dropout(0.2))


def five_classes(num_classes: int, channels: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))


def larger_images(num_classes: int, channels: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, num_classes))


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        ("five_classes", "must return 10 logits for an image, one for each class; got 5$"),
        ("larger_images", r"cannot take images of shape \(8, 1, 8, 8\): "),
        ("frozen", "has nothing to train, since none of its weights requires a gradient$"),
        ("answers_a_dict", "cannot take images .*: model must return logits .*; got a dict with 'logits' in it"),
        ("answers_a_tuple_in_training", "cannot be trained on a batch of 2 images .*: .* got a tuple of 2"),
        ("cuts_the_gradient", "cannot be trained on a batch of 2 images .*: the gradient .* cannot reach the images"),
        ("new_tensor", r"makes new tensors in its first update \(mean\), which a checkpoint could not put back"),
        ("raises_in_training", "cannot be trained on a batch of 2 images .*: KeyError$|: 'no such key'$"),
        ("lazy_for_others", r"cannot take images of shape \(1, 1, 8, 8\): "),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused_before_anything_is_written(
    tmp_path: Path, factory: str, sentence: str
) -> None:
    config = small(tmp_path / "run", model=f"{__name__}:{factory}", images_per_class=5, batch_size=48, monitor_images=0)
    with pytest.raises(UserError, match=rf"^model {__name__}:{factory} [^\n]*{sentence}"):
        train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("batch_size", "refused"), [(1, True), (2, False)])
def test_batch_norm_and_a_batch_of_one_are_refused_before_anything_is_written(
    tmp_path: Path, batch_size: int, refused: bool
) -> None:
    config = small(
        tmp_path / "run", model=f"{__name__}:with_batch_norm", images_per_class=3, batch_size=batch_size, epochs=1
    )
    if not refused:
        train(config)
        return
    with pytest.raises(UserError, match=r"cannot be trained on a single image of .*more than 1 value per channel"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_a_model_that_sets_itself_by_its_first_batch_meets_one_of_the_training_first(tmp_path: Path) -> None:
    train(small(tmp_path / "run", model=f"{__name__}:by_first_batch", images_per_class=5, batch_size=16, epochs=1))
    scale = load(tmp_path / "run", model=f"{__name__}:by_first_batch").state_dict()["scale"]
    digits = data.load("digits").train.images.float() / 255
    assert abs(float(1 / scale) - float(digits.std())) < 0.1 * float(digits.std())


def test_a_weight_without_a_gradient_is_resumed(tmp_path: Path) -> None:
    config = small(tmp_path / "run", model=f"{__name__}:with_an_idle_weight", images_per_class=5, batch_size=16)
    train(config)
    opened = checkpoint.open_file(tmp_path / "run" / checkpoint.LAST)
    splits = data.load("digits", images_per_class=5, seed=0)
    parts = build(opened.record.options, splits, choose_device("cpu"), World())
    assert restored(opened, parts, opened.content.schedule.total_steps, tmp_path / "run").epoch == 2


def test_several_processes_refuse_a_weight_without_a_gradient(tmp_path: Path) -> None:
    model, splits = with_an_idle_weight(10), data.load("digits", images_per_class=5)
    config = resolve(small(tmp_path / "run", model=f"{__name__}:with_an_idle_weight", batch_size=16))

    def step_for(one: torch.nn.Module) -> TrainStep:
        return TrainStep(one, torch.optim.SGD(one.parameters(), lr=0.1), choose_recipe(config))

    with pytest.raises(UserError, match=r"has weights that get no gradient \(idle\), and several processes need one"):
        rehearse(model, "mine", splits.train, 10, 16, 2, step_for)
    rehearse(model, "mine", splits.train, 10, 16, 1, step_for)


def test_lazy_modules_are_initialised_by_an_image(tmp_path: Path) -> None:
    train(small(tmp_path / "run", model=f"{__name__}:lazy", images_per_class=5, batch_size=16, epochs=1))
    loaded = load(tmp_path / "run", model=f"{__name__}:lazy")
    assert loaded(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_the_rehearsal_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    for name in ("with", "without"):
        train(small(tmp_path / name, model=f"{__name__}:with_dropout", images_per_class=5, batch_size=16))
        monkeypatch.setattr("rmcla_fast.training.build.rehearse", lambda *_: None)
        weights.append(checkpoint.read(tmp_path / name / checkpoint.LAST).model)
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
