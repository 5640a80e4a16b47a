"""Without a GPU the Triton kernels are tested in Triton's interpreter, chosen before triton is imported."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
