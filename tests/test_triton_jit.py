"""The Triton launches go through Triton's JIT compiler, which binds arguments as on a GPU.

The tests run this file as a script, in a process where Triton compiles and does not interpret. It makes every launch
with CPU tensors and a stand-in for an sm_90 driver that runs no kernel, and prints a report, which the tests read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")


class Driver:
    """The part of a driver that the JIT compiler needs before a launch."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def launches() -> Iterator[str]:
    """Make one launch after another; yield the name of each."""
    from rmcla_fast.triton_kernels import augment, joint_gradient, perturb_step, random_start, soft_cross_entropy

    images, rng, radii = torch.rand(2, 3, 8, 8), torch.tensor([1, 2]), torch.rand(2)
    labels, dataset = torch.zeros(4, dtype=torch.int64), torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    for number in (0.1, 0.0, 1.0):  # the JIT compiler treats the integers 0 and 1 specially
        perturb_step.perturb_step(images, images, images, number, None, number, None, 0.0, number)
        yield "perturb_step"
        random_start.random_start(images, number, None, rng, 0.0, number, False)
        yield "random_start"
        augment.augment(dataset, labels, rng, int(number), True, 255 * int(number), True)
        yield "augment"
        for classes in (10, 5000):
            logits = torch.randn(4, classes)
            joint_gradient.joint_gradient(logits, labels, "mc", None, 9 + number, 1 + number, None, "main")
            yield f"joint_gradient of {classes}"
            soft_cross_entropy.soft_cross_entropy(logits, labels, "none", True, number / 2)
            yield f"soft_cross_entropy of {classes}"
    for batch in (1, 2, 3, 16):
        more = torch.rand(batch, 3, 8, 8)
        random_start.random_start(more, 0.0, torch.rand(batch), rng, 0.0, 1.0, False)
        yield "random_start, radii"
    for batch in (2, 3, 16):
        more, states = torch.rand(batch, 3, 8, 8), torch.zeros(batch, 2, dtype=torch.int64)
        random_start.random_start(more, 0.0, torch.rand(batch), states, 0.0, 1.0, False)
        yield "random_start, radii and rng of each image"
    perturb_step.perturb_step(images, dataset[:2], images.bfloat16(), 0.0, radii, 0.0, radii[0], 0.0, 1.0)
    yield "perturb_step, radii"
    given: dict[str, Tensor | None] = {"given": labels, "margin": None}
    for target, classes_given in given.items():
        joint_gradient.joint_gradient(logits.bfloat16(), labels, target, classes_given, 9.0, 0.01, 9, "sup")
        yield f"joint_gradient, {target}"
    joint_gradient.redistribute_labels(logits, labels, 9.0, 0.01, None, "main")
    yield "redistribute_labels"
    soft_cross_entropy.soft_cross_entropy(logits, logits.softmax(1), "mean", False, 0.1)
    yield "soft_cross_entropy, soft"


def main() -> None:
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    driver.set_active(Driver())
    run = JITFunction.run
    compiled: list[Any] = []
    asked: list[bool] = []

    def without_launch(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compiled.append(run(self, *arguments, grid=grid, warmup=True, **options))
        asked.append(options.get("enable_fp_fusion", True))

    JITFunction.run = without_launch
    report = [
        {"name": name, "kernel": compiled[-1].hash, "asked": asked[-1], "fused": compiled[-1].metadata.enable_fp_fusion}
        for name in launches()
    ]
    print(json.dumps(report))


@pytest.fixture(scope="module")
def report() -> list[dict[str, Any]]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-W", "ignore", __file__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_a_number_that_changes_causes_no_compilation(report: list[dict[str, Any]]) -> None:
    kernels: dict[str, set[str]] = {}
    for launch in report:
        kernels.setdefault(launch["name"], set()).add(launch["kernel"])
    assert len(kernels) == 14
    assert {name for name, variants in kernels.items() if len(variants) > 1} == set()


def test_noise_and_steps_are_compiled_without_fused_multiply_adds(report: list[dict[str, Any]]) -> None:
    exact = [launch for launch in report if launch["name"].split(",")[0] in ("perturb_step", "random_start")]
    assert len(exact) == 14
    assert not any(launch["fused"] or launch["asked"] for launch in exact)


if __name__ == "__main__":
    main()
