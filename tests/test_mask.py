"""The mask of `perturb_step` and `random_start`: the bits of the oracle, and pixels that do not move."""

from __future__ import annotations

from typing import Any

import pytest
import test_perturb_step
import test_random_start
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
from test_random_start import rng_of
from tolerances import assert_same_bits, assert_threads_change_no_bit
from torch import Tensor

import rmcla_fast
from rmcla_fast.ops.tensors import to_unit

NAN, INF = float("nan"), float("inf")
EPSILON, STEP = 8 / 255, 2 / 255
MASK_DTYPES = (torch.bool, *FLOAT_DTYPES)
# Masks of images (B, C, H, W), as which dimensions they have and which of these are of size 1.
FORMS = ("HW", "W", "11HW", "C11", "CHW", "1CHW", "B1HW", "B111", "BCHW", "1", "")


def shares(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, generator: torch.Generator, nan: bool = False
) -> Tensor:
    """Draw a mask in which a third of the values are 0, a third 1, and a third, unless it is bool, between them."""
    drawn = (1.5 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.25).clamp(0, 1)
    drawn = torch.where(torch.rand(shape, generator=generator) < 0.3, drawn.round(), drawn)
    mask = (drawn > 0.5) if dtype == torch.bool else drawn.to(dtype)
    return (with_specials(mask, generator, (NAN,)) if nan and dtype != torch.bool else mask).to(device)


def shape_of(form: str, images: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the mask: each letter of the form takes a dimension, aligned at the last one."""
    kept = images[len(images) - len(form) :] if form else ()
    return tuple(1 if letter == "1" else size for letter, size in zip(form, kept, strict=True))


class Case:
    """Tensors for both operators, from a seed."""

    def __init__(self, backend: Backend, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.backend = backend
        self.images = pixels(shape, dtype, backend.device, self.generator)
        self.origin = pixels(shape, torch.float32, backend.device, self.generator)
        self.grad = torch.randn(shape, generator=self.generator).to(backend.device)

    def mask(self, shape: tuple[int, ...], dtype: torch.dtype, nan: bool = False) -> Tensor:
        return shares(shape, dtype, self.backend.device, self.generator, nan)

    def step(self, mask: Tensor | None, **options: Any) -> Tensor:
        rule = {"step_size": STEP, "epsilon": EPSILON, "backend": self.backend.name, **options}
        return rmcla_fast.perturb_step(self.images, self.origin, self.grad, mask=mask, **rule)

    def expected_step(self, mask: Tensor | None, step: Any = STEP, epsilon: Any = EPSILON) -> Tensor:
        return test_perturb_step.expected(self.images, self.origin, self.grad, step, epsilon, 0.0, 1.0, mask)

    def start(self, mask: Tensor | None, epsilon: Any = EPSILON, **options: Any) -> Tensor:
        rule = {"rng": rng_of(3, 4, self.backend.device), "backend": self.backend.name, **options}
        return rmcla_fast.random_start(self.images, epsilon, mask=mask, **rule)


def test_random_shapes(backend: Backend) -> None:
    kinds = st.sampled_from(("float", "scalar tensor", "per image"))

    @settings(max_examples=backend.examples)
    @given(
        shape=st.one_of(image_shapes(backend.interpreted), st.just((2, 3, 8, 8)), st.just((3, 2, 4, 16))),
        dtypes=st.tuples(st.sampled_from((*FLOAT_DTYPES, torch.uint8)), st.sampled_from(MASK_DTYPES)),
        layouts=st.tuples(*[st.sampled_from(IMAGE_LAYOUTS)] * 2),
        missing=st.integers(0, 5),
        ones=st.sets(st.integers(0, 4)),
        budget=kinds,
        rng_per_image=st.booleans(),
        out=st.sampled_from((None, None, "contiguous", "transposed", "strided", "images", "mask")),
        nan=st.booleans(),
        seed=st.integers(0, 2**31),
    )
    def run(shape, dtypes, layouts, missing, ones, budget, rng_per_image, out, nan, seed) -> None:
        step = dtypes[0] != torch.uint8
        case = Case(backend, shape, dtypes[0], seed)
        case.images = lay_out(case.images, layouts[0])
        case.grad = with_specials(case.grad, case.generator, (NAN, INF, -INF, 0.0))
        kept = shape[min(missing, len(shape)) :]
        kept = tuple(1 if place in ones else size for place, size in enumerate(kept))
        mask = lay_out(case.mask(kept, dtypes[1], nan), layouts[1])
        epsilon: float | Tensor = 0.2
        if budget != "float" and (shape or budget == "scalar tensor"):
            size = shape[:1] if budget == "per image" else ()
            epsilon = (0.2 * torch.rand(size, generator=case.generator)).to(backend.device)
        rng = rng_of(3, 4, backend.device)
        if rng_per_image and shape:
            rng = rng + torch.arange(shape[0], device=backend.device)[:, None]
            wanted, _ = test_random_start.expected_alone(case.images, epsilon, rng, None, mask)
        else:
            wanted = test_random_start.expected(case.images, epsilon, 3, 4, None, mask)
        before = mask.clone()
        poison_free_memory(case.images.numel(), backend.device)
        assert_same_bits(case.start(mask, epsilon, rng=rng), wanted, "random_start")
        if step:
            wanted = case.expected_step(mask, epsilon, epsilon)
            buffer = None
            if out == "images" and layouts[0] != "expanded":
                buffer = case.images
            elif out == "mask" and mask.shape == shape and mask.dtype == dtypes[0] and layouts[1] != "expanded":
                buffer = mask
            elif out is not None:
                layout = out if out in IMAGE_LAYOUTS else "contiguous"
                buffer = lay_out(poisoned(shape, dtypes[0], backend.device), layout)
            result = case.step(mask, step_size=epsilon, epsilon=epsilon, out=buffer)
            assert_same_bits(result, wanted, "perturb_step")
            assert buffer is None or result is buffer
            if buffer is mask:
                return
        assert torch.equal(mask.double().nan_to_num(7.0), before.double().nan_to_num(7.0)), "the mask was written"

    run()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "strided"])
@pytest.mark.parametrize("shape", [(3, 3, 16, 16), (2, 3, 5, 5), (4, 1, 8, 8), (1, 2, 8, 24)], ids=str)
def test_every_form_of_a_mask(backend: Backend, shape: tuple[int, ...], layout: str) -> None:
    """The kernels read masks that repeat themselves in memory in another way than others."""
    for dtype in (torch.float32,) if backend.interpreted else (torch.float32, torch.bfloat16, torch.float64):
        case = Case(backend, shape, dtype)
        case.images = lay_out(case.images, layout)
        rngs = rng_of(3, 4, backend.device) + torch.arange(shape[0], device=backend.device)[:, None]
        for form in FORMS:
            for mask_dtype in (torch.bool, torch.float32):
                given = case.mask(shape_of(form, shape), mask_dtype)
                given = lay_out(given, "channels_last") if mask_dtype == torch.bool else given
                for mask in (given, given.expand(shape)):
                    what = f"{form}, {mask_dtype}, {mask.stride()}"
                    assert_same_bits(case.step(mask), case.expected_step(mask), what)
                    for rng in (rngs[0], rngs):
                        wanted = case.start(mask, rng=rng, backend="reference")
                        assert_same_bits(case.start(mask, rng=rng), wanted, what)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_one_changes_nothing_and_zero_moves_nothing(backend: Backend, dtype: torch.dtype) -> None:
    case = Case(backend, (3, 3, 8, 8), dtype)
    case.grad = with_specials(case.grad, case.generator, (INF, -INF))
    for mask_dtype in MASK_DTYPES:
        for shape in ((), (8, 8), (3, 3, 8, 8)):
            ones = torch.ones(shape, dtype=mask_dtype, device=backend.device)
            assert torch.equal(case.step(ones), case.step(None))
            assert torch.equal(case.start(ones), case.start(None))
            still = case.step(torch.zeros_like(ones))
            work = torch.float64 if dtype == torch.float64 else torch.float32
            assert torch.equal(still, case.origin.to(work).clamp(0, 1).to(dtype))
            assert torch.equal(case.start(torch.zeros_like(ones)), case.images)


def test_the_noise_of_other_pixels_stays_and_bytes_that_do_not_move_are_converted(backend: Backend) -> None:
    for dtype in (torch.float32, torch.uint8):
        case = Case(backend, (3, 3, 8, 8), dtype)
        for shape in ((8, 8), (3, 1, 8, 8), (3, 3, 8, 8)):
            mask = case.mask(shape, torch.bool)
            for rng in (rng_of(3, 4, backend.device), rng_of(3, 4, backend.device).expand(3, 2)):
                wanted = torch.where(mask, case.start(None, rng=rng), to_unit(case.images))
                assert torch.equal(case.start(mask, rng=rng), wanted)


@pytest.mark.parametrize("place", ["images", "origin", "grad", "mask"])
def test_nan_gives_nan_in_its_element_also_where_nothing_moves(backend: Backend, place: str) -> None:
    for value in (0.0, 0.5, 1.0):
        for index in (0, 1, 31, 64, 66):
            case = Case(backend, (67,), torch.float32)
            mask = torch.full((67,), value, device=backend.device)
            step, start = case.step(mask), case.start(mask)
            (mask if place == "mask" else getattr(case, place))[index] = NAN
            step[index] = NAN
            assert_same_bits(case.step(mask), step, "perturb_step")
            if place in ("images", "mask"):
                start[index] = NAN
                assert_same_bits(case.start(mask), start, "random_start")


def test_a_bad_budget_of_an_image_gives_nan_where_nothing_moves(backend: Backend) -> None:
    case = Case(backend, (3, 2, 8, 8), torch.float32)
    epsilon = torch.tensor([0.1, -0.1, NAN], device=backend.device)
    mask = torch.zeros(8, 8, dtype=torch.bool, device=backend.device)
    for result in (case.step(mask, epsilon=epsilon), case.start(mask, epsilon)):
        assert bool(result[1:].isnan().all())
        assert bool(result[0].isfinite().all())


@pytest.mark.parametrize("bad", [-0.1, 1.5, INF, -INF, -1e-30])
@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (8, 8), (4, 1, 1, 1)], ids=str)
def test_a_value_outside_the_range(backend: Backend, shape: tuple[int, ...], bad: float) -> None:
    """On a CPU it is an error, and nothing is written. A GPU gives NaN in its element, since a check would stall it."""
    for dtype in FLOAT_DTYPES:
        case = Case(backend, (4, 3, 8, 8), dtype)
        mask = torch.full(shape, 0.5, device=backend.device)
        step, start = case.step(mask), case.start(mask)
        mask.view(-1)[-3 if len(shape) != 2 else 5] = bad
        if backend.checks_label_values:
            out = torch.full_like(case.images, 7.0)
            for call in (case.step, case.start):
                with pytest.raises(ValueError, match=rf"^mask must lie in \[0, 1\]; got {bad:g}$"):
                    call(mask, out=out)
            assert bool((out == 7.0).all())
        else:
            outside = ((mask < 0) | (mask > 1)).expand(case.images.shape)
            assert_same_bits(case.step(mask), step.masked_fill(outside, NAN), "perturb_step")
            assert_same_bits(case.start(mask), start.masked_fill(outside, NAN), "random_start")


def test_every_byte_of_a_bool_mask_but_zero_is_true(backend: Backend) -> None:
    """A view of bytes as bools can hold other bytes than 0 and 1."""
    case = Case(backend, (256,), torch.float32)
    mask = torch.arange(256, dtype=torch.uint8, device=backend.device)
    if backend.name == "reference":
        pytest.skip("torch itself does not say what a bool other than 0 and 1 is")
    assert torch.equal(case.step(mask.view(torch.bool)), case.step(mask != 0))
    assert torch.equal(case.start(mask.view(torch.bool)), case.start(mask != 0))


def test_a_mask_is_rounded_to_the_dtype_of_the_arithmetic_before_its_range_is_checked(backend: Backend) -> None:
    case = Case(backend, (3, 8, 8), torch.float32)
    mask = torch.full((8, 8), 1 + 1e-12, dtype=torch.float64, device=backend.device)
    assert torch.equal(case.step(mask), case.step(None))
    assert torch.equal(case.start(mask), case.start(None))


def test_images_without_elements(backend: Backend) -> None:
    for shape, forms in (((0, 3, 8, 8), ((), (8, 8), (0, 3, 8, 8))), ((2, 0, 5), ((5,), (0, 1), (2, 0, 5)))):
        case = Case(backend, shape, torch.float32)
        for form in forms:
            mask = torch.full(form, 2.0, device=backend.device)  # there is no value to be checked
            assert case.step(mask).shape == case.start(mask).shape == shape


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("form", [(), (101,), (1, 101)], ids=str)
def test_a_million_elements(backend: Backend, mask_dtype: torch.dtype, form: tuple[int, ...]) -> None:
    rows = 41 if backend.interpreted else MANY // 101
    case = Case(backend, (rows, 101), torch.float32)
    whole = form if form else (rows, 101)
    mask = case.mask(whole, mask_dtype)
    wanted, out = case.expected_step(mask), poisoned((rows, 101), torch.float32, backend.device)
    assert_same_bits(case.step(mask), wanted, "result")
    assert_same_bits(case.step(mask, out=out), wanted, "out")
    reference = case.start(mask, backend="reference")
    assert_same_bits(case.start(mask), reference, "random_start")
    assert_same_bits(case.start(mask, out=out), reference, "random_start, out")


def test_repeated_calls_and_threads_change_no_bit(backend: Backend) -> None:
    case = Case(backend, (2, 3, 8, 8) if backend.interpreted else (16, 3, 64, 64), torch.float32)
    for shape in (case.images.shape, case.images.shape[2:]):
        for dtype in (torch.bool, torch.float32):
            mask = case.mask(tuple(shape), dtype)
            assert_threads_change_no_bit(lambda mask=mask: case.step(mask))
            assert_threads_change_no_bit(lambda mask=mask: case.start(mask))


def test_the_result_never_requires_grad(backend: Backend) -> None:
    case = Case(backend, (3, 5), torch.float32)
    mask = torch.full((5,), 0.5, device=backend.device, requires_grad=True)
    assert not case.step(mask).requires_grad
    assert not case.start(mask).requires_grad


def test_opcheck(backend: Backend) -> None:
    step, start = backend.operator("perturb_step"), backend.operator("random_start")
    images, rng = torch.rand(2, 3, 8, 8, device=backend.device), rng_of(1, 2, backend.device)
    for mask in (torch.rand(8, 8, device=backend.device), torch.rand(2, 1, 8, 8, device=backend.device) < 0.5):
        for layout in ("contiguous", "channels_last", "strided"):
            x = lay_out(images, layout)
            torch.library.opcheck(step.default, (x, images, images, STEP, None, EPSILON, None, 0.0, 1.0, mask))
            for state in (rng, rng.expand(2, 2)):
                torch.library.opcheck(start.default, (x, EPSILON, None, state, 0.0, 1.0, True, mask))
        out = {"out": torch.empty_like(images)}
        torch.library.opcheck(step.out, (images, images, images, STEP, None, EPSILON, None, 0.0, 1.0, mask), out)
        torch.library.opcheck(start.out, (images, EPSILON, None, rng, 0.0, 1.0, False, mask), out)
