"""A fixture that runs a test with the registered operators of each backend, and with the emulated CUDA kernels.

The operators take the arguments of their schemas. On a machine without a GPU, the emulation tests the CUDA kernels.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import cuda_emulation
import pytest
import torch
from conftest import Backend, backend_named, why_skip
from torch import Tensor

from rmcla_fast.ops import dispatch


class Operators(NamedTuple):
    """The registered operators of one backend, and the device of their tensors."""

    packet: Callable[[str], Any]
    backend: Backend

    def call(self, name: str, *arguments: Any, out: Tensor | None = None) -> Any:
        """Return the result of the operator `name`, or `out` after the result was written into it."""
        if out is None:
            return self.packet(name).default(*arguments)
        self.packet(name).out(*arguments, out=out)
        return out


@pytest.fixture(name="operators", scope="module", params=[*dispatch.BACKENDS, "emulated"])
def _operators(request: pytest.FixtureRequest) -> Operators:
    if request.param == "emulated":
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            pytest.skip("the emulation of the CUDA kernels needs a C++ compiler")
        namespace = cuda_emulation.load()
        return Operators(lambda name: getattr(namespace, name), Backend("emulated", torch.device("cpu")))
    backend = backend_named(request.param)
    if reason := why_skip(backend):
        pytest.skip(f"backend {backend.name!r}: {reason}")
    return Operators(backend.operator, backend)
