"""The precisions that a network can be asked in: their names, their types, and where they cannot be had."""

from __future__ import annotations

import torch

from rmcla_fast.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str) -> str:
    """A name of PRECISIONS; ValueError, with the list, for anything else."""
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}; got {precision!r}")
    return precision


def require_precision(precision: str, device: torch.device) -> None:
    """UserError where the device computes in this precision only by emulating it."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"--precision bf16 is not supported by {torch.cuda.get_device_name(device)}; use fp16 or fp32")
