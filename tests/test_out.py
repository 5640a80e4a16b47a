"""Every operator with `out`: it may share memory with any input, and autograd notices that it was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from all_kernels import Operators, _operators  # noqa: F401  (a fixture)
from conftest import Backend
from torch import Tensor

import rmcla_fast

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Triton's interpreter, for rows beyond the batch

IMAGES = (3, 3, 25, 31)  # more elements than one block of any backend
CLASSES = 12
ROWS = 19


class Call(NamedTuple):
    """A call of a registered operator: `values` has the arguments of its schema, and `dtype` is that of the result."""

    operator: str
    values: dict[str, Any]
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> torch.Size:
        shape: torch.Size = next(iter(self.values.values())).shape
        return shape


def perturb(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    origin: torch.dtype,
    grad: torch.dtype,
    each: bool,
    mask: Tensor | None = None,
) -> Call:
    """Return a call of perturb_step with tensors of steps and radii: one value for each image, or only one."""
    size = shape[:1] if each else ()
    values = {
        "images": torch.rand(shape).to(dtype),
        "origin": (255 * torch.rand(shape)).to(origin) if origin == torch.uint8 else torch.rand(shape).to(origin),
        "grad": torch.randn(shape).to(grad),
        "step_size": 0.0,
        "step_sizes": torch.rand(size),
        "epsilon": 0.0,
        "epsilons": 0.3 * torch.rand(size),
        "lower": 0.0,
        "upper": 1.0,
        "mask": mask,
    }
    return Call("perturb_step", values, dtype)


def start(dtype: torch.dtype, each: bool, rng_each: bool = False, mask: Tensor | None = None) -> Call:
    values = {
        "images": (255 * torch.rand(IMAGES)).to(dtype) if dtype == torch.uint8 else torch.rand(IMAGES).to(dtype),
        "epsilon": 0.0,
        "epsilons": torch.rand(IMAGES[:1] if each else ()),
        "rng": torch.tensor([[3, 4], [5, 6], [7, 8]] if rng_each else [3, 4]),
        "lower": 0.0,
        "upper": 1.0,
        "clip": False,
        "mask": mask,
    }
    return Call("random_start", values, torch.float32 if dtype == torch.uint8 else dtype)


def redistribute(dtype: torch.dtype, top_k: int | None) -> Call:
    values = {
        "logits": torch.randn(ROWS, CLASSES).to(dtype),
        "labels": torch.arange(ROWS) % CLASSES,
        "beta": 9.0,
        "gamma": 0.01,
        "top_k": top_k,
        "label_scheme": "main",
    }
    return Call("redistribute_labels", values, torch.float64 if dtype == torch.float64 else torch.float32)


def calls() -> list[Call]:
    torch.manual_seed(0)
    f16, bf16, f32, f64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
    return [
        perturb(IMAGES, f32, f32, f32, each=True),
        perturb(IMAGES, f32, torch.uint8, bf16, each=True),
        perturb(IMAGES, bf16, f32, f64, each=False),
        perturb(IMAGES, f64, f16, f32, each=True),
        perturb((300,), f32, f32, f32, each=True),  # the radii have the shape of the images
        start(f32, each=True),
        start(torch.uint8, each=True),
        start(bf16, each=False),
        start(f32, each=True, rng_each=True),
        start(torch.uint8, each=False, rng_each=True),
        perturb(IMAGES, f32, f32, f32, each=True, mask=torch.rand(IMAGES)),
        perturb((2, 3, 16, 16), f32, torch.uint8, bf16, each=True, mask=torch.rand(16, 16)),
        start(torch.uint8, each=False, rng_each=True, mask=torch.rand(IMAGES) < 0.5),
        redistribute(f32, None),
        redistribute(f32, 4),
        redistribute(bf16, None),
        redistribute(f64, None),
    ]


def describe(call: Call) -> str:
    dtypes = [str(value.dtype).removeprefix("torch.") for value in call.values.values() if isinstance(value, Tensor)]
    return "-".join([call.operator, *dtypes])


def on_device(call: Call, device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in call.values.items()}


def in_memory(memory: Tensor, begin: int, tensor: Tensor, gap: int = 1) -> Tensor:
    """Return a view of the bytes `memory` from byte `begin` on: dense, or with each `gap`-th element of the memory."""
    elements = memory[begin : begin + gap * tensor.numel() * tensor.element_size()].view(tensor.dtype)
    return elements[::gap].view(tensor.shape)


@pytest.mark.parametrize("call", calls(), ids=describe)
def test_out_may_share_memory_with_any_input(operators: Operators, call: Call) -> None:
    """`out` begins before, at or after each input in turn, by elements and by most of its size, or lies in its gaps."""
    values = on_device(call, operators.backend.device)
    expected = operators.call(call.operator, *values.values())
    for name, value in values.items():
        if not isinstance(value, Tensor):
            continue
        size = expected.numel() * expected.element_size()
        room = max(size, value.numel() * value.element_size())
        for shift in (-room + 16, -room // 2 // 16 * 16, -16, -8, 0, 8, 16, 48, room // 2 // 16 * 16, room - 16):
            memory = torch.zeros(4 * room + 64, dtype=torch.uint8, device=operators.backend.device)
            shared = in_memory(memory, room // 16 * 16 + 16, value).copy_(value)
            out = in_memory(memory, room // 16 * 16 + 16 + shift, expected)
            operators.call(call.operator, *(values | {name: shared}).values(), out=out)
            assert torch.equal(out, expected), f"{name}, {shift} bytes"
        memory = torch.zeros(2 * room + 64, dtype=torch.uint8, device=operators.backend.device)
        shared = in_memory(memory, 0, value, gap=2).copy_(value)
        out = in_memory(memory, expected.element_size(), expected, gap=2)
        operators.call(call.operator, *(values | {name: shared}).values(), out=out)
        assert torch.equal(out, expected), f"{name}, interleaved"


@pytest.mark.parametrize("call", calls(), ids=describe)
def test_out_may_be_another_storage_on_the_memory_of_an_input(operators: Operators, call: Call) -> None:
    """Two tensors on one memory can have two storages, for example if both come from one NumPy array."""
    values = on_device(call, operators.backend.device)
    expected = operators.call(call.operator, *values.values())
    for name, value in values.items():
        if not isinstance(value, Tensor):
            continue
        room = max(expected.numel() * expected.element_size(), value.numel() * value.element_size())
        memory = torch.zeros(room + 16, dtype=torch.uint8, device=operators.backend.device)
        shared = in_memory(memory, 0, value).copy_(value)
        out = in_memory(torch.from_dlpack(memory), 16, expected)
        operators.call(call.operator, *(values | {name: shared}).values(), out=out)
        assert torch.equal(out, expected), name


@pytest.mark.parametrize("fullgraph", [False, True])
def test_radii_in_the_memory_of_the_images(backend: Backend, fullgraph: bool) -> None:
    """The radii are read before they are overwritten, also if the call is compiled."""

    def step(x: Tensor) -> Tensor:
        radii = x.view(-1)[:2]
        grad = torch.ones_like(x)
        return rmcla_fast.perturb_step(x, x.clone(), grad, step_size=radii, epsilon=radii, out=x, backend=backend.name)

    torch._dynamo.reset()
    call = torch.compile(step, fullgraph=True) if fullgraph else step
    images = torch.tensor([[0.5, 0.1], [0.8, 0.7]], device=backend.device)
    result = call(images)
    expected = torch.tensor([[1.0, 0.6], [0.9, 0.8]], device=backend.device)
    assert torch.allclose(result, expected)
    assert torch.allclose(images, expected)


SIZE = 2052


def perturb_images(tensor: Tensor, out: Tensor, backend: str) -> None:
    origin, grad = torch.zeros_like(tensor), torch.ones_like(tensor)
    rmcla_fast.perturb_step(tensor, origin, grad, step_size=0.1, epsilon=2.0, out=out, backend=backend)


def start_images(tensor: Tensor, out: Tensor, backend: str) -> None:
    rng = torch.tensor([3, 4], device=tensor.device)
    rmcla_fast.random_start(tensor, 0.1, rng=rng, out=out, backend=backend)


def redistribute_rows(tensor: Tensor, out: Tensor, backend: str) -> None:
    rows = tensor.view(-1, 12)
    labels = torch.arange(len(rows), device=tensor.device) % 12
    rmcla_fast.redistribute_labels(rows, labels, out=out.view(-1, 12), backend=backend)


@pytest.mark.parametrize("operator", [perturb_images, start_images, redistribute_rows])
def test_autograd_sees_that_out_was_written(backend: Backend, operator: Callable[[Tensor, Tensor, str], None]) -> None:
    """If `out` was saved for a backward pass, that pass must fail after `out` was written."""
    tensor = torch.rand(SIZE, device=backend.device)
    out = torch.rand(SIZE, device=backend.device)
    weight = torch.ones(SIZE, device=backend.device, requires_grad=True)
    product = (weight * out).sum()
    operator(tensor, out, backend.name)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("operator", [perturb_images, start_images, redistribute_rows])
def test_an_out_of_inference_mode_is_refused_outside_of_it(
    backend: Backend, operator: Callable[[Tensor, Tensor, str], None]
) -> None:
    tensor = torch.rand(SIZE, device=backend.device)
    with torch.inference_mode():
        out = torch.full((SIZE,), 7.0, device=backend.device)
        operator(tensor, out, backend.name)
        out.fill_(7.0)
    with pytest.raises(ValueError, match="out was made in inference mode and must not be written outside of it"):
        operator(tensor, out, backend.name)
    assert (out == 7).all()
