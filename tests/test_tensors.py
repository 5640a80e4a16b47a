"""Bytes are converted to the correctly rounded value / 255, also on devices that divide as CUDA does; strides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rmcla_fast import reference
from rmcla_fast.attacks.batches import as_images
from rmcla_fast.ops.tensors import to_unit, with_own_strides

BYTES = torch.arange(256, dtype=torch.uint8)
QUOTIENTS = {
    torch.float32: torch.from_numpy(np.arange(256, dtype=np.float32) / np.float32(255)),
    torch.float64: torch.tensor([float(Fraction(byte, 255)) for byte in range(256)], dtype=torch.float64),
}


class DividesAsCuda(TorchFunctionMode):
    """A mode in which dividing a float tensor by a Python number multiplies by the reciprocal, as on CUDA."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        divides = getattr(function, "__name__", "") in ("div", "true_divide", "div_", "__truediv__", "__itruediv__")
        if divides and isinstance(args[1], int | float) and args[0].is_floating_point():
            return args[0] * torch.ones((), dtype=args[0].dtype).reciprocal().div_(torch.tensor(args[1]))
        return function(*args, **(kwargs or {}))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Run the test on the CPU, where division works as on CUDA, and on a GPU if there is one."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device")
        yield torch.device("cuda")
    else:
        with DividesAsCuda():
            yield torch.device("cpu")


def test_the_emulated_division_is_wrong_for_126_bytes() -> None:
    with DividesAsCuda():
        assert int((BYTES.float() / 255 != QUOTIENTS[torch.float32]).sum()) == 126


@pytest.mark.parametrize("dtype", QUOTIENTS, ids=str)
def test_every_byte_is_divided_with_correct_rounding(device: torch.device, dtype: torch.dtype) -> None:
    assert torch.equal(to_unit(BYTES.to(device), dtype).cpu(), QUOTIENTS[dtype])


def test_the_reference_and_the_evaluation_convert_bytes_correctly(device: torch.device) -> None:
    pixels = BYTES.view(1, 1, 16, 16).to(device)
    exact = QUOTIENTS[torch.float32].view(1, 1, 16, 16)
    still = torch.zeros(pixels.shape, device=device)
    rng = torch.zeros(2, dtype=torch.int64, device=device)
    converted: dict[str, Tensor] = {
        "as_images": as_images(pixels),
        "random_start": reference.random_start(pixels, 0.0, None, rng),
        "perturb_step": reference.perturb_step(still, pixels, still, 0.0, None, 0.0, None),
    }
    for name, value in converted.items():
        assert torch.equal(value.cpu(), exact), name


@pytest.mark.parametrize("dtype", QUOTIENTS, ids=str)
def test_compiled_code_converts_bytes_correctly(dtype: torch.dtype) -> None:
    """Inductor too turns a division by a number into a multiplication."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    converted = torch.compile(to_unit, fullgraph=True, dynamic=False)(BYTES.to(place), dtype)
    assert torch.equal(converted.cpu(), QUOTIENTS[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_floats_are_not_converted(dtype: torch.dtype) -> None:
    images = torch.tensor([0.0, 0.3, float("nan"), 2.0], dtype=dtype)
    assert to_unit(images) is images


@pytest.mark.parametrize(
    ("images", "strides"),
    [
        (torch.rand(4, 8, 8)[:, None], (64, 64, 8, 1)),
        (torch.rand(4, 8, 8, 1).permute(0, 3, 1, 2), (64, 64, 8, 1)),
        (torch.rand(1, 3, 8, 8).as_strided((1, 3, 8, 8), (7, 64, 8, 1)), (192, 64, 8, 1)),
        (torch.rand(1, 8, 8, 3).permute(0, 3, 1, 2).as_strided((1, 3, 8, 8), (7, 1, 24, 3)), (192, 1, 24, 3)),
        (torch.rand(4, 3, 8, 16)[..., ::2], (384, 128, 16, 2)),  # with gaps, so the strides stay as they are
        (torch.rand(1, 3, 8, 16)[..., ::2], (384, 128, 16, 2)),
    ],
)
def test_a_dimension_of_size_one_gets_the_stride_of_its_layout(images: Tensor, strides: tuple[int, ...]) -> None:
    got = with_own_strides(images)
    assert got.stride() == strides
    assert torch.equal(got, images)
    assert got.data_ptr() == images.data_ptr()
