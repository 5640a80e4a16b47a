"""A port of the paper's public training step to plain PyTorch, independent of the library, for tests to compare with.

It is straightforward on purpose, as it is also the rival of the benchmark: the labels come from -log p in eager torch,
the backward pass of the attack also computes the gradients of the weights, and the clean forward pass keeps its graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def adversarial_labels(logits: Tensor, labels: Tensor, beta: float, gamma: float, top_k: int | None) -> Tensor:
    """Return (B, n) labels as the paper describes them.

    A mass of eps_y moves from the true class to the others, in proportion to v_k - v_MC + gamma.
    """
    v = -functional.log_softmax(logits, dim=1)
    n = logits.shape[1]
    other = functional.one_hot(labels, n) == 0
    v_mc = torch.where(other, v, torch.full_like(v, torch.inf)).min(1, keepdim=True).values
    s = (v - v_mc + gamma) * other
    if top_k is not None and top_k < n - 1:
        kept = torch.zeros_like(s)
        for place in torch.where(other, v, torch.full_like(v, -torch.inf)).topk(top_k, dim=1).indices.T:
            kept[torch.arange(len(labels), device=labels.device), place] = 1
        s = s * kept
    share = s / s.sum(1, keepdim=True)
    eps_y = 1 / (1 + beta * share.max(1, keepdim=True).values)
    return torch.where(other, eps_y * share, 1 - eps_y)


def public_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    noise: Tensor,
    *,
    epsilon: float,
    beta: float = 9.0,
    gamma: float = 0.01,
    top_k: int | None = None,
    clean_source: bool = True,
    attack_sign: float = -1.0,
    target: str = "mc",
) -> Tensor:
    """Do one update and return its loss.

    With `clean_source` the labels come from the clean forward pass, as in the public code. `attack_sign` and `target`
    can make the step wrong, for tests that must notice it.
    """
    model.eval()
    start = (images + noise).requires_grad_()
    logits = model(start)
    clean_logits = model(images)  # the public code always runs this pass
    source = (clean_logits if clean_source else logits).detach()
    true = functional.one_hot(labels, source.shape[1]).bool()
    hidden = source.masked_fill(true, -torch.inf if target == "mc" else torch.inf)
    toward = hidden.argmax(1) if target == "mc" else hidden.argmin(1)
    functional.cross_entropy(logits, toward).backward()
    assert start.grad is not None
    moved = start.detach() + attack_sign * epsilon * start.grad.sign()
    moved = torch.minimum(torch.maximum(moved, images - epsilon), images + epsilon).clamp(0, 1)
    soft = adversarial_labels(source, labels, beta, gamma, top_k)

    model.train()
    optimizer.zero_grad()
    loss = -(soft * functional.log_softmax(model(moved), dim=1)).sum(1).mean()
    loss.backward()
    optimizer.step()
    return loss.detach()
