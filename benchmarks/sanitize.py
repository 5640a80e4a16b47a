"""Run the kernels of every operator once on each path through them, for compute-sanitizer to check.

PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python benchmarks/sanitize.py
"""

from __future__ import annotations

import torch

import rmcla_fast
from rmcla_fast.ops import dispatch

# These sizes use rows in a warp, in a block and in shared memory, with and without packing. Triton gets fewer of them,
# because it compiles for each dtype and most sizes.
CLASSES = {"cuda": (2, 10, 100, 129, 1000, 1023, 21841), "triton": (10, 1000, 21841)}
PIXELS = (0, 1, 1023, 12288, 1000001)
DTYPES = {
    "cuda": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16),
}
RULES = (("main", None), ("main", 9), ("sup", 1), ("sup", None), ("none", None))


def rows(device: torch.device, backend: str) -> None:
    for classes in CLASSES[backend]:
        for dtype in DTYPES[backend]:
            logits = torch.randn(5, classes, device=device).to(dtype)
            logits[1] = float("nan")
            labels = torch.randint(0, classes, (5,), device=device)
            labels[2] = classes  # it is no class, so the row becomes NaN and nothing outside is read
            for scheme, top_k in RULES:
                options = {"top_k": top_k, "label_scheme": scheme, "backend": backend}
                joint = rmcla_fast.joint_gradient(logits, labels, **options)
            for target in ("ll", "untargeted", "margin", labels):
                joint = rmcla_fast.joint_gradient(logits, labels, target=target, backend=backend)
            rmcla_fast.redistribute_labels(logits[1:], labels[1:], out=joint.soft_labels[:-1], backend=backend)
            rmcla_fast.soft_cross_entropy(logits, labels, backend=backend)
            rmcla_fast.soft_cross_entropy(logits, joint.soft_labels.requires_grad_(), backend=backend)


def elements(device: torch.device, backend: str) -> None:
    rng = torch.tensor([3, 5], device=device)
    for count in PIXELS:
        for dtype in DTYPES[backend]:
            for first in (0, min(1, count)):  # aligned to 16 bytes, and not aligned
                images = torch.rand(count, device=device).to(dtype)[first:]
                grad = torch.randn(count, device=device).to(dtype)[first:]
                start = rmcla_fast.random_start(images, 8 / 255, rng=rng, clip=True, backend=backend)
                rmcla_fast.perturb_step(start, images, grad, step_size=0.1, epsilon=0.1, out=start, backend=backend)
                byte = torch.zeros(count, device=device, dtype=torch.uint8)[first:]
                rmcla_fast.random_start(byte, 8 / 255, rng=rng, backend=backend)
                rmcla_fast.perturb_step(start, byte, grad.float(), step_size=0.1, epsilon=0.1, backend=backend)
    for size in (2, 9, 32):  # many images in a block, vectors that meet two images, one image in several blocks
        dataset = torch.zeros(7, 3, size, size, device=device, dtype=torch.uint8)
        index = torch.tensor([0, 6, 7, -1, 3], device=device).repeat(100)  # two of five are no image
        radii = torch.full((len(dataset),), 0.1, device=device)
        start = rmcla_fast.random_start(dataset, radii, rng=rng, backend=backend)
        rmcla_fast.perturb_step(start, dataset, start, step_size=radii, epsilon=radii, backend=backend)
        for shape in ((size, size), (7, 1, size, size), (7, 3, size, size)):  # repeated in memory, broadcast, and whole
            for mask in (torch.ones(shape, device=device), torch.ones(shape, device=device, dtype=torch.bool)):
                for state in (rng, rng.expand(7, 2)):
                    rmcla_fast.random_start(start, radii, rng=state, mask=mask, backend=backend)
                rmcla_fast.perturb_step(start, dataset, start, step_size=radii, epsilon=0.1, mask=mask, backend=backend)
        for layout in (torch.contiguous_format, torch.channels_last):
            rmcla_fast.augment(dataset, index, rng=rng, memory_format=layout, backend=backend)


def main() -> None:
    device = torch.device("cuda")
    for backend in ("cuda", "triton"):
        reason = dispatch.why_not("cuda", backend)
        if reason:
            print(f"{backend}: not run, because {reason}")
            continue
        rows(device, backend)
        elements(device, backend)
        torch.cuda.synchronize()
        print(f"{backend}: done")


if __name__ == "__main__":
    main()
