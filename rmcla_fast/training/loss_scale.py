"""The loss scale of fp16, and skipped updates: both stay on the device, and the host never reads a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rmcla_fast.any_model import writable

GROWTH_INTERVAL = 2000
FIRST_SCALE = 2.0**16


class LossScale:
    """The scale of the loss, and the rule that an update whose gradients are not finite is skipped.

    A fused optimizer skips its step by itself if the tensor `found_inf` is not 0. With `scaled` (fp16), the loss is
    multiplied by `scale`, which halves when an update is skipped and doubles after 2,000 updates in a row that were
    not. Without `scaled`, the scale stays 1.
    """

    def __init__(self, device: torch.device, scaled: bool) -> None:
        self._scaled = scaled
        self.scale = torch.full((), FIRST_SCALE if scaled else 1.0, dtype=torch.float32, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._found_inf = torch.zeros((), dtype=torch.float32, device=device)
        self._growth = torch.zeros((), dtype=torch.int32, device=device)
        self._first: list[nn.Parameter] = []  # parameters whose momentum this update creates

    def state_dict(self) -> dict[str, Tensor]:
        return {"scale": self.scale.cpu(), "growth": self._growth.cpu(), "skipped": self.skipped.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.scale.copy_(state["scale"])
        self._growth.copy_(state["growth"])
        self.skipped.copy_(state["skipped"])

    @torch.no_grad()
    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale, and tell the optimizer whether to skip."""
        self._found_inf.zero_()
        inverse = self.scale.reciprocal()
        moved = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._amp_foreach_non_finite_check_and_unscale_([p.grad for p in moved], self._found_inf, inverse)
        self._first = [p for p in moved if optimizer.state.get(p, {}).get("momentum_buffer") is None]
        fused: Any = optimizer
        fused.found_inf, fused.grad_scale = self._found_inf, None

    @torch.no_grad()
    def remember(self, model: nn.Module) -> list[Tensor]:
        """Return the buffers' values before an update, in one flat tensor per dtype, so that few kernels copy them."""
        return [_flat(buffers) for buffers in _by_dtype(model)]

    @torch.no_grad()
    def finish(self, model: nn.Module, optimizer: torch.optim.Optimizer, before: list[Tensor]) -> None:
        """Restore the buffers if the optimizer has just skipped its step, count the skip, and update the scale."""
        skip = self._found_inf > 0
        for parameter in self._first:  # fused SGD allocates the momentum, but does not write it if it skips
            momentum = optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                momentum.copy_(torch.where(skip, 0.0, momentum))
        for buffers, values in zip(_by_dtype(model), before, strict=True):
            # Not a product with 0 or 1: a value may be NaN or infinite, and its bits must not change.
            chosen = torch.where(skip, values, _flat(buffers)).split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(
                buffers, [value.view(buffer.shape) for value, buffer in zip(chosen, buffers, strict=True)]
            )
        self.skipped.add_(skip)
        if self._scaled:
            torch._amp_update_scale_(self.scale, self._growth, self._found_inf, 2.0, 0.5, GROWTH_INTERVAL)


def _by_dtype(model: nn.Module) -> list[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for buffer in model.buffers():
        if writable(buffer):
            groups.setdefault(buffer.dtype, []).append(buffer)
    return list(groups.values())


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
