"""Too little memory, of a GPU or of the machine: one sentence with the batch size to try, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import Batch, at_step, rmcla, small
from torch import Tensor, nn

from rmcla_fast.errors import OutOfMemory, short_of_memory
from rmcla_fast.ops import extension
from rmcla_fast.training import TrainConfig, checkpoint, train

# The sentence of a GPU, as torch 2.13 writes it.
ON_GPU = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.19 GiB of which 1.06 GiB is free."
)
ON_MACHINE = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
FACTORY = ("--model", f"{__name__}:hungry")
QUICK = ("--data", "digits", "--images-per-class", 20, "--epochs", 1, "--device", "cpu", "-q", *FACTORY)


class Hungry(nn.Module):
    """A network that really asks for 40 TB, or raises `error`, if a batch has more than `most` images."""

    most = 10**6
    error: BaseException | None = None

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > Hungry.most:
            if Hungry.error is not None:
                raise Hungry.error
            torch.empty(10**13)
        return self.network(images)


def hungry(num_classes: int) -> nn.Module:
    return Hungry(num_classes)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.OutOfMemoryError(ON_GPU), "not enough memory on the GPU (tried to allocate 2.50 GiB)"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors"), "not enough memory on the GPU"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            "not enough memory on the GPU",
        ),
        (
            RuntimeError(f"{ON_MACHINE}allocate 40 bytes."),
            "not enough memory on this machine (tried to allocate 40 bytes)",
        ),
        (MemoryError(), "not enough memory on this machine"),
        (RuntimeError("Caught MemoryError in DataLoader worker"), ""),
        (RuntimeError("the shapes do not fit"), ""),
        (ValueError("out of memory"), ""),
        (OSError(28, "No space left on device"), ""),
    ],
)
def test_an_error_of_memory_is_told_from_others(error: BaseException, sentence: str) -> None:
    assert short_of_memory(error) == sentence


@pytest.mark.skipif(not extension.has_kernels("cpu"), reason=f"no CPU kernels: {extension.why_missing('cpu')}")
def test_a_kernel_without_memory_for_its_result_says_so_as_torch_does() -> None:
    logits = torch.zeros(1, 1).expand(2**22, 2**24)
    with pytest.raises(RuntimeError) as error:
        torch.ops.rmcla_fast.redistribute_labels(logits, torch.zeros(2**22, dtype=torch.int64), 9.0, 0.01, None, "main")
    assert short_of_memory(error.value) == "not enough memory on this machine (tried to allocate 262144.00 GiB)"


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        (
            (),
            None,
            "(tried to allocate 40000000000000 bytes); start another run with --batch-size 16 or --accumulate 2,",
        ),
        (
            ("--accumulate", 4),
            torch.OutOfMemoryError(ON_GPU),
            "GiB); start another run with --batch-size 16 or --accumulate 8,",
        ),
        (("--accumulate", 16), MemoryError(), "machine; start another run with --batch-size 16, or go on from"),
        (("--batch-size", 35), MemoryError(), "machine; start another run with --batch-size 17, or go on from"),
    ],
)
def test_a_run_names_the_batch_size_to_try(
    options: tuple[object, ...],
    error: BaseException | None,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Hungry, "most", 1)
    monkeypatch.setattr(Hungry, "error", error)
    assert rmcla("train", *QUICK, "--out", tmp_path / "a", *options) == 1
    said = capsys.readouterr().err
    assert said.startswith("rmcla: not enough memory on ")
    assert sentence in said
    assert said.count("\n") == 1


def test_a_model_that_does_not_fit_at_all_is_not_blamed_for_its_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hungry, "most", 0)
    with pytest.raises(OutOfMemory, match="not enough memory on this machine"):
        train(small(tmp_path / "a", model=f"{__name__}:hungry"))
    assert not (tmp_path / "a").exists()


def test_a_run_that_runs_out_of_memory_midway_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(batch: Batch) -> Batch:
        raise torch.OutOfMemoryError(ON_GPU)

    at_step(monkeypatch, 9, fail)
    with pytest.raises(OutOfMemory, match="or go on from the last checkpoint with --resume when more memory is free"):
        train(small(tmp_path / "a", checkpoint_every=2))
    assert checkpoint.read(tmp_path / "a" / checkpoint.LAST).step == 8
    monkeypatch.undo()
    train(TrainConfig(out=str(tmp_path / "a"), resume=True))
    train(small(tmp_path / "b"))
    ended, whole = (checkpoint.read(tmp_path / name / checkpoint.LAST).model for name in "ab")
    assert all(torch.equal(ended[name], whole[name]) for name in whole)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small(tmp_path_factory.mktemp("runs") / "run", model=f"{__name__}:hungry", epochs=1))


@pytest.mark.parametrize(
    ("command", "goes_on"),
    [
        (("evaluate", "{run}", "--attacks", "clean,ce20"), True),
        (("compare", "{run}", "--attacks", "clean,ce20", "--out", "{out}"), True),
        (("gradients", "{run}"), False),
    ],
)
def test_a_command_names_the_batch_size_to_try_and_keeps_what_is_done(
    command: tuple[str, ...],
    goes_on: bool,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Hungry, "most", 32)
    asked = [part.format(run=run, out=tmp_path / "out") for part in command]
    asked += ["--images", 100, "--device", "cpu", *FACTORY]
    assert rmcla(*asked, "--batch-size", 64) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    then = ", which goes on from what the attacks have found out" if goes_on else ""
    assert said == (
        "rmcla: not enough memory on this machine (tried to allocate 40000000000000 bytes); "
        f"try the same command with --batch-size 32{then}"
    )
    if command[0] != "compare":  # it looks for the image that it shows among 256 at once
        assert rmcla(*asked, "--batch-size", 32) == 0


def test_finished_attacks_are_kept_when_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(small(tmp_path / "run", model=f"{__name__}:hungry", epochs=1))
    command = ("evaluate", run, "--images", 20, "--device", "cpu", *FACTORY)
    assert rmcla(*command, "--attacks", "clean") == 0
    monkeypatch.setattr(Hungry, "most", 1)
    monkeypatch.setattr(Hungry, "error", torch.OutOfMemoryError(ON_GPU))
    assert rmcla(*command, "--attacks", "clean,fgsm", "--batch-size", 2) == 1
    assert "try the same command with --batch-size 1, which goes on" in capsys.readouterr().err
    assert list(json.loads((run / "evaluation.json").read_text())["attacks"]) == ["clean"]


def test_a_reproduction_names_what_it_can_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its --batch-size is that of the attacks, so a training must not name it."""
    monkeypatch.setattr(Hungry, "most", 1)
    command: tuple[Any, ...] = ("reproduce", "recipes", "--data", "digits", "--epochs", 1, "--out", tmp_path)
    assert rmcla(*command, "--device", "cpu", "--no-autoattack", *FACTORY) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "rmcla: not enough memory on this machine (tried to allocate 40000000000000 bytes) to train "
    )
    assert said.endswith("when more memory is free, or give --precision bf16 or a smaller --model")
