"""The activation functions of the networks, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0), which takes the place of x in memory. What x was computed from must not need x afterwards."""
    return functional.relu(x, inplace=True)


def silu(x: Tensor) -> Tensor:
    """Return x * sigmoid(x). The backward pass needs x, so working in place would copy it and save nothing."""
    return functional.silu(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": relu, "silu": silu}


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    """Return the function with this name.

    Raises:
        ValueError: no activation has this name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be {' or '.join(ACTIVATIONS)}; got {name!r}")
    return ACTIVATIONS[name]
