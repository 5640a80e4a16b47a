"""The disagreement between a network's answers at the start of an attack and on its adversarial images."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def disagreement(logits: Tensor, start: Tensor, kind: str) -> Tensor:
    """Return the disagreement of each row of two tensors of logits, (B,) float32 (float64 for float64).

    "squared" is mean_k (z_k - z'_k)^2, as in FGSM-PGI (Jia et al., "Prior-guided adversarial initialization for fast
    adversarial training", ECCV 2022). "js" is the Jensen-Shannon divergence of the softmaxes p and q,
    (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, as in LIET.

    Args:
        logits: on the adversarial images, (B, C).
        start: at the start, (B, C). Where it is detached, only `logits` gets a gradient.
        kind: "squared" or "js".
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    logits, start = logits.to(wide), start.to(wide)
    if kind == "squared":
        return (logits - start).square().mean(1)
    log_p, log_q = logits.log_softmax(1), start.log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return ((log_p.exp() * (log_p - log_m)).sum(1) + (log_q.exp() * (log_q - log_m)).sum(1)) / 2
