"""`perturb_step`: the bits of the oracle on every backend, and no result outside the ball or the pixel range."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from adversarial_inputs import (
    FLOAT_DTYPES,
    IMAGE_LAYOUTS,
    MANY,
    image_shapes,
    lay_out,
    pixels,
    poison_free_memory,
    poisoned,
    with_specials,
)
from conftest import Backend
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_same_bits, assert_threads_change_no_bit
from torch import Tensor

import rmcla_fast
from rmcla_fast.ops.tensors import to_unit

NAN, INF = float("nan"), float("inf")
EPSILON, STEP = 8 / 255, 2 / 255


def expected(
    images: Tensor,
    origin: Tensor,
    grad: Tensor,
    step: float | Tensor,
    epsilon: float | Tensor,
    lower: float,
    upper: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the oracle's result, computed in the dtype of the arithmetic and rounded once to the images' dtype."""
    work = torch.float64 if images.dtype == torch.float64 else torch.float32

    def budget(value: float | Tensor) -> np.ndarray | float:
        if not isinstance(value, Tensor):
            return value
        return value.cpu().numpy().reshape(-1, *[1] * (images.dim() - 1)) if value.dim() else value.cpu().numpy()

    center = origin.cpu().numpy() if origin.dtype == torch.uint8 else origin.cpu().to(work).numpy()
    arrays = images.cpu().to(work).numpy(), center, grad.cpu().to(torch.float64).numpy()
    shares = 1.0 if mask is None else mask.cpu().double().numpy()
    moved = oracle.perturb_step(*arrays, budget(step), budget(epsilon), lower, upper, shares)
    return torch.from_numpy(np.asarray(moved)).to(images.dtype)


def dense_layout(images: Tensor) -> tuple[int, ...]:
    """Return the strides of a result: those of the images if their memory is dense, else contiguous."""
    dense = torch.empty_like(images).stride() == images.stride()
    return images.stride() if dense else images.contiguous().stride()


def test_random_shapes(backend: Backend) -> None:
    kinds = st.sampled_from(("float", "scalar tensor", "per image"))

    @settings(max_examples=backend.examples)
    @given(
        shape=image_shapes(backend.interpreted),
        dtypes=st.tuples(*[st.sampled_from(FLOAT_DTYPES)] * 2, st.sampled_from((*FLOAT_DTYPES, torch.uint8))),
        layouts=st.tuples(*[st.sampled_from(IMAGE_LAYOUTS)] * 3),
        budgets=st.tuples(kinds, kinds),
        bounds=st.sampled_from(((0.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (0.1, 0.7), (0.5, 0.5))),
        out=st.sampled_from((None, None, "contiguous", "transposed", "strided", "images")),
        specials=st.booleans(),
        seed=st.integers(0, 2**31),
    )
    def run(shape, dtypes, layouts, budgets, bounds, out, specials, seed) -> None:
        generator = torch.Generator().manual_seed(seed)
        images = pixels(shape, dtypes[0], backend.device, generator)
        grad = (pixels(shape, torch.float64, backend.device, generator) - 0.5).to(dtypes[1])
        origin = pixels(shape, dtypes[2], backend.device, generator)
        if specials:
            images = with_specials(images, generator, (NAN, INF, -INF))
            grad = with_specials(grad, generator, (NAN, INF, -INF, 0.0))
            origin = with_specials(origin, generator, (NAN,)) if origin.dtype != torch.uint8 else origin
        images, origin, grad = (lay_out(t, name) for t, name in zip((images, origin, grad), layouts, strict=True))

        def budget(kind: str, most: float) -> float | Tensor:
            if kind == "float" or (kind == "per image" and not shape):
                return most * torch.rand((), generator=generator).item()
            size = shape[:1] if kind == "per image" else ()
            drawn = (most * torch.rand(size, generator=generator)).to(backend.device)
            return lay_out(drawn, ("contiguous", "strided", "expanded")[seed % 3])

        step, epsilon = budget(budgets[0], 0.2), budget(budgets[1], 0.2)
        wanted = expected(images, origin, grad, step, epsilon, *bounds)
        buffer = None
        if out == "images" and layouts[0] != "expanded":
            buffer = images
        elif out is not None:
            buffer = lay_out(poisoned(shape, images.dtype, backend.device), out if out != "images" else "contiguous")
        strides = dense_layout(images)
        poison_free_memory(images.numel(), backend.device)
        result = rmcla_fast.perturb_step(
            images,
            origin,
            grad,
            step_size=step,
            epsilon=epsilon,
            lower=bounds[0],
            upper=bounds[1],
            out=buffer,
            backend=backend.name,
        )
        assert_same_bits(result, wanted, "result")
        assert not result.requires_grad
        assert result is buffer if buffer is not None else result.stride() == strides

    run()


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("epsilon", [0.0, 1e-4, 8 / 255, 0.1, 0.3])
def test_no_result_is_outside_the_ball_or_the_range(backend: Backend, dtype: torch.dtype, epsilon: float) -> None:
    """The comparison is in the result's dtype, in which the ends of the ball are rounded too."""
    count = 500 if backend.interpreted else 20_000
    work = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(0)
    for origin_dtype in {dtype, torch.float32, torch.uint8}:
        origin = pixels((count,), origin_dtype, backend.device, generator).clamp(
            0, 255 if origin_dtype == torch.uint8 else 1
        )
        images = pixels((count,), dtype, backend.device, generator)
        grad = torch.randn(count, generator=generator).to(backend.device)
        result = rmcla_fast.perturb_step(
            images, origin, grad, step_size=2 * epsilon, epsilon=epsilon, backend=backend.name
        )
        center = to_unit(origin, work)
        radius = torch.tensor(epsilon, dtype=work, device=backend.device)
        assert bool((result >= (center - radius).to(dtype)).all())
        assert bool((result <= (center + radius).to(dtype)).all())
        assert bool(((result >= 0) & (result <= 1)).all())


def test_every_byte_of_a_uint8_origin(backend: Backend) -> None:
    """Each is divided by 255 with correct rounding; multiplying by the reciprocal is wrong for 126 of the 256."""
    origin = torch.arange(256, dtype=torch.uint8, device=backend.device)
    for dtype in FLOAT_DTYPES:
        images = torch.full((256,), 0.5, dtype=dtype, device=backend.device)
        result = rmcla_fast.perturb_step(images, origin, images, step_size=0.0, epsilon=0.0, backend=backend.name)
        exact = np.arange(256) / 255.0
        work = exact if dtype == torch.float64 else (np.arange(256, dtype=np.float32) / np.float32(255))
        assert_same_bits(result, torch.from_numpy(work).to(dtype), str(dtype))


@pytest.mark.parametrize("grad_dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_signs_of_special_gradients(backend: Backend, dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    """Zeros have sign 0, infinities have +-1, and the smallest numbers of the gradient's dtype keep their sign."""
    smallest = torch.finfo(grad_dtype).smallest_normal
    subnormal = torch.finfo(grad_dtype).smallest_normal * torch.finfo(grad_dtype).eps
    values = [
        0.0,
        -0.0,
        INF,
        -INF,
        smallest,
        -smallest,
        subnormal,
        -subnormal,
        torch.finfo(grad_dtype).max,
        1e-300,
        NAN,
    ]
    grad = torch.tensor(values, dtype=torch.float64).to(grad_dtype).to(backend.device)
    images = torch.full_like(grad, 0.5, dtype=dtype)
    result = rmcla_fast.perturb_step(images, images, grad, step_size=0.25, epsilon=0.5, backend=backend.name)
    above = 0.75 if grad_dtype == torch.float64 else 0.5  # 1e-300 is 0 in every narrower dtype
    wanted = [0.5, 0.5, 0.75, 0.25, 0.75, 0.25, 0.75, 0.25, 0.75, above, NAN]
    assert_same_bits(result, torch.tensor(wanted, dtype=dtype), "result")


@pytest.mark.parametrize("place", ["images", "origin", "grad"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_nan_in_any_input_gives_nan_only_in_its_element(backend: Backend, dtype: torch.dtype, place: str) -> None:
    count = 67
    for index in (0, 1, 31, 64, 66):
        tensors = {
            name: pixels((count,), dtype, backend.device, torch.Generator().manual_seed(seed))
            for seed, name in enumerate(("images", "origin", "grad"))
        }
        good = rmcla_fast.perturb_step(**tensors, step_size=STEP, epsilon=EPSILON, backend=backend.name)
        tensors[place][index] = NAN
        result = rmcla_fast.perturb_step(**tensors, step_size=STEP, epsilon=EPSILON, backend=backend.name)
        good[index] = NAN
        assert_same_bits(result, good, place)


@pytest.mark.parametrize("alias", ["images", "origin", "grad"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 3, 5, 5), (2, 3, 8, 8), (1037,)], ids=str)
def test_out_may_be_any_input(backend: Backend, dtype: torch.dtype, alias: str, shape: tuple[int, ...]) -> None:
    for layout in ("contiguous", "channels_last", "strided"):
        tensors = {
            name: lay_out(
                pixels(shape, dtype, backend.device, torch.Generator().manual_seed(seed)) - 0.5 * (name == "grad"),
                layout,
            )
            for seed, name in enumerate(("images", "origin", "grad"))
        }
        wanted = expected(*tensors.values(), STEP, EPSILON, 0.0, 1.0)
        untouched = {name: tensor.clone() for name, tensor in tensors.items() if name != alias}
        result = rmcla_fast.perturb_step(
            **tensors, step_size=STEP, epsilon=EPSILON, out=tensors[alias], backend=backend.name
        )
        assert result is tensors[alias]
        assert_same_bits(result, wanted, f"out={alias}, {layout}")
        for name, tensor in untouched.items():
            assert torch.equal(tensors[name], tensor), f"{name} was written"


def test_out_writes_nothing_outside_itself(backend: Backend) -> None:
    buffer = torch.full((2, 3, 4, 9), 7.0, device=backend.device)
    images = pixels((2, 3, 4, 4), torch.float32, backend.device, torch.Generator().manual_seed(0))
    rmcla_fast.perturb_step(
        images, images, images, step_size=STEP, epsilon=EPSILON, out=buffer[..., 1::2], backend=backend.name
    )
    assert bool((buffer[..., 0::2] == 7.0).all())
    assert not bool((buffer[..., 1::2] == 7.0).any())


def test_a_bad_radius_in_a_tensor_gives_nan_only_in_its_image(backend: Backend) -> None:
    images = pixels((4, 3, 5, 5), torch.float32, backend.device, torch.Generator().manual_seed(0)).clamp(0, 1)
    epsilon = torch.tensor([0.1, -0.1, NAN, 0.0], device=backend.device)
    result = rmcla_fast.perturb_step(images, images, images, step_size=1.0, epsilon=epsilon, backend=backend.name)
    assert bool(result[1:3].isnan().all())
    assert torch.equal(result[3], images[3])
    assert bool(result[0].isfinite().all())


def test_steps_and_radii_that_are_not_finite(backend: Backend) -> None:
    """An infinite ball clips nothing. An infinite step ends at the edge, or with sign 0 in NaN, as the formula says."""
    images = pixels((6, 3, 3, 4), torch.float32, backend.device, torch.Generator().manual_seed(0)).clamp(0, 1)
    grad = images.flip(0) - 0.5
    grad[:, 0] = 0
    step = torch.tensor([INF, -INF, NAN, 0.1, INF, 0.0], device=backend.device)
    epsilon = torch.tensor([0.1, 0.1, 0.1, INF, INF, 0.0], device=backend.device)
    result = rmcla_fast.perturb_step(images, images, grad, step_size=step, epsilon=epsilon, backend=backend.name)
    assert_same_bits(result, expected(images, images, grad, step, epsilon, 0.0, 1.0), "result")


def test_an_infinite_origin(backend: Backend) -> None:
    """Its ball is at infinity, and infinity minus the infinite radius is NaN, as the formula says."""
    origin = torch.tensor([INF, -INF, INF, -INF], device=backend.device)
    epsilon = torch.tensor([0.1, 0.1, INF, INF], device=backend.device)
    for dtype in FLOAT_DTYPES:
        images = torch.full((4,), 0.5, dtype=dtype, device=backend.device)
        arguments = {"step_size": 0.1, "epsilon": epsilon, "backend": backend.name}
        result = rmcla_fast.perturb_step(images, origin, images, **arguments)
        assert_same_bits(result, torch.tensor([1.0, 0.0, NAN, NAN], dtype=dtype), "result")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's and Triton's interpreter's, for the infinities
def test_numbers_beyond_float32_are_infinite_in_its_arithmetic(backend: Backend) -> None:
    for dtype in FLOAT_DTYPES:
        images = pixels((3, 5), dtype, backend.device, torch.Generator().manual_seed(0))
        for step, epsilon in ((0.1, 1e300), (1e300, 0.1), (1e300, 1e300)):
            wanted = expected(images, images, images, step, epsilon, -1e300, 1e300)
            arguments = {"step_size": step, "epsilon": epsilon, "lower": -1e300, "upper": 1e300}
            result = rmcla_fast.perturb_step(images, images, images, **arguments, backend=backend.name)
            assert_same_bits(result, wanted, "result")


def test_a_million_and_one_elements(backend: Backend) -> None:
    count = 4_099 if backend.interpreted else MANY
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        images, origin = (
            pixels((count,), dtype, backend.device, generator),
            pixels((count,), torch.uint8, backend.device, generator),
        )
        grad = torch.randn(count, generator=generator).to(backend.device)
        out = poisoned((count,), dtype, backend.device)
        result = rmcla_fast.perturb_step(images, origin, grad, step_size=STEP, epsilon=EPSILON, backend=backend.name)
        rmcla_fast.perturb_step(images, origin, grad, step_size=STEP, epsilon=EPSILON, out=out, backend=backend.name)
        wanted = expected(images, origin, grad, STEP, EPSILON, 0.0, 1.0)
        assert_same_bits(result, wanted, "result")
        assert_same_bits(out, wanted, "out")


def test_repeated_calls_and_threads_change_no_bit(backend: Backend) -> None:
    shape = (2, 3, 8, 8) if backend.interpreted else (16, 3, 64, 64)
    images = pixels(shape, torch.float32, backend.device, torch.Generator().manual_seed(0))
    rule = {"step_size": STEP, "epsilon": EPSILON, "backend": backend.name}
    assert_threads_change_no_bit(lambda: rmcla_fast.perturb_step(images, images.flip(0), images, **rule))


def test_the_result_never_requires_grad(backend: Backend) -> None:
    images = torch.rand(2, 3, 4, 4, device=backend.device, requires_grad=True)
    result = rmcla_fast.perturb_step(images, images, images, step_size=STEP, epsilon=EPSILON, backend=backend.name)
    assert not result.requires_grad


def test_opcheck(backend: Backend) -> None:
    operator = backend.operator("perturb_step")
    for dtype in (torch.float32, torch.bfloat16):
        for layout in ("contiguous", "channels_last", "strided"):
            images = lay_out(torch.rand(2, 3, 4, 4, device=backend.device).to(dtype), layout)
            origin, grad = torch.rand(2, 3, 4, 4, device=backend.device), torch.randn(2, 3, 4, 4, device=backend.device)
            steps = torch.tensor([0.1, 0.2], device=backend.device)
            torch.library.opcheck(operator.default, (images, origin, grad, STEP, None, 0.0, steps, 0.0, 1.0))
        arguments = (images.contiguous(), origin, grad, 0.0, steps, EPSILON, None, 0.0, 1.0)
        torch.library.opcheck(
            operator.out, arguments, {"out": torch.empty(2, 3, 4, 4, dtype=dtype, device=backend.device)}
        )
