"""What an attack leaves as it was: the images of the caller, and the buffers, modes and weights of the model."""

from __future__ import annotations

import copy

import pytest
import torch
from any_model_cases import (
    DOORS,
    RNG,
    After,
    Observer,
    convolutional,
    every_door,
    example,
    images_and_labels,
    linear,
    one_update,
)
from torch import Tensor, nn

from rmcla_fast import adversarial_example, recipes


@every_door
@pytest.mark.parametrize("kind", ["subtracts in place", "fills", "resizes"])
def test_a_model_that_writes_into_its_input_does_not_reach_the_callers_images(door: str, kind: str) -> None:
    def write(_: nn.Module, images: Tensor) -> Tensor:
        if kind == "subtracts in place":
            return images.sub_(0.5).div_(0.5)
        copied = images * 2
        with torch.no_grad():
            images.zero_()
            if kind == "resizes":
                images.data = images.data.new_empty(0)
        return copied

    images, labels = images_and_labels()
    before = images.clone()
    first = DOORS[door](After(before=write), images, labels)
    assert torch.equal(images, before)
    plain = After(before=lambda _, x: (x - 0.5) / 0.5 if kind == "subtracts in place" else x * 2)
    expected = DOORS[door](plain, images, labels)
    torch.testing.assert_close(torch.as_tensor(first), torch.as_tensor(expected))


@pytest.mark.parametrize("door", [name for name in DOORS if name not in ("standard", "r-mc-la", "trades")])
def test_buffers_that_move_in_evaluation_mode_are_given_back(door: str) -> None:
    model = Observer().eval()
    buffers = dict(model._buffers)
    DOORS[door](model, *images_and_labels())
    assert model._buffers.keys() == buffers.keys()
    for name, buffer in model._buffers.items():
        assert buffer is buffers[name]
        assert float(buffer) == 0, name


def test_the_attack_of_an_update_does_not_count_for_an_observer() -> None:
    model = Observer()
    one_update(model, *images_and_labels())
    assert (float(model.count), float(model.hidden), float(model.replaced)) == (1, 1, 1)


def test_a_graph_that_the_caller_built_before_can_still_be_differentiated() -> None:
    model, (images, labels) = convolutional().eval(), images_and_labels()
    loss = model(images).sum()  # saves the statistics of batch norm for its backward pass
    example(model, images, labels)
    loss.backward()


class Folded(nn.Linear):
    """A linear layer with an adapter, which `train` folds into the weight and out of it, as loralib's layers do."""

    def __init__(self) -> None:
        super().__init__(64, 10)
        self.weight.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, 64) / 8), nn.Parameter(torch.randn(10, 2) / 8)
        self.folded = False

    def train(self, mode: bool = True) -> Folded:
        super().train(mode)
        if self.folded == mode:
            self.weight.data += (1 if not mode else -1) * (self.up.data @ self.down.data)
            self.folded = not mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images.flatten(1))
        return logits if self.folded else logits + images.flatten(1) @ self.down.T @ self.up.T


@pytest.mark.parametrize("inside", [False, True], ids=["itself", "inside another module"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("door", [name for name in DOORS if name not in ("standard", "r-mc-la", "trades")])
def test_a_module_that_works_when_its_mode_changes_is_left_as_it_was(door: str, training: bool, inside: bool) -> None:
    torch.manual_seed(0)
    layer = Folded()
    model = (nn.Sequential(layer, nn.Identity()) if inside else layer).train(training)
    before = copy.deepcopy(model.state_dict())
    DOORS[door](model, *images_and_labels())
    assert (layer.training, layer.folded) == (training, not training)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("recipe", ["standard", "r-mc-la", "trades"])
def test_an_adapter_that_is_folded_for_the_attack_is_trained(recipe: str) -> None:
    torch.manual_seed(0)
    model, (images, labels) = nn.Sequential(Folded(), nn.Identity()), images_and_labels()
    before = copy.deepcopy(model.state_dict())
    one_update(model, images, labels, recipe)
    assert not model[0].folded
    for name in ("0.down", "0.up"):
        assert not torch.equal(model.state_dict()[name], before[name])
    assert torch.equal(model.state_dict()["0.weight"], before["0.weight"])


def test_modes_are_restored_if_a_part_refuses_its_mode() -> None:
    class Refuses(nn.Module):
        def train(self, mode: bool = True) -> nn.Module:
            if not mode:
                raise RuntimeError("cannot be evaluated")
            return super().train(mode)

        def forward(self, images: Tensor) -> Tensor:
            return images

    model = nn.Sequential(nn.Dropout(), Refuses(), linear())
    with pytest.raises(RuntimeError, match="cannot be evaluated"):
        example(model, *images_and_labels())
    assert all(module.training for module in model.modules())


def test_a_model_that_uses_the_memory_of_its_answer_again_is_attacked_like_another_one() -> None:
    class Reuses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.memory = linear(), torch.zeros(8, 10)

        def forward(self, images: Tensor) -> Tensor:
            logits = self.model(images)
            if torch.is_grad_enabled():
                self.memory.copy_(logits.detach())
                return logits
            return self.memory.copy_(logits)

    for name in ("trades", "r-mc-la+"):
        recipe = recipes.get(name).replace(epsilon=0.1)
        ours, expected = (
            adversarial_example(model, *images_and_labels(), recipe, rng=RNG) for model in (Reuses(), linear())
        )
        assert torch.equal(ours.images, expected.images)
