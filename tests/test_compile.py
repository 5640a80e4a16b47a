"""`torch.compile(fullgraph=True)`: no operator breaks the graph, changes its results or compiles more than needed.

Compiling is slow, so that each backend has only two graphs with all operators, one without and one with gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from adversarial_inputs import pixels
from conftest import Backend
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import rmcla_fast


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def inputs(device: torch.device, batch: int = 6, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    images = pixels((batch, 3, 4, 4), dtype, device, generator)
    return {
        "images": images,
        "origin": pixels((batch, 3, 4, 4), torch.uint8, device, generator),
        "grad": torch.randn(images.shape, generator=generator).to(device).contiguous(memory_format=torch.channels_last),
        "logits": torch.randn(batch, 10, generator=generator).to(device, dtype),
        "labels": torch.randint(0, 10, (batch,), generator=generator).to(device),
        "rng": torch.tensor([7, 8], device=device),
        "rngs": torch.randint(-9, 9, (batch, 2), generator=generator).to(device),
        "budget": torch.rand(batch, generator=generator).to(device),
        "mask": torch.rand(batch, 1, 4, 4, generator=generator).to(device),
    }


def every_operator(backend: str) -> Callable[..., list[Tensor]]:
    """Return a function that calls each public function, with and without `out` and with different options."""

    def function(images, origin, grad, logits, labels, rng, rngs, budget, mask) -> list[Tensor]:
        start = rmcla_fast.random_start(images, 0.1, rng=rng, clip=True, backend=backend)
        rmcla_fast.random_start(images, budget, rng=rng, out=start, backend=backend)
        alone = rmcla_fast.random_start(images, budget, rng=rngs, backend=backend)
        step = rmcla_fast.perturb_step(start, origin, grad, step_size=0.1, epsilon=0.1, backend=backend)
        into = torch.empty_like(step)
        rmcla_fast.perturb_step(start, images, grad, step_size=budget, epsilon=budget, out=into, backend=backend)
        masked = rmcla_fast.random_start(images, 0.1, rng=rng, mask=mask > 0.5, backend=backend)
        rmcla_fast.random_start(images, budget, rng=rngs, mask=mask, out=masked, backend=backend)
        part = {"step_size": budget, "epsilon": 0.1, "mask": mask[0, 0] > 0.5, "backend": backend}
        masked_step = rmcla_fast.perturb_step(masked, origin, grad, **part)
        rmcla_fast.perturb_step(masked, origin, grad, **{**part, "mask": mask}, out=masked)
        joint = rmcla_fast.joint_gradient(logits, labels, top_k=3, backend=backend)
        no_labels = rmcla_fast.joint_gradient(
            logits, labels, target=joint.targets, label_scheme="none", backend=backend
        )
        objective = rmcla_fast.joint_objective(logits, labels, target="margin", label_scheme="sup", backend=backend)
        soft = rmcla_fast.redistribute_labels(logits, labels, beta=11.0, backend=backend)
        buffer = torch.empty_like(soft)
        rmcla_fast.redistribute_labels(logits, labels, label_scheme="sup", out=buffer, backend=backend)
        loss = rmcla_fast.soft_cross_entropy(logits, soft, backend=backend)
        indices = rmcla_fast.soft_cross_entropy(logits, labels, reduction="none", label_smoothing=0.1, backend=backend)
        elements = [start, alone, step, into, masked, masked_step]
        return [*elements, *joint, *no_labels[:2], no_labels[3], *objective, soft, buffer, loss, indices]

    return function


def with_gradients(backend: str) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function of the objective of an attack and the loss of an update, to be compiled with its backward."""

    def function(inputs: Tensor, weight: Tensor, labels: Tensor, soft: Tensor) -> tuple[Tensor, ...]:
        out = rmcla_fast.joint_objective(inputs @ weight, labels, backend=backend)
        loss = rmcla_fast.soft_cross_entropy(
            (inputs @ weight).tanh(), soft.softmax(1), label_smoothing=0.1, backend=backend
        )
        return out.objective.sum(), loss, out.soft_labels

    return function


def test_every_operator_compiles_without_a_graph_break(backend: Backend) -> None:
    function = every_operator(backend.name)
    compiled = torch.compile(function, fullgraph=True)
    for batch in (6, 5):  # the second compilation is for any batch size
        arguments = inputs(backend.device, batch)
        expected, got = function(**arguments), compiled(**arguments)
        for place, (left, right) in enumerate(zip(expected, got, strict=True)):
            assert left.dtype == right.dtype
            assert left.stride() == right.stride(), place
            assert torch.equal(left, right), place
            assert not right.requires_grad


def test_gradients_compile_without_a_graph_break(backend: Backend) -> None:
    function = with_gradients(backend.name)
    compiled = torch.compile(function, fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    images, weight, soft = (
        torch.randn(shape, generator=generator).to(backend.device) for shape in ((6, 8), (8, 10), (6, 10))
    )
    labels = torch.tensor([0, 1, 2, 9, 9, 5], device=backend.device)
    results = []
    for call in (function, compiled):
        leaves = [tensor.clone().requires_grad_() for tensor in (images, weight, soft)]
        objective, loss, soft_labels = call(leaves[0], leaves[1], labels, leaves[2])
        assert not soft_labels.requires_grad
        (objective + 3 * loss).backward()
        results.append([objective, loss, soft_labels, *[leaf.grad for leaf in leaves]])
    for place, (left, right) in enumerate(zip(*results, strict=True)):
        assert torch.allclose(left, right, rtol=1e-5, atol=1e-6), place


def test_half_precision_compiles_to_the_same_bits(backend: Backend) -> None:
    function = every_operator(backend.name)
    arguments = inputs(backend.device, dtype=torch.bfloat16)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for place, (left, right) in enumerate(zip(function(**arguments), compiled(**arguments), strict=True)):
        assert torch.equal(left, right), place


def compilations(function: Callable[..., Any], calls: list[dict[str, Any]]) -> int:
    """Return how often `function` is compiled for `calls`; check that compiled calls give the function's results."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for arguments in calls:
        got, expected = compiled(**arguments), function(**arguments)
        for left, right in zip(*((r,) if isinstance(r, Tensor) else r for r in (got, expected)), strict=True):
            assert torch.equal(left, right)
    return counter.frame_count


def test_a_number_compiles_at_most_once_per_value_and_a_tensor_once(backend: Backend) -> None:
    """PyTorch compiles an operator with floats in its schema for each of their values.

    The checks cause no further compilation, also when the number becomes symbolic. An epsilon in a tensor is compiled
    once, so that a schedule can change it.
    """
    tensors = inputs(backend.device)
    step = {name: tensors[name] for name in ("images", "origin", "grad")}
    rows = {name: tensors[name] for name in ("logits", "labels")}
    numbers, name = (0.1, 0.2, 0.3), backend.name
    functions: list[tuple[Callable[..., Any], list[dict[str, Any]]]] = [
        (
            lambda **k: rmcla_fast.perturb_step(**k, step_size=0.1, backend=name),
            [{**step, "epsilon": x} for x in numbers],
        ),
        (
            lambda **k: rmcla_fast.perturb_step(**k, epsilon=0.1, backend=name),
            [{**step, "step_size": x} for x in numbers],
        ),
        (
            lambda epsilon: rmcla_fast.random_start(tensors["images"], epsilon, rng=tensors["rng"], backend=name),
            [{"epsilon": x} for x in numbers],
        ),
        (lambda **k: rmcla_fast.redistribute_labels(**k, backend=name), [{**rows, "beta": x} for x in numbers]),
        (lambda **k: rmcla_fast.joint_gradient(**k, backend=name), [{**rows, "gamma": x} for x in numbers]),
        (
            lambda **k: rmcla_fast.soft_cross_entropy(**k, backend=name),
            [{**rows, "label_smoothing": x / 10} for x in numbers],
        ),
    ]
    for function, calls in functions:
        assert compilations(function, calls) <= len(numbers)
    for place in (0, 2):  # epsilon of perturb_step and of random_start
        function, calls = functions[place]
        in_tensors = [{**call, "epsilon": torch.tensor(call["epsilon"], device=backend.device)} for call in calls]
        assert compilations(function, in_tensors) == 1


def test_a_second_derivative_raises_in_compiled_code_too(backend: Backend) -> None:
    logits = torch.randn(3, 6, device=backend.device, requires_grad=True)
    labels = torch.tensor([0, 5, 2], device=backend.device)
    name = backend.name
    for function in (
        lambda z: rmcla_fast.joint_objective(z, labels, backend=name).objective.sum(),
        lambda z: rmcla_fast.soft_cross_entropy(z, labels, backend=name),
    ):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        with pytest.raises(RuntimeError):
            torch.autograd.grad(compiled(logits), logits, create_graph=True)[0].sum().backward()
