"""The operator of `examples/own_operator.py` equals plain torch, and PyTorch's own checks of operators pass."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rmcla_fast.ops.dispatch import why_not

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_operator.py"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if reason := why_not(DEVICE, "triton"):
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("own_operator", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (1, 1, 1, 1), (2, 3, 5, 7), (0, 1, 8, 8)])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "every second image"])
def test_it_equals_plain_torch(example: ModuleType, shape: tuple[int, ...], layout: str) -> None:
    generator = torch.Generator().manual_seed(1)
    doubled = (2 * shape[0], *shape[1:])
    grad, velocity = (torch.randn(doubled, generator=generator).to(DEVICE) for _ in range(2))
    if layout == "every second image":
        grad, velocity = grad[::2], velocity[::2]
    else:
        kept = torch.channels_last if layout == "channels last" else torch.contiguous_format
        grad, velocity = (tensor[: shape[0]].contiguous(memory_format=kept) for tensor in (grad, velocity))
    for decay in (0.0, 0.7):
        expected = example.plain_accumulate(grad, velocity, decay)
        torch.testing.assert_close(example.accumulate(grad, velocity, decay), expected, rtol=1e-5, atol=1e-5)


def test_a_gradient_of_zero_leaves_the_velocity(example: ModuleType) -> None:
    velocity = torch.randn(2, 1, 4, 4, device=DEVICE)
    assert torch.equal(example.accumulate(torch.zeros_like(velocity), velocity, 1.0), velocity)


def test_pytorch_accepts_the_operator(example: ModuleType) -> None:
    grad, velocity = (torch.randn(2, 1, 4, 4, device=DEVICE) for _ in range(2))
    torch.library.opcheck(example.accumulate, (grad, velocity, 0.5))


def test_its_attack_stays_in_the_ball(example: ModuleType) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 10)).to(DEVICE)
    images, labels = torch.rand(4, 1, 4, 4, device=DEVICE), torch.arange(4, device=DEVICE)
    moved = example.attack(network, images, labels, decay=1.0)
    assert (moved - images).abs().max() <= example.EPSILON + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert not torch.equal(moved, images)
