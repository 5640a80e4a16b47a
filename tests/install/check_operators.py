"""Compare every operator of the installed package with its reference, and print the backend that ran on each device."""

from __future__ import annotations

import torch

import rmcla_fast
from rmcla_fast.ops import dispatch


def results(device: str, dtype: torch.dtype, backend: str | None) -> dict[str, tuple[torch.Tensor, ...]]:
    """Return what each operator gives for the same random input, by the operator's name."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(5, 3, 9, 7, generator=generator).to(device, dtype)
    grad = torch.randn(5, 3, 9, 7, generator=generator).to(device, dtype)
    logits = torch.randn(7, 33, generator=generator).to(device, dtype)
    labels = torch.randint(33, (7,), generator=generator).to(device)
    dataset = torch.randint(256, (11, 3, 9, 7), generator=generator, dtype=torch.uint8).to(device)
    index = torch.randint(11, (6,), generator=generator).to(device)
    rng = torch.tensor([3, 5], device=device)
    joint = rmcla_fast.joint_gradient(logits, labels, backend=backend)
    soft = rmcla_fast.redistribute_labels(logits, labels, backend=backend)
    written = {name: torch.empty_like(images) for name in ("step", "start")}
    sizes = {"step_size": 0.05, "epsilon": 0.03}
    rmcla_fast.perturb_step(images, images, grad, **sizes, out=written["step"], backend=backend)
    rmcla_fast.random_start(images, 0.03, rng=rng, out=written["start"], backend=backend)
    return {
        "joint_gradient": tuple(joint),
        "redistribute_labels": (soft, rmcla_fast.redistribute_labels(logits, labels, top_k=4, backend=backend)),
        "perturb_step": (written["step"], rmcla_fast.perturb_step(images, images, grad, **sizes, backend=backend)),
        "random_start": (written["start"], rmcla_fast.random_start(images, 0.03, rng=rng, backend=backend)),
        "augment": (rmcla_fast.augment(dataset, index, rng=rng, backend=backend),),
        "soft_cross_entropy": (
            rmcla_fast.soft_cross_entropy(logits, soft, backend=backend),
            rmcla_fast.soft_cross_entropy(logits, labels, label_smoothing=0.1, backend=backend),
        ),
    }


def main() -> None:
    """Exit with the name of an operator that differs from its reference."""
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            expected = results(device, dtype, "reference")
            for name, got in results(device, dtype, None).items():
                for one, other in zip(got, expected[name], strict=True):
                    exact = name in ("perturb_step", "random_start", "augment")
                    bounds = {"rtol": 0.0, "atol": 0.0} if exact else {}
                    torch.testing.assert_close(one, other, **bounds, msg=f"{name} differs on {device} for {dtype}")
        print(f"{device}: {dispatch.resolve(device, None)}, all {len(expected)} operators equal the reference")


if __name__ == "__main__":
    main()
