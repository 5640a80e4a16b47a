"""`--model package.module:factory`: what a factory is given, and one sentence where it cannot be used."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import rmcla
from torch import nn

from rmcla_fast import models

Add = Callable[..., None]
QUICK = ("--data", "digits", "--images-per-class", 10, "--epochs", 1, "--device", "cpu", "--monitor-images", 0)


class Net(nn.Sequential):
    """A network that keeps what its constructor was given."""

    def __init__(self, num_classes: int = 1000, **given: Any) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))
        self.given = {"num_classes": num_classes, **given}


class Class(Net):
    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(num_classes, channels=channels)

    @classmethod
    def alternative(cls, num_classes: int) -> Class:
        return cls(9, num_classes)


class Callable_:
    def __call__(self, *, num_classes: int, std: Any) -> Net:
        return Net(num_classes, std=std)


class WithoutSignature:
    """Its instances are called as a function written in C is, which has no signature that Python can read."""

    __signature__ = "none"

    def __call__(self, num_classes: int) -> Net:
        return Net(num_classes)


def as_torchvision_has_it(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> Net:
    return Net(**kwargs)


def as_timm_has_it(pretrained: bool = False, **kwargs: Any) -> Net:
    return Net(**kwargs)


def naming_channels(channels: int, **kwargs: Any) -> Net:
    return Net(**kwargs, channels=channels)


def positional_only(num_classes: int, width: int = 3, channels: int = 5, /) -> Net:
    return Net(num_classes, width=width, channels=channels)


def positional_only_and_more(num_classes: int, /, **kwargs: Any) -> Net:
    return Net(num_classes, **kwargs)


def any_arguments(*args: Any, **kwargs: Any) -> Net:
    assert not args
    return Net(**kwargs)


def preset(depth: int, num_classes: int, channels: int = 1) -> Net:
    return Net(num_classes, depth=depth, channels=channels)


@functools.wraps(preset)
def wrapping(*args: Any, **kwargs: Any) -> Net:
    return preset(8, *args, **kwargs)


def of_a_fixed_number() -> Net:
    return Net(4)


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Add:
    """Add a module called "zoo" with these names."""

    def added(**names: object) -> None:
        module = types.ModuleType("zoo")
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, "zoo", module)

    return added


@pytest.mark.parametrize(
    ("factory", "given"),
    [
        (as_torchvision_has_it, {"num_classes": 4}),
        (as_timm_has_it, {"num_classes": 4}),
        (naming_channels, {"num_classes": 4, "channels": 2}),
        (any_arguments, {"num_classes": 4}),
        (Net, {"num_classes": 4}),
        (Class, {"num_classes": 4, "channels": 2}),
        (Class.alternative, {"num_classes": 4, "channels": 9}),
        (Callable_(), {"num_classes": 4, "std": None}),
        (WithoutSignature(), {"num_classes": 4}),
        (lambda num_classes: Net(num_classes), {"num_classes": 4}),
        (positional_only, {"num_classes": 4, "width": 3, "channels": 2}),
        (positional_only_and_more, {"num_classes": 4}),
        (functools.partial(preset, 50), {"num_classes": 4, "depth": 50, "channels": 2}),
        (functools.partial(preset, depth=18, num_classes=1000), {"num_classes": 4, "depth": 18, "channels": 2}),
        (functools.partial(as_timm_has_it, True), {"num_classes": 4}),
        (of_a_fixed_number, {"num_classes": 4}),
    ],
    ids=lambda value: getattr(value, "__qualname__", type(value).__name__) if callable(value) else "",
)
def test_a_factory_gets_what_it_takes(factory: Callable[..., nn.Module], given: dict[str, Any], add: Add) -> None:
    add(factory=factory)
    assert models.create("zoo:factory", 4, 2).given == given


def test_a_wrapped_factory_is_called_with_what_it_wraps_takes(add: Add) -> None:
    add(factory=functools.wraps(as_timm_has_it)(any_arguments), wrong=wrapping)
    assert models.create("zoo:factory", 4, 2).given == {"num_classes": 4}
    with pytest.raises(TypeError, match=r"model 'zoo:wrong' needs depth, which a factory is not given"):
        models.create("zoo:wrong", 4, 2)


def raising(error: BaseException) -> Callable[..., nn.Module]:
    def factory(num_classes: int) -> nn.Module:
        raise error

    return factory


@pytest.mark.parametrize(
    ("factory", "kind", "sentence"),
    [
        (lambda num_classes, depth, width: None, TypeError, "'zoo:factory' needs depth, width, which a factory is not"),
        (
            lambda depth, /: None,
            TypeError,
            "needs depth, which a factory is not given; it may have the parameters num_",
        ),
        (raising(KeyError("no")), ValueError, "called with (num_classes=4), raised KeyError: 'no' (test_factories.py,"),
        (raising(TypeError("a\nb")), ValueError, "raised TypeError: a (test_factories.py, line "),
        (raising(RuntimeError()), ValueError, "raised RuntimeError (test_factories.py, line "),
        (dict, TypeError, "must return a torch.nn.Module; got dict"),
        (max, ValueError, "raised TypeError: max"),
        (Net(4), TypeError, "must be a function or a class that makes a module; got a Net"),
        (None, TypeError, "must be a function or a class; got NoneType"),
    ],
)
def test_what_cannot_be_a_factory_is_one_sentence(
    factory: object, kind: type[Exception], sentence: str, add: Add
) -> None:
    add(factory=factory)
    with pytest.raises(kind) as raised:
        models.create("zoo:factory", 4, 2)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError(), KeyboardInterrupt()])
def test_too_little_memory_and_a_signal_are_not_the_fault_of_the_factory(error: BaseException, add: Add) -> None:
    add(factory=raising(error))
    with pytest.raises(type(error)):
        models.create("zoo:factory", 4)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def net(:", "cannot be imported: broken raised SyntaxError: "),
        ("1 / 0", "cannot be imported: broken raised ZeroDivisionError: division by zero (broken.py, line 1)"),
        ("import no_such_package", "cannot be found: No module named 'no_such_package'"),
        ("", "cannot be found: module 'broken' has no attribute 'net'"),
        (
            "import torch\ndef net(num_classes):\n  return torch.nn.Linear(64, num_classes, device='meta')",
            "has weights without values, on the device meta",
        ),
        (
            "from torch import nn\ndef net(num_classes):\n"
            "  return nn.Sequential(nn.Flatten(), nn.Linear(64, 64).double(), nn.Linear(64, num_classes))",
            "cannot take images of shape (8, 1, 8, 8)",
        ),
        (
            "from torch import nn\nclass net(nn.Module):\n  def __init__(self, **kwargs): super().__init__()\n"
            "  def forward(self, x): return x[99]['logits']",
            "cannot take images of shape (8, 1, 8, 8)",
        ),
        (
            "from torch import nn\ndef net():\n  return nn.Sequential(nn.Flatten(), nn.Linear(64, 1000))",
            "must return 10 logits for an image, one for each class; got 1000",
        ),
    ],
)
def test_a_factory_that_does_not_work_is_one_sentence_of_the_command_line(
    text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    assert rmcla("train", *QUICK, "--model", "broken:net", "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.startswith("rmcla: model ")
    assert said.count("\n") == 1
    assert sentence in said
    assert not (tmp_path / "run").exists()
    sys.modules.pop("broken", None)


def test_a_constructor_with_kwargs_trains_is_resumed_and_is_evaluated(
    tmp_path: Path, add: Add, capsys: pytest.CaptureFixture[str]
) -> None:
    add(resnet=as_torchvision_has_it)
    named = ("--model", "zoo:resnet")
    assert rmcla("train", *QUICK, *named, "-q", "--out", tmp_path / "run") == 0
    assert rmcla("train", "--resume", *named, "--out", tmp_path / "run") == 0
    assert rmcla("evaluate", tmp_path / "run", *named, "--attacks", "clean", "--images", 4, "--device", "cpu") == 0
    capsys.readouterr()
    assert rmcla("evaluate", tmp_path / "run", "--attacks", "clean", "--images", 4, "--device", "cpu") == 2
    assert "belong to the factory zoo:resnet; name it again" in capsys.readouterr().err


def test_only_code_of_the_user_has_to_be_named_again() -> None:
    assert [name for name in ("zoo:net", "a.b:c", ":x", "timmy:x") if models.is_factory(name)] == [
        "zoo:net",
        "a.b:c",
        ":x",
        "timmy:x",
    ]
    known = (*models.names(), "timm:resnet18", "hf:a/b", "hf:/a:b", "torchvision:resnet18", "timm:")
    assert not [name for name in known if models.is_factory(name)]
