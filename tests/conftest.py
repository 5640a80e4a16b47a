"""What all tests share: the backends with the devices of their tensors, and settings for deterministic tests."""

from __future__ import annotations

import os
import socket

import torch

if not torch.cuda.is_available():  # triton and rmcla_fast read this once, when they are imported below
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


@pytest.fixture(autouse=True)
def environment_is_put_back() -> Iterator[None]:
    """Undo what a test changes in the environment, so that no later test depends on it.

    An import of Lightning, for one, sets a variable by which torch looks for GPUs in another way.
    """
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail the test if anything connects to the network."""
    tried: list[object] = []

    def refused(*address: object, **_: object) -> None:
        tried.append(address)
        raise OSError("the tests have no network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    yield
    assert not tried


@pytest.fixture
def deterministic_convolutions() -> Iterator[None]:
    """On a GPU, make convolutions use deterministic algorithms and float32 instead of TF32."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = before


class Backend(NamedTuple):
    """A backend as the tests use it: `backend=name` with tensors on `device`."""

    name: str
    device: torch.device

    @property
    def interpreted(self) -> bool:
        """Return whether Triton's interpreter runs, which is a thousand times slower and needs small shapes."""
        return self.name == "triton" and self.device.type == "cpu"

    @property
    def examples(self) -> int:
        """Return the number of examples of a property test; fewer where Triton compiles for nearly every example."""
        return 40 if self.name == "triton" and not self.interpreted else hypothesis.settings.default.max_examples

    @property
    def checks_label_values(self) -> bool:
        """Return whether a label outside the classes is an error; kernels for a GPU give a NaN row instead."""
        return self.device.type == "cpu" and self.name != "triton"

    def operator(self, name: str) -> torch._ops.OpOverloadPacket:
        """Return the registered operator in `torch.ops.rmcla_fast`."""
        suffix = f"_{self.name}" if self.name in ("reference", "triton") else ""
        return getattr(torch.ops.rmcla_fast, name + suffix)


def backend_named(name: str) -> Backend:
    on_gpu = name == "cuda" or (name == "triton" and torch.cuda.is_available())
    return Backend(name, torch.device("cuda" if on_gpu else "cpu"))


def why_skip(backend: Backend) -> str:
    """Return why `backend` cannot run on this machine; "" if it can."""
    if backend.device.type == "cuda" and not torch.cuda.is_available():
        return "there is no CUDA device"
    return dispatch.why_not(backend.device.type, backend.name)


def available_backends() -> list[str]:
    """Return the names of the backends that run on this machine, the reference first."""
    return [name for name in dispatch.BACKENDS if not why_skip(backend_named(name))]


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=pytest.mark.gpu) if name == "cuda" else name for name in dispatch.BACKENDS],
)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Run the test with each backend; skip those that cannot run on this machine, with the reason."""
    chosen = backend_named(request.param)
    reason = why_skip(chosen)
    if reason:
        pytest.skip(f"backend {chosen.name!r}: {reason}")
    return chosen
