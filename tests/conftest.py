"""What every test shares: the backends, each with the device its tensors live on, and deterministic property tests."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():  # before triton and rmcla_fast are imported: both read it once
    os.environ["TRITON_INTERPRET"] = "1"

from collections.abc import Iterator
from typing import NamedTuple

import hypothesis
import pytest

from rmcla_fast.ops import dispatch

hypothesis.settings.register_profile(
    "operators", max_examples=200, derandomize=True, deadline=None, database=None, print_blob=False
)
hypothesis.settings.load_profile("operators")


@pytest.fixture
def deterministic_convolutions() -> Iterator[None]:
    """On a GPU the same algorithm every time, in whole float32."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = before


class Backend(NamedTuple):
    """A backend as the tests use it: `backend=name` on tensors of `device`."""

    name: str
    device: torch.device

    @property
    def interpreted(self) -> bool:
        """Triton's interpreter is a thousand times slower than a kernel: its shapes stay small."""
        return self.name == "triton" and self.device.type == "cpu"

    @property
    def examples(self) -> int:
        """Of a property test. Triton compiles anew for nearly each of them: on a GPU that is what takes the time."""
        return 40 if self.name == "triton" and not self.interpreted else hypothesis.settings.default.max_examples

    @property
    def checks_label_values(self) -> bool:
        """In kernels for a GPU the check would stall, so there a label that is no class gives a NaN row."""
        return self.device.type == "cpu" and self.name != "triton"

    def operator(self, name: str) -> torch._ops.OpOverloadPacket:
        """The registered operator under `torch.ops.rmcla_fast`."""
        suffix = f"_{self.name}" if self.name in ("reference", "triton") else ""
        return getattr(torch.ops.rmcla_fast, name + suffix)


def backend_named(name: str) -> Backend:
    on_gpu = name == "cuda" or (name == "triton" and torch.cuda.is_available())
    return Backend(name, torch.device("cuda" if on_gpu else "cpu"))


def why_skip(backend: Backend) -> str:
    """Why `backend` cannot run here; "" if it can."""
    if backend.device.type == "cuda" and not torch.cuda.is_available():
        return "there is no CUDA device"
    return dispatch.why_not(backend.device.type, backend.name)


def available_backends() -> list[str]:
    """The backends that run on this machine, the reference first."""
    return [name for name in dispatch.BACKENDS if not why_skip(backend_named(name))]


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=pytest.mark.gpu) if name == "cuda" else name for name in dispatch.BACKENDS],
)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn; one that cannot run here is skipped with its reason."""
    chosen = backend_named(request.param)
    reason = why_skip(chosen)
    if reason:
        pytest.skip(f"backend {chosen.name!r}: {reason}")
    return chosen
