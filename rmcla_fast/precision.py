"""The precisions in which a network can run: their names, their dtypes, and which devices support them."""

from __future__ import annotations

import torch

from rmcla_fast.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str) -> str:
    """Return `precision` if it is a name in PRECISIONS; raise ValueError with the list of names otherwise."""
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}; got {precision!r}")
    return precision


def check_weights(precision: str, dtype: torch.dtype | None) -> str:
    """Return `precision` if weights of this type can run in it; autocast leaves those of a third type as they are.

    Raises:
        ValueError: an unknown precision, or weights that are neither float32 nor of the precision's own type.
    """
    check_precision(precision)
    if precision != "fp32" and dtype not in (None, torch.float32, PRECISIONS[precision]):
        raise ValueError(
            f"precision {precision!r} needs weights in float32 or {PRECISIONS[precision]}; the model's are {dtype}, "
            "which precision 'fp32' uses as they are"
        )
    return precision


def require_precision(precision: str, device: torch.device) -> None:
    """Raise UserError if the device can only emulate this precision."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"--precision bf16 is not supported by {torch.cuda.get_device_name(device)}; use fp16 or fp32")
