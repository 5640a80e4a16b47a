"""N-FGSM as the FastAT Benchmark trains it (Pan and Yao, arXiv 2604.22853), written anew from its description."""

from __future__ import annotations

from collections.abc import Callable

import torch
from step_rivals import Rivals, Run
from torch import Tensor, nn

EPSILON, LABEL_SMOOTHING, DECAY = 8 / 255, 0.4, 0.9995


def n_fgsm_loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[Tensor, Tensor], tuple[float, int]]:
    """Return an update (images in [0, 1], labels) -> (loss, right answers), as the loop of the benchmark makes it.

    The model stays in training mode, both backward passes compute the gradients of the weights, the running average
    goes through the state dict, and each update reads its loss and accuracy on the host.
    """
    criterion = nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    average = {name: value.clone() for name, value in model.state_dict().items()}

    def update(images: Tensor, labels: Tensor) -> tuple[float, int]:
        noise = torch.zeros_like(images).uniform_(-2 * EPSILON, 2 * EPSILON)
        start = (images + noise).clamp(0, 1).requires_grad_()
        criterion(model(start), labels).backward()
        assert start.grad is not None
        moved = (start.detach() + EPSILON * start.grad.sign()).clamp(0, 1)
        optimizer.zero_grad()
        logits = model(moved)
        loss = criterion(logits, labels)
        loss.backward()
        optimizer.step()
        for name, value in model.state_dict().items():
            average[name] = (1 - DECAY) * value + DECAY * average[name]
        return loss.item(), int((logits.argmax(1) == labels).sum())

    model.train()
    return update


def fastat_rival(rivals: Rivals) -> Run:
    """Build the benchmark's loop as a rival, with torch's default SGD, and under autocast in 16 bits."""
    model, _ = rivals.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    update, clean = n_fgsm_loop(model, optimizer), rivals.clean.contiguous(memory_format=rivals.layout)

    def run() -> None:
        with rivals.autocast(rivals.options.precision):
            update(clean, rivals.labels)

    return run
