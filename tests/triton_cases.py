"""The device for tests of the Triton backend: a GPU, or the CPU with Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from rmcla_fast.ops import dispatch

triton = pytest.importorskip("triton", reason="triton is not installed")
tl = pytest.importorskip("triton.language", reason="triton is not installed")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REASON = dispatch.why_not(DEVICE.type, "triton")
MARKS = [
    pytest.mark.skipif(bool(REASON), reason=REASON),
    # In the interpreter, numpy warns about NaN rows and about rows beyond the batch.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
