"""How weights are put into a network, and the files that they are read from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_libraries import library, saved, small_cnn_weights
from torch import Tensor, nn

from rmcla_fast import models
from rmcla_fast.models.weights import Misfit, put_into, read_weights

State = dict[str, Tensor]


def network(classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return models.create("small-cnn", classes, 1)


def plain(classes: int = 10, seed: int = 0) -> nn.Sequential:
    """Return a network of the kind that users have: it does not normalise."""
    torch.manual_seed(seed)
    norm, head = nn.BatchNorm2d(4), nn.Linear(4, classes)
    return nn.Sequential(OrderedDict(stem=nn.Conv2d(1, 4, 3), norm=norm, flat=nn.Flatten(), head=head))


def normalising(classes: int = 10) -> nn.Sequential:
    return nn.Sequential(OrderedDict(first=models.Normalize(1, (0.1,), (0.2,)), inside=plain(classes)))


def test_weights_that_fit_are_put_into_the_model() -> None:
    model, weights = network(), small_cnn_weights()
    assert put_into(model, weights, 10) == []
    assert all(torch.equal(one, weights[name]) for name, one in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_float32(dtype: torch.dtype) -> None:
    model = network()
    weights = {name: one.to(dtype) for name, one in small_cnn_weights().items()}
    assert put_into(model, weights, 10) == []
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    assert all(torch.equal(one, weights[name].float()) for name, one in model.named_parameters())


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"{name.partition('.')[0]}._orig_mod.{name.partition('.')[2]}",
        lambda name: f"module.module.{name}",
    ],
)
@pytest.mark.parametrize("make", [plain, normalising])
def test_names_of_a_plain_network_and_with_prefixes_fit(
    make: Callable[[], nn.Module], rename: Callable[[str], str]
) -> None:
    """DataParallel and torch.compile add the prefixes; a model that normalises has its network in an attribute."""
    model, weights = make(), plain(seed=1).state_dict()
    assert put_into(model, {rename(name): one for name, one in weights.items()}, 10) == []
    found = model.state_dict()
    assert all(
        torch.equal(found[f"inside.{name}" if make is normalising else name], one) for name, one in weights.items()
    )
    if make is normalising:
        assert float(model.first.mean) == pytest.approx(0.1)


def test_a_model_with_an_attribute_called_module_keeps_its_names() -> None:
    model = nn.Sequential(OrderedDict(module=nn.Linear(4, 3)))
    weights = {"module.weight": torch.ones(3, 4), "module.bias": torch.ones(3)}
    assert put_into(model, weights, 3) == []
    assert bool((model.module.weight == 1).all())


def test_statistics_of_normalisation_are_taken_where_they_are_and_may_be_missing() -> None:
    model, weights = network(), small_cnn_weights()
    mean = next(name for name in weights if name.endswith(".mean"))
    weights[mean] = torch.full_like(weights[mean], 0.25)
    assert put_into(model, weights, 10) == []
    assert float(model.state_dict()[mean]) == 0.25
    assert put_into(model, {name: one for name, one in weights.items() if name != mean}, 10) == []
    assert float(model.state_dict()[mean]) == 0.25


def test_counters_of_batch_norm_may_be_missing_and_buffers_that_are_no_longer_saved_are_left_out() -> None:
    model = plain()
    model.register_buffer("table", torch.zeros(2), persistent=False)
    weights = plain(seed=1).state_dict() | {"table": torch.ones(3)}
    del weights["norm.num_batches_tracked"]
    assert put_into(model, weights, 10) == []
    assert torch.equal(model.stem.weight, weights["stem.weight"])


@pytest.mark.parametrize("make", [network, plain, normalising])
def test_the_classifier_stays_new_for_another_number_of_classes(make: Callable[[int], nn.Module]) -> None:
    model, weights = make(10), make(7).state_dict()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    (remark,) = put_into(model, weights, 10)
    assert "has 7 classes in these weights and 10 here, so it starts with new weights" in remark
    for name, one in model.state_dict().items():
        expected = before[name] if one.shape[:1] == (10,) else weights[name]
        assert torch.equal(one, expected), name


def test_the_classifier_stays_new_where_the_weights_have_none() -> None:
    model, weights = plain(), plain(seed=1).state_dict()
    del weights["head.weight"], weights["head.bias"]
    assert put_into(model, weights, 10) == [
        "the classifier (head.weight, head.bias) is not among these weights, so it starts with new weights"
    ]
    assert torch.equal(model.stem.weight, weights["stem.weight"])


def without(*names: str) -> Callable[[State], State]:
    return lambda state: {name: one for name, one in state.items() if name not in names}


def changed(**entries: Tensor) -> Callable[[State], State]:
    return lambda state: state | {name.replace("__", "."): one for name, one in entries.items()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("stem.bias"), "1 tensor is missing (stem.bias)"),
        (without("head.bias"), "1 tensor is missing (head.bias)"),
        (without("stem.weight", "head.weight", "head.bias"), "3 tensors are missing (stem.weight, head.weight, head.b"),
        (changed(extra=torch.ones(2)), "1 tensor is unexpected (extra)"),
        (
            changed(stem__weight=torch.ones(4, 3, 3, 3)),
            "1 tensor is of another kind (stem.weight: 4x3x3x3 instead",
        ),
        (changed(stem__weight=torch.ones(5, 1, 3, 3)), "(stem.weight: 5x1x3x3 instead of 4x1x3x3)"),
        (changed(head__weight=torch.ones(7, 4)), "1 tensor is of another kind (head.weight: 7x4 instead of 10x4)"),
        (changed(head__weight=torch.ones(7, 4), head__bias=torch.ones(8)), "2 tensors are of another kind"),
        (changed(head__weight=torch.ones(7, 5), head__bias=torch.ones(7)), "2 tensors are of another kind"),
        (changed(stem__bias=torch.ones(4, dtype=torch.int8)), "stem.bias: 4 (torch.int8, torch.strided) instead of 4"),
        (changed(stem__bias=torch.ones(4).to_sparse()), "stem.bias: 4 (torch.float32, torch.sparse_coo) instead of 4"),
        (changed(stem__bias=torch.ones(4, device="meta")), "stem.bias: 4 (torch.float32, no values) instead of 4"),
        (changed(stem__bias=torch.full((4,), torch.nan)), "NaN or infinity is in stem.bias"),
        (changed(norm__running_var=torch.full((4,), torch.inf)), "NaN or infinity is in norm.running_var"),
        (
            lambda state: {f"a.{name}": one for name, one in state.items()},
            "8 tensors are missing (stem.weight",
        ),
        (lambda state: {}, "8 tensors are missing (stem.weight, stem.bias, norm.weight and 5 more)"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change: Callable[[State], State], sentence: str) -> None:
    model = plain()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with pytest.raises(Misfit) as raised:
        put_into(model, change(plain(seed=1).state_dict()), 10)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_a_layer_in_the_middle_is_no_classifier() -> None:
    """It has as many outputs as there are classes, and so does the last one."""
    model = nn.Sequential(nn.Linear(3, 10), nn.Linear(10, 10))
    weights = nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 10)).state_dict()
    with pytest.raises(Misfit, match="3 tensors are of another kind"):
        put_into(model, weights, 10)


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("new", [True, False])
def test_a_file_of_torch_save(key: str | None, new: bool, tmp_path: Path) -> None:
    weights = small_cnn_weights()
    content = weights if key is None else {"epoch": 3, key: weights, "optimizer": {"lr": 0.1}}
    path = saved(content, tmp_path / "weights", _use_new_zipfile_serialization=new)
    found = read_weights(path)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], one) for name, one in weights.items())


def test_a_safetensors_file_is_known_by_its_content(tmp_path: Path) -> None:
    weights = small_cnn_weights()
    library("safetensors.torch").save_file(weights, tmp_path / "weights.bin")  # type: ignore[attr-defined]
    found = read_weights(tmp_path / "weights.bin")
    assert all(torch.equal(found[name], one) for name, one in weights.items())


class Trap:
    """An object that runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path = saved({"state_dict": small_cnn_weights(), "more": Trap(tmp_path / "ran")}, tmp_path / "weights")
    with pytest.raises(Misfit):
        read_weights(path)
    assert not (tmp_path / "ran").exists()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.classifier = nn.Linear(4, 2)


def test_tied_weights_may_have_one_name_as_safetensors_saves_them(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="pip install 'rmcla-fast[models]'")
    given, model = Tied(), Tied()
    safetensors.save_model(given, str(tmp_path / "w"))
    assert put_into(model, read_weights(tmp_path / "w"), 2) == []
    assert torch.equal(model.second.weight, given.first.weight)


def test_numbers_that_become_infinite_in_the_models_type_are_refused() -> None:
    model = nn.Linear(4, 2)
    weights = {name: value.double() for name, value in model.state_dict().items()}
    weights["bias"][0] = 1e39
    with pytest.raises(Misfit, match="NaN or infinity is in bias"):
        put_into(model, weights, 2)
    assert model.bias.isfinite().all()


def test_a_file_that_is_cut_short_is_said(tmp_path: Path) -> None:
    torch.save(nn.Linear(64, 64).state_dict(), tmp_path / "w")
    content = (tmp_path / "w").read_bytes()
    for length in (len(content) // 2, len(content) - 30):
        (tmp_path / "w").write_bytes(content[:length])
        with pytest.raises(Misfit, match=r"damaged or cut short|must be a safetensors file"):
            read_weights(tmp_path / "w")
