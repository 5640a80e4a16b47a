"""Where the tests of the Triton backend's own run: on a GPU, or on CPU tensors in Triton's interpreter."""

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
    # The interpreter computes the rows beyond the batch, and NaN rows, in numpy, which warns.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
