"""A seed draws the same bits on every backend: crops, flips, starts and random targets of a whole update."""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple

import cuda_emulation
import pytest
import torch
from conftest import backend_named, why_skip
from step_cases import batch, network, recipe
from torch import Tensor

from rmcla_fast import adversarial_example, augment
from rmcla_fast.ops import dispatch

RECIPES = ("r-mc-la", "r-rand", "n-fgsm-la", "trades", "r-mosa-la+")
SEEDS = ((7, 3), (2**40 + 1, 2**32 + 5), (-3, 0))


class Drawn(NamedTuple):
    """What an update draws, and the adversarial images that it makes of it."""

    cropped: Tensor  # uint8
    start: Tensor  # the images of the attack's first forward pass
    targets: Tensor
    images: Tensor


def use(backend: str, patch: pytest.MonkeyPatch) -> torch.device:
    """Run every operator with `backend`, as RMCLA_BACKEND does; return the device of its tensors.

    Without a GPU, the CUDA kernels run in the emulation, in place of those of the CPU.
    """
    chosen = backend_named(backend)
    patch.setattr(dispatch, "_resolved", {})
    if backend == "cuda" and why_skip(chosen):
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            pytest.skip("the emulation of the CUDA kernels needs a C++ compiler")
        emulated = cuda_emulation.load()
        for operator in cuda_emulation.OPERATORS:
            packet, overload = operator.split(".")
            name = packet if overload == "default" else operator
            patch.setitem(dispatch._operators[name], "cpu", getattr(getattr(emulated, packet), overload))
        patch.setattr(dispatch, "why_not", lambda device_type, backend: "")  # the extension may be missing
        patch.setattr(dispatch, "_from_environment", "cpu")
        return torch.device("cpu")
    if why_skip(chosen):
        pytest.skip(why_skip(chosen))
    patch.setattr(dispatch, "_from_environment", backend)
    return chosen.device


def drawn(backend: str, name: str, seed: tuple[int, int]) -> Drawn:
    method = recipe(name)
    with pytest.MonkeyPatch.context() as patch:
        device = use(backend, patch)
        images, labels = (part.to(device) for part in batch())
        rng = torch.tensor(seed, device=device)
        cropped = augment(images, torch.arange(len(images), device=device), rng=rng)
        model, seen = network().eval().to(device), []
        model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
        made = adversarial_example(model, cropped, labels, method, rng=rng)
    return Drawn(cropped.cpu(), seen[1 if method.clean_forward else 0].cpu(), made.targets.cpu(), made.images.cpu())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("backend", ["cpu", "triton", "cuda"])
def test_a_seed_draws_the_same_bits_on_every_backend(backend: str, name: str, seed: tuple[int, int]) -> None:
    expected, found = drawn("reference", name, seed), drawn(backend, name, seed)
    assert torch.equal(found.cropped, expected.cropped)
    assert torch.equal(found.start, expected.start)
    if name == "r-rand":
        assert torch.equal(found.targets, expected.targets)
    # The backends round the gradient of the logits differently, so the sign of a gradient near 0 may differ.
    assert float(((found.images - expected.images).abs() > 1e-6).float().mean()) < 0.02
    assert not torch.equal(found.start, drawn(backend, name, (seed[0] + 1, seed[1])).start)
