"""What is the Triton backend's own: its walks over long rows, integer keys, tie ranks, conversions and batch geometry.

On a machine without a GPU the kernels run in Triton's interpreter, on CPU tensors; the truth is `rmcla_fast.reference`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import rmcla_fast
from rmcla_fast import backend as backends

tl = pytest.importorskip("triton.language", reason="triton is not installed")
import triton  # noqa: E402

from rmcla_fast.triton_kernels import elements, rows  # noqa: E402
from rmcla_fast.triton_kernels.conversion import narrow, widen  # noqa: E402
from rmcla_fast.triton_kernels.random_start import philox_words  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
TARGETS = ("mc", "ll", "untargeted", "margin", "given")

pytestmark = [
    pytest.mark.skipif(bool(backends.why_not(DEVICE.type, "triton")), reason=backends.why_not(DEVICE.type, "triton")),
    # The interpreter computes the rows beyond the batch, and NaN rows, in numpy, which warns.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiles_of_16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rows of more than 16 classes are walked in tiles, as on a GPU those of more than 4,096."""
    monkeypatch.setattr(rows, "LONGEST_TILE", 16)
    rows.block_shape.cache_clear()
    yield
    rows.block_shape.cache_clear()


def assert_near(result: Tensor | None, expected: Tensor | None, what: str) -> None:
    """Equal dtype and NaN; values to a few units of the arithmetic, and to one of the storage."""
    assert (result is None) == (expected is None), what
    if result is None or expected is None:
        return
    assert result.dtype == expected.dtype, what
    storage = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
    torch.testing.assert_close(
        result.double(),
        expected.double(),
        rtol=storage[result.dtype],
        atol=1e-13 if result.dtype == torch.float64 else 1e-6,
        equal_nan=True,
        msg=lambda text: f"{what}: {text}",
    )


def assert_equal(result: Tensor, expected: Tensor, what: str) -> None:
    """The same bits but for the sign of zero, dtype and memory layout."""
    assert result.dtype == expected.dtype, what
    assert result.stride() == expected.stride(), what
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{what}: {text}")


def check_rows(
    logits: Tensor, labels: Tensor, target: str = "mc", scheme: str = "main", top_k: int | None = None
) -> None:
    """`joint_gradient` and `redistribute_labels` against the reference, on rows whose labels are classes."""
    what = f"{tuple(logits.shape)} {logits.dtype} {logits.stride()} {target} {scheme} top {top_k}"
    wanted = labels.flip(0) if target == "given" else target
    rule = {"top_k": top_k, "label_scheme": scheme}
    result = rmcla_fast.joint_gradient(logits, labels, target=wanted, **rule, backend="triton")
    expected = rmcla_fast.joint_gradient(logits, labels, target=wanted, **rule, backend="reference")
    for name, got, value in zip(result._fields, result, expected, strict=True):
        if name == "targets":
            assert torch.equal(got, value), what
        else:
            assert_near(got, value, f"{name}, {what}")
    if scheme != "none":
        assert expected.soft_labels is not None
        assert torch.equal(result.soft_labels == 0, expected.soft_labels == 0), what  # who receives, ties included
        alone = rmcla_fast.redistribute_labels(logits, labels, **rule, backend="triton")
        assert_equal(alone, result.soft_labels, what)


def logits_and_labels(batch: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Few distinct values: ties everywhere."""
    logits = (torch.randn(batch, classes) * 2).round().to(dtype).to(DEVICE)
    return logits, torch.randint(0, classes, (batch,)).to(DEVICE)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scheme", ["main", "sup", "none"])
def test_every_target_and_dtype(dtype: torch.dtype, scheme: str) -> None:
    for target in TARGETS:
        for classes in (2, 10):
            logits, labels = logits_and_labels(17, classes, dtype)
            check_rows(logits, labels, target, scheme)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_top_k(dtype: torch.dtype) -> None:
    for classes in (2, 3, 7):
        logits, labels = logits_and_labels(16, classes, dtype)
        for top_k in range(1, classes + 1):
            check_rows(logits, labels, scheme="sup" if top_k % 2 else "main", top_k=top_k)


@pytest.mark.usefixtures("tiles_of_16")
@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_walked_in_tiles(dtype: torch.dtype) -> None:
    logits, labels = logits_and_labels(9, 37, dtype)  # two programs, three tiles
    for number, target in enumerate(TARGETS):
        check_rows(logits, labels, target, ("main", "sup")[number % 2])
    check_rows(logits, labels, scheme="sup", top_k=9)
    for soft in (labels, torch.rand_like(logits)):
        check_loss(logits, soft)


@pytest.mark.usefixtures("tiles_of_16")
def test_ties_across_tiles() -> None:
    logits = torch.zeros(4, 50, device=DEVICE)
    logits[1, 20:] = -0.0  # equal to 0, and so of the same rank
    logits[2, ::7] = 1.0
    logits[3, 40] = -1.0
    for top_k in (1, 16, 17, 48):
        check_rows(logits, torch.tensor([0, 18, 21, 49], device=DEVICE), "ll", top_k=top_k)


def test_many_classes() -> None:
    for classes in (4096, 21_841):
        logits, labels = logits_and_labels(1, classes)
        check_rows(logits, labels, scheme="sup", top_k=9)
        check_rows(logits, labels)
        check_loss(logits, torch.rand_like(logits).softmax(1))


@pytest.mark.parametrize("layout", ["transposed", "strided", "offset", "expanded"])
def test_layouts_of_rows(layout: str) -> None:
    logits, labels = logits_and_labels(6, 11)
    soft = torch.rand_like(logits)

    def lay_out(tensor: Tensor) -> Tensor:
        if layout == "transposed":
            return tensor.t().contiguous().t()
        if layout == "expanded":
            return tensor[:1].expand(tensor.shape)
        wide = torch.full((2 * tensor.shape[0], 2 * tensor.shape[1] + 1), float("nan"), device=DEVICE)
        view = wide[::2, 1::2] if layout == "strided" else wide.view(-1)[1 : tensor.numel() + 1].view(tensor.shape)
        return view.copy_(tensor)

    labels = torch.stack([labels, torch.full_like(labels, -7)], 1)[:, 0]  # every other element
    check_rows(lay_out(logits), labels, "given", top_k=4)
    check_loss(lay_out(logits), lay_out(soft))
    check_loss(lay_out(logits), labels)
    out = lay_out(torch.zeros_like(logits)) if layout != "expanded" else torch.zeros_like(logits)
    rmcla_fast.redistribute_labels(logits, labels, out=out, backend="triton")
    assert_near(out, rmcla_fast.redistribute_labels(logits, labels, backend="reference"), layout)


def test_labels_replace_their_logits() -> None:
    logits, labels = logits_and_labels(5, 10)
    expected = rmcla_fast.redistribute_labels(logits, labels, backend="reference")
    assert_near(rmcla_fast.redistribute_labels(logits, labels, out=logits, backend="triton"), expected, "out")


@pytest.mark.parametrize("value", [1e4, -1e4, 3e38])
def test_saturated_logits(value: float) -> None:
    logits, labels = logits_and_labels(6, 10)
    logits[torch.arange(6), (labels + torch.arange(6)) % 10] = value
    for target in TARGETS:
        for scheme in ("main", "sup"):
            check_rows(logits, labels, target, scheme, top_k=5)
    check_loss(logits, torch.rand_like(logits))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("tiles", ["one tile", "many tiles"])
def test_non_finite_rows(value: float, tiles: str, request: pytest.FixtureRequest) -> None:
    if tiles == "many tiles":
        request.getfixturevalue("tiles_of_16")
    logits, labels = logits_and_labels(4, 40)
    logits[0, 39] = logits[2, labels[2]] = value
    for number, target in enumerate(TARGETS):
        check_rows(logits, labels, target, ("main", "sup")[number % 2], top_k=5 if target == "ll" else None)
    check_loss(logits, torch.rand_like(logits))


@pytest.mark.parametrize("wrong", [-1, 10, -(2**62), 2**32])
def test_a_label_that_is_no_class(wrong: int) -> None:
    logits, labels = logits_and_labels(4, 10)
    wrong_labels = labels.clone()
    wrong_labels[1] = wrong
    expected = rmcla_fast.joint_gradient(logits, labels, target=labels.flip(0), top_k=4, backend="reference")
    for given_labels, given_target, row in ((wrong_labels, labels.flip(0), 1), (labels, wrong_labels.flip(0), 2)):
        result = rmcla_fast.joint_gradient(logits, given_labels, target=given_target, top_k=4, backend="triton")
        for got, value in zip(result[:3], expected[:3], strict=True):
            value = value.clone()
            value[row] = float("nan")
            assert_near(got, value, f"label {wrong}")
        assert result.targets[row] == -1
    losses = rmcla_fast.soft_cross_entropy(logits, wrong_labels, reduction="none", backend="triton")
    assert losses.isnan().tolist() == [False, True, False, False]


def check_loss(logits: Tensor, labels: Tensor) -> None:
    """Loss and both gradients against the reference, for every reduction."""
    for reduction in ("mean", "sum", "none"):
        results = []
        for backend in ("triton", "reference"):
            leaves = [logits.clone().requires_grad_()]
            if labels.dtype != torch.int64:
                leaves.append(labels.clone().requires_grad_())
            given = leaves[1] if len(leaves) == 2 else labels
            loss = rmcla_fast.soft_cross_entropy(leaves[0], given, reduction=reduction, backend=backend)
            weight = torch.linspace(0.5, 2, len(logits), device=DEVICE, dtype=loss.dtype)
            weight = weight if reduction == "none" else weight[0]
            results.append((loss, *torch.autograd.grad(loss, leaves, weight)))
        for got, expected in zip(*results, strict=True):
            assert_near(got, expected, f"{tuple(logits.shape)} {logits.dtype} {labels.dtype} {reduction}")


@pytest.mark.parametrize("dtype", FLOATS)
def test_soft_cross_entropy(dtype: torch.dtype) -> None:
    for classes in (2, 10):
        logits, indices = logits_and_labels(6, classes, dtype)
        for labels in (indices, torch.rand(6, classes, device=DEVICE), torch.rand(6, classes, device=DEVICE).to(dtype)):
            check_loss(logits, labels)


def test_no_rows() -> None:
    logits, labels = logits_and_labels(0, 10)
    for got, expected in zip(
        rmcla_fast.joint_gradient(logits, labels, backend="triton"),
        rmcla_fast.joint_gradient(logits, labels, backend="reference"),
        strict=True,
    ):
        assert_equal(got, expected, "no rows")
    for reduction in ("mean", "sum", "none"):
        got, expected = (
            rmcla_fast.soft_cross_entropy(logits, labels, reduction=reduction, backend=backend)
            for backend in ("triton", "reference")
        )
        torch.testing.assert_close(got, expected, equal_nan=True)


# Batches whose images are smaller and larger than a program's block, with the batch outermost, innermost and between.
IMAGES = {
    "scalar": lambda: torch.rand(()),
    "empty": lambda: torch.rand(0, 3, 4, 4),
    "vector": lambda: torch.rand(5),
    "small images": lambda: torch.rand(7, 3, 5, 5),
    "large images": lambda: torch.rand(3, 1, 35, 31),
    "one image": lambda: torch.rand(3, 5, 7).expand(1, 3, 5, 7),
    "channels last": lambda: torch.rand(4, 3, 16, 16).contiguous(memory_format=torch.channels_last),
    "batch innermost": lambda: torch.rand(5, 6, 7).permute(2, 0, 1),
    "batch between": lambda: torch.rand(2, 3, 600).transpose(0, 1),
    "strided": lambda: torch.rand(3, 4, 10)[:, :, ::2],
    "expanded": lambda: torch.rand(1, 3, 8, 8).expand(3, 3, 8, 8),
}


def amounts(images: Tensor) -> list[float | Tensor]:
    """A float, and tensors (), (B,) and (B,) strided, of which one value means NaN."""
    values: list[float | Tensor] = [8 / 255, torch.tensor(0.03, device=DEVICE)]
    if images.dim():
        per_image = torch.rand(len(images), 2, device=DEVICE) * 0.1
        if len(images) > 2:
            per_image[1] = -0.1
            per_image[2] = float("nan")
        values += [per_image[:, 0].contiguous(), per_image[:, 1]]
    return values


@pytest.mark.parametrize("name", IMAGES)
def test_elements_in_every_layout(name: str) -> None:
    images = IMAGES[name]().to(DEVICE)
    other = torch.empty(images.shape, device=DEVICE)
    origin, grad = (images + 0.05 * torch.randn(other.shape, device=DEVICE)).clamp(0, 1), torch.randn_like(other)
    rng = torch.tensor([2**40 + 3, 9], device=DEVICE)
    for amount in amounts(images):
        what = f"{name}, epsilon {amount}"
        step, noise = {}, {}
        for backend in ("triton", "reference"):
            step[backend] = rmcla_fast.perturb_step(
                images, origin, grad, step_size=amount, epsilon=amount, backend=backend
            )
            noise[backend] = rmcla_fast.random_start(images, amount, rng=rng, clip=True, backend=backend)
        assert_equal(step["triton"], step["reference"], what)
        assert_equal(noise["triton"], noise["reference"], what)
        for out in (torch.empty_like(other), images.clone()):  # perhaps another layout, and the images' own
            images_or_out = out.copy_(images)
            rmcla_fast.perturb_step(
                images_or_out, origin, grad, step_size=amount, epsilon=amount, out=out, backend="triton"
            )
            torch.testing.assert_close(out, step["reference"], rtol=0, atol=0, equal_nan=True)
            rmcla_fast.random_start(images, amount, rng=rng, clip=True, out=out, backend="triton")
            torch.testing.assert_close(out, noise["reference"], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS)
def test_elements_of_every_dtype(dtype: torch.dtype) -> None:
    special = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, -1e-40, 2.0, 0.5], device=DEVICE
    )
    images = torch.cat([torch.rand(1000, device=DEVICE), special.repeat(27)])
    origin = torch.cat([torch.rand(1000, device=DEVICE), special.repeat_interleave(3).repeat(9)])
    grad = torch.cat([torch.randn(1000, device=DEVICE), special.repeat_interleave(27)])
    images = images.to(dtype)
    for origin_dtype in (*FLOATS, torch.uint8):
        center = (origin.nan_to_num(0.5, 1, 0) * 255).to(torch.uint8) if origin_dtype == torch.uint8 else origin
        for grad_dtype in FLOATS:
            got, expected = (
                rmcla_fast.perturb_step(
                    images,
                    center.to(origin_dtype),
                    grad.to(grad_dtype),
                    step_size=2 / 255,
                    epsilon=8 / 255,
                    backend=backend,
                )
                for backend in ("triton", "reference")
            )
            assert_equal(got, expected, f"{dtype}, {origin_dtype}, {grad_dtype}")


@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8])
def test_random_start(dtype: torch.dtype) -> None:
    images = torch.arange(1030, device=DEVICE) / 1029
    images = (images * 255).to(dtype) if dtype == torch.uint8 else images.to(dtype)
    for rng in ([0, 0], [-1, -1], [-(2**63), 2**63 - 1], [123_456_789_012, 2**32 + 7]):
        for clip in (False, True):
            got, expected = (
                rmcla_fast.random_start(
                    images, 8 / 255, rng=torch.tensor(rng, device=DEVICE), clip=clip, backend=backend
                )
                for backend in ("triton", "reference")
            )
            assert_equal(got, expected, f"{dtype}, {rng}, {clip}")
            if not clip and dtype != torch.float64:
                assert not torch.equal(got.float(), images.float())


@triton.jit
def _words_kernel(rng, block, out, STREAM: tl.constexpr):
    word0, word1, word2, word3 = philox_words(rng, 1, tl.load(block + tl.arange(0, 1)), STREAM)
    place = tl.arange(0, 1)
    tl.store(out + place, word0.to(tl.int64))
    tl.store(out + 1 + place, word1.to(tl.int64))
    tl.store(out + 2 + place, word2.to(tl.int64))
    tl.store(out + 3 + place, word3.to(tl.int64))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_published_philox_vectors(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    """From the known-answer file that comes with Random123 (Salmon et al., SC 2011)."""

    def signed(low: int, high: int) -> int:
        value = low | high << 32
        return value - 2**64 if value >= 2**63 else value

    rng = torch.tensor([signed(*key), counter[2]], device=DEVICE)
    block = torch.tensor([signed(*counter[:2])], device=DEVICE)
    out = torch.empty(4, dtype=torch.int64, device=DEVICE)
    _words_kernel[(1,)](rng, block, out, STREAM=counter[3])
    assert tuple(out.tolist()) == words


@triton.jit
def _convert_kernel(source, target, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + place, narrow(widen(tl.load(source + place), DTYPE), target.dtype.element_ty))


def test_bfloat16_conversions() -> None:
    every = torch.arange(2**16, device=DEVICE).to(torch.int16).view(torch.bfloat16)
    wide = torch.empty(every.shape, device=DEVICE)
    _convert_kernel[(16,)](every, wide, DTYPE=tl.float32, BLOCK=4096)
    assert torch.equal(wide.nan_to_num(7.0), every.float().nan_to_num(7.0))
    near = every.float()[:, None].view(torch.int32) + torch.tensor(
        [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32, device=DEVICE
    )
    near = near.view(torch.float32).contiguous().flatten()
    narrow_result = torch.empty(near.shape, dtype=torch.bfloat16, device=DEVICE)
    _convert_kernel[(96,)](near, narrow_result, DTYPE=tl.float32, BLOCK=4096)
    torch.testing.assert_close(narrow_result, near.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(20, 3, 32, 32), (20, 1, 8, 8), (6, 3, 5, 7)])
def test_augment_start(shape: tuple[int, ...]) -> None:
    dataset = torch.randint(0, 256, shape, dtype=torch.uint8).to(DEVICE)
    index = torch.randint(0, shape[0], (3,)).to(DEVICE)
    rng = torch.tensor([5, 2**33 + 1], device=DEVICE)
    epsilons = (0.03, torch.tensor(0.03, device=DEVICE), torch.rand(3, device=DEVICE) * 0.1)
    for number, dtype in enumerate((torch.float32, torch.float16, torch.bfloat16) * 2):
        epsilon, memory_format = epsilons[number // 2], (torch.contiguous_format, torch.channels_last)[number % 2]
        rule = {"dtype": dtype, "memory_format": memory_format, "padding": 4 * (number % 3 > 0), "flip": number != 3}
        got, expected = (
            rmcla_fast.augment_start(dataset, index, rng=rng, epsilon=epsilon, **rule, backend=backend)
            for backend in ("triton", "reference")
        )
        for result, wanted in zip(got, expected, strict=True):
            assert torch.equal(result, wanted), (shape, rule)
            assert result.is_contiguous(memory_format=memory_format)


def test_an_index_that_is_no_image() -> None:
    dataset = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8).to(DEVICE)
    rng = torch.tensor([1, 2], device=DEVICE)
    for index in ([3, -1, 0], [3, 4, 0], [3, 2**40, 0]):
        results = rmcla_fast.augment_start(
            dataset, torch.tensor(index, device=DEVICE), rng=rng, epsilon=0.1, backend="triton"
        )
        for result in results:
            assert result.isnan().flatten(1).all(1).tolist() == [False, True, False]
            assert result.isnan().flatten(1).any(1).tolist() == [False, True, False]


def test_layout_of_a_single_element_does_not_matter() -> None:
    first, second = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4).as_strided((1, 3, 4, 4), (7, 16, 4, 1))
    assert elements.same_layout(first, second)
    assert elements.in_layout_of(first, second) is second
    assert not elements.same_layout(first, first.contiguous(memory_format=torch.channels_last))


def test_results_are_the_same_from_run_to_run() -> None:
    logits, labels = logits_and_labels(5, 100)
    first, second = (rmcla_fast.joint_gradient(logits, labels, top_k=9, backend="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    losses = [rmcla_fast.soft_cross_entropy(logits, labels, backend="triton") for _ in range(2)]
    assert torch.equal(*losses)
