"""Every operator's kernels once, on sizes that reach each of their paths: what compute-sanitizer watches.

compute-sanitizer --tool memcheck python benchmarks/sanitize.py
"""

from __future__ import annotations

import torch

import rmcla_fast
from rmcla_fast import backend as backends

CLASSES = (2, 10, 100, 129, 1000, 1023, 21841)
PIXELS = (0, 1, 1023, 12288, 1000001)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def rows(device: torch.device, backend: str) -> None:
    for classes in CLASSES:
        for dtype in DTYPES:
            logits = torch.randn(5, classes, device=device, dtype=dtype)
            logits[1] = float("nan")
            labels = torch.randint(0, classes, (5,), device=device)
            labels[2] = classes  # no class: a row of NaN, and no read outside
            for scheme in ("main", "sup", "none"):
                for top_k in (None, 1, 9):
                    options = {"top_k": top_k, "label_scheme": scheme, "backend": backend}
                    joint = rmcla_fast.joint_gradient(logits, labels, **options)
            for target in ("ll", "untargeted", "margin", labels):
                joint = rmcla_fast.joint_gradient(logits, labels, target=target, backend=backend)
            rmcla_fast.redistribute_labels(logits, labels, out=joint.soft_labels, backend=backend)
            rmcla_fast.soft_cross_entropy(logits, labels, backend=backend)
            rmcla_fast.soft_cross_entropy(logits, joint.soft_labels.requires_grad_(), backend=backend)


def elements(device: torch.device, backend: str) -> None:
    rng = torch.tensor([3, 5], device=device)
    for count in PIXELS:
        for dtype in DTYPES:
            images = torch.rand(count, device=device).to(dtype)
            grad = torch.randn(count, device=device).to(dtype)
            start = rmcla_fast.random_start(images, 8 / 255, rng=rng, clip=True, backend=backend)
            rmcla_fast.perturb_step(start, images, grad, step_size=0.1, epsilon=0.1, out=start, backend=backend)
            byte = torch.zeros(count, device=device, dtype=torch.uint8)
            rmcla_fast.perturb_step(start, byte, grad.float(), step_size=0.1, epsilon=0.1, backend=backend)
    dataset = torch.zeros(7, 3, 32, 32, device=device, dtype=torch.uint8)
    index = torch.tensor([0, 6, 7, -1, 3], device=device)  # two are no image
    for layout in (torch.contiguous_format, torch.channels_last):
        rmcla_fast.augment_start(dataset, index, rng=rng, epsilon=0.1, memory_format=layout, backend=backend)


def main() -> None:
    device = torch.device("cuda")
    for backend in ("cuda", "triton"):
        reason = backends.why_not("cuda", backend)
        if reason:
            print(f"{backend}: not run, {reason}")
            continue
        rows(device, backend)
        elements(device, backend)
        torch.cuda.synchronize()
        print(f"{backend}: done")


if __name__ == "__main__":
    main()
