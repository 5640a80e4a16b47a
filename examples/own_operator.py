"""Use an operator of your own beside those of the library: a Triton kernel, registered with torch.

    python examples/own_operator.py

It needs torch, triton, and scikit-learn for the images. The operator is the accumulated gradient of MI-FGSM (Dong et
al. 2018) in one pass over each image. MI-FGSM was made for images that also fool networks which the attack never saw,
so it is tried on a second network, too. On a CPU the kernel runs in Triton's interpreter, which is slow.
"""

from __future__ import annotations

import argparse
import os

import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads this when it is imported
import triton
import triton.language as tl

import rmcla_fast
from rmcla_fast import perturb_step

EPSILON, STEPS = 0.15, 10


@triton.jit
def _accumulate(grad, velocity, out, size, decay, BLOCK: tl.constexpr):
    """Compute one image: out = decay * velocity + grad / mean(|grad|)."""
    offsets = tl.arange(0, BLOCK)
    inside = offsets < size
    place = tl.program_id(0).to(tl.int64) * size + offsets
    slope = tl.load(grad + place, mask=inside, other=0.0)
    mean = tl.maximum(tl.sum(tl.abs(slope), 0) / size, 1e-30)  # a gradient of zero stays zero
    tl.store(out + place, decay * tl.load(velocity + place, mask=inside, other=0.0) + slope / mean, mask=inside)


@torch.library.custom_op("own::accumulate", mutates_args=())
def accumulate(grad: Tensor, velocity: Tensor, decay: float) -> Tensor:
    """Return decay * velocity + grad / mean(|grad|), with one mean for each image; float (B, C, H, W)."""
    grad, velocity = grad.contiguous(), velocity.contiguous()
    out, size = torch.empty_like(grad), grad.shape[1:].numel()
    if len(grad):  # a kernel cannot be launched for no image
        _accumulate[(len(grad),)](grad, velocity, out, size, decay, BLOCK=triton.next_power_of_2(size))
    return out


@accumulate.register_fake  # so that torch.compile knows the result's shape without running the kernel
def _(grad: Tensor, velocity: Tensor, decay: float) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def plain_accumulate(grad: Tensor, velocity: Tensor, decay: float) -> Tensor:
    """Return the same from plain torch, which `tests/test_own_operator.py` compares the operator with."""
    return decay * velocity + grad / grad.abs().flatten(1).mean(1).clamp(min=1e-30).view(-1, 1, 1, 1)


def attack(model: nn.Module, images: Tensor, labels: Tensor, decay: float) -> Tensor:
    """Return the images after STEPS steps along the sign of the accumulated gradient."""
    moved, velocity = images, torch.zeros_like(images)
    for _ in range(STEPS):
        moved = moved.detach().requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(moved), labels, reduction="sum"), moved)
        velocity = accumulate(grad, velocity, decay)
        moved = perturb_step(moved.detach(), images, velocity, step_size=EPSILON / STEPS, epsilon=EPSILON)
    return moved


def main(epochs: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = rmcla_fast.data.load("digits")
    train, labels = data.train.images.to(device) / 255, data.train.labels.to(device)
    test, truth = data.test.images.to(device) / 255, data.test.labels.to(device)
    networks = []
    for seed in (0, 1):  # two networks, trained in the ordinary way
        torch.manual_seed(seed)
        model = rmcla_fast.models.create("small-cnn", data.num_classes, 1).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(epochs):
            for index in torch.randperm(len(labels), device=device)[: len(labels) // 64 * 64].split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(train[index]), labels[index]).backward()
                optimizer.step()
        networks.append(model.eval())

    first, second = networks
    for words, decay in (("without accumulation", 0.0), ("with accumulation", 1.0)):
        moved = attack(first, test, truth, decay)
        seen, unseen = (100 * (network(moved).argmax(1) == truth).float().mean().item() for network in (first, second))
        print(f"{words}: attacked network {seen:.1f} %, the other network {unseen:.1f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    main(parser.parse_args().epochs)
