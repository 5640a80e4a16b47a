"""What a run sets in torch, what `deterministic` adds, and that everything is put back."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import rmcla, small
from torch import Tensor, nn

from rmcla_fast.errors import RunFailed, UserError
from rmcla_fast.training import TrainConfig, checkpoint, loop, train
from rmcla_fast.training.record import read_config
from rmcla_fast.training.torch_settings import choose_cublas_workspace, torch_settings

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def settings() -> dict[str, Any]:
    """Return all settings that a run may change."""
    from torch._inductor import config as inductor

    return {
        "threads": torch.get_num_threads(),
        "benchmark": torch.backends.cudnn.benchmark,
        "cudnn": torch.backends.cudnn.deterministic,
        "enabled": torch.are_deterministic_algorithms_enabled(),
        "warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fills": torch.utils.deterministic.fill_uninitialized_memory,
        "compiler": getattr(inductor, "deterministic", None),
    }


@pytest.fixture(autouse=True)
def _put_back(monkeypatch: pytest.MonkeyPatch) -> Any:
    before = settings()
    yield
    torch.use_deterministic_algorithms(before["enabled"], warn_only=before["warns"])


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_cudnn_times_its_algorithms_unless_it_is_deterministic(
    deterministic: bool, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    seen = []
    with suppress(KeyError), torch_settings(GPU, 1, deterministic=False):
        seen.append(torch.backends.cudnn.benchmark)
        raise KeyError
    assert seen == [not deterministic]
    assert torch.backends.cudnn.benchmark is before


def test_a_run_on_the_cpu_leaves_cudnn_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(loop, "_load", lambda *_: seen.append(settings()) or 1 / 0)
    before = settings()
    with pytest.raises(ZeroDivisionError):
        train(small(tmp_path / "a"))
    assert seen == [before | {"threads": 1}]


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("warns", [False, True])
@pytest.mark.parametrize("fills", [False, True])
@pytest.mark.parametrize("device", [CPU, GPU])
def test_deterministic_settings_are_put_back(
    enabled: bool, warns: bool, fills: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New memory is filled only if the process itself was deterministic and had it filled."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", fills)
    torch.use_deterministic_algorithms(enabled, warn_only=warns)
    before = settings()
    seen = []
    with suppress(KeyError), torch_settings(device, 1, deterministic=True):
        seen.append(settings())
        raise KeyError
    assert settings() == before
    wanted = {"threads": 1, "benchmark": False, "cudnn": True, "enabled": True, "warns": False}
    compiler = None if before["compiler"] is None else True
    assert seen == [wanted | {"fills": enabled and fills, "compiler": compiler}]


@pytest.mark.parametrize(
    ("value", "used", "device", "ends_as"),
    [
        (None, False, None, ":4096:8"),
        (None, False, "cuda:1", ":4096:8"),
        (":16:8", True, "cuda", ":16:8"),
        (None, True, "cpu", None),
        (None, True, None, "this process has used CUDA before"),
        (":4096:2:16:8", False, None, "it is ':4096:2:16:8'"),
    ],
)
def test_cublas_gets_its_workspace_before_its_first_use_or_the_run_is_refused(
    value: str | None, used: bool, device: str | None, ends_as: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", value or "")  # also where it is deleted next, so that it is put back
    if value is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    if ends_as and not ends_as.startswith(":"):
        with pytest.raises(UserError, match=rf"^--deterministic needs CUBLAS_WORKSPACE_CONFIG=:4096:8 .*{ends_as}"):
            choose_cublas_workspace(device)
    else:
        choose_cublas_workspace(device)
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == ends_as


class Recording(nn.Module):
    """A linear network that remembers the settings it ran with."""

    seen: list[dict[str, Any]]

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        Recording.seen.append(settings())
        return self.network(images)


def recording(num_classes: int) -> nn.Module:
    return Recording()


def test_every_pass_of_a_deterministic_run_is_deterministic_and_the_option_is_kept(tmp_path: Path) -> None:
    Recording.seen = []
    before = settings()
    train(small(tmp_path / "a", model=f"{__name__}:recording", deterministic=True, epochs=1))
    assert settings() == before
    assert len(Recording.seen) > 10
    assert all(seen["enabled"] and not seen["warns"] and not seen["benchmark"] for seen in Recording.seen)
    assert read_config(tmp_path / "a" / "config.json").options.deterministic is True
    with pytest.raises(UserError, match="started with --deterministic True and cannot be resumed with False"):
        train(TrainConfig(out=str(tmp_path / "a"), resume=True, deterministic=False))


class Unordered(nn.Module):
    """A network with an operation that torch does not make deterministic: in every pass, or only in training."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.always = always

    def forward(self, images: Tensor) -> Tensor:
        if self.training or self.always:
            torch.zeros(4).put_(torch.tensor([1]), torch.ones(1))
        return self.network(images)


def unordered(num_classes: int) -> nn.Module:
    return Unordered(always=True)


def unordered_in_training(num_classes: int) -> nn.Module:
    return Unordered(always=False)


@pytest.mark.parametrize("factory", ["unordered", "unordered_in_training"])
def test_an_operation_that_is_not_deterministic_is_named(
    factory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--images-per-class", 20, "--epochs", 1, "--device", "cpu", "-q", "--model", f"{__name__}:{factory}")
    command = ("train", "--data", "digits", *options)
    assert rmcla(*command, "--out", tmp_path / "a", "--deterministic") == 1
    assert capsys.readouterr().err == (
        "rmcla: --deterministic is not possible, since put_ has no deterministic implementation in torch; "
        "start another run without --deterministic, or with a --model that does not use it\n"
    )
    assert not (tmp_path / "a" / checkpoint.LAST).exists()
    assert not (tmp_path / "a").exists()
    assert rmcla(*command, "--out", tmp_path / "b") == 0  # without the option it trains


def test_compiled_passes_are_deterministic_or_refused_too(tmp_path: Path) -> None:
    model = f"{__name__}:unordered_in_training"
    with pytest.raises((RunFailed, UserError), match="put_"):
        train(small(tmp_path / "a", model=model, deterministic=True, epochs=1, capture="compile"))
