"""What only a GPU can show about the CUDA kernels: streams, graphs, no synchronisation, sizes beyond 2^31, devices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import rmcla_fast
from rmcla_fast import reference
from rmcla_fast.ops import dispatch, extension
from rmcla_fast.ops.philox import philox4x32

MISSING = "no CUDA device" if not torch.cuda.is_available() else extension.why_missing("cuda")
RUNS = torch.cuda.is_available() and extension.has_kernels("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not RUNS, reason=MISSING)]

CLASSES = (2, 10, 100, 1000, 21841)


def every_operator(classes: int = 10, rows: int = 64) -> dict[str, Tensor]:
    """Call each operator once with new inputs, made on the current stream; return the results by name."""
    logits = torch.linspace(-4, 4, rows * classes, device="cuda").view(rows, classes).sin() * 5
    labels = torch.arange(rows, device="cuda") % classes
    images = torch.linspace(0, 1, rows * 3 * 8 * 8, device="cuda").view(rows, 3, 8, 8)
    epsilon = torch.full((rows,), 0.1, device="cuda")
    rng = torch.arange(2, device="cuda")
    joint = rmcla_fast.joint_gradient(logits, labels, top_k=9, backend="cuda")
    assert joint.soft_labels is not None
    dataset, last = (255 * images).byte(), torch.channels_last
    return {
        "augmented": rmcla_fast.augment(dataset, labels, rng=rng, memory_format=last, backend="cuda"),
        "objective": joint.objective,
        "grad_logits": joint.grad_logits,
        "soft_labels": joint.soft_labels,
        "targets": joint.targets,
        "redistributed": rmcla_fast.redistribute_labels(logits, labels, label_scheme="sup", backend="cuda"),
        "loss": rmcla_fast.soft_cross_entropy(logits, joint.soft_labels, backend="cuda"),
        "start": rmcla_fast.random_start(images, epsilon, rng=rng, backend="cuda"),
        "starts": rmcla_fast.random_start(images, epsilon, rng=rng.expand(rows, 2), backend="cuda"),
        "step": rmcla_fast.perturb_step(
            images, images, images - 0.5, step_size=epsilon, epsilon=epsilon, backend="cuda"
        ),
        **masked_operators(images, epsilon, rng),
    }


def masked_operators(images: Tensor, epsilon: Tensor, rng: Tensor) -> dict[str, Tensor]:
    """Call the operators with masks: bool and float, one that is copied, and one with a value that is no share."""
    square = images[0, 0] < 0.2
    each = images[:, :1].clone()
    each[0, 0, 0, 0] = 1.5
    options = {"step_size": epsilon, "epsilon": epsilon, "backend": "cuda"}
    return {
        "masked start": rmcla_fast.random_start(images, epsilon, rng=rng, mask=square, backend="cuda"),
        "masked starts": rmcla_fast.random_start(
            images, epsilon, rng=rng.expand(len(images), 2), mask=images, backend="cuda"
        ),
        "masked step": rmcla_fast.perturb_step(images, images, images - 0.5, mask=square, **options),
        "step with shares": rmcla_fast.perturb_step(images, images, images - 0.5, mask=each, **options).nan_to_num(9.0),
    }


@pytest.fixture
def synchronisation_raises() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("classes", CLASSES)
def test_no_operator_synchronises_with_the_device(classes: int, synchronisation_raises: None) -> None:
    every_operator(classes)


@pytest.mark.parametrize("classes", CLASSES)
def test_results_are_the_same_bits_on_another_stream(classes: int) -> None:
    expected = every_operator(classes)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # a kernel on the default stream would now run before its inputs are ready
        results = every_operator(classes)
    stream.synchronize()
    for name, value in expected.items():
        assert torch.equal(results[name], value), name


@pytest.mark.parametrize("classes", CLASSES)
def test_a_captured_graph_gives_the_same_results(classes: int) -> None:
    expected = every_operator(classes)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = every_operator(classes)
    for _ in range(2):
        for value in results.values():
            value.zero_()
        graph.replay()
        for name, value in expected.items():
            assert torch.equal(results[name], value), name


def test_a_replayed_graph_draws_fresh_noise_and_reads_the_radius() -> None:
    images = torch.rand(16, 3, 32, 32, device="cuda")
    rng = torch.tensor([7, 0], device="cuda")
    epsilon = torch.tensor(0.1, device="cuda")
    rmcla_fast.random_start(images, epsilon, rng=rng, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        start = rmcla_fast.random_start(images, epsilon, rng=rng, backend="cuda")
        rng[1] += 1
    seen = []
    for step, radius in enumerate([0.1, 0.1, 0.05]):
        epsilon.fill_(radius)
        graph.replay()
        expected = reference.random_start(images.cpu(), radius, None, torch.tensor([7, step]))
        assert torch.equal(start.cpu(), expected)
        seen.append(start.clone())
    assert not torch.equal(seen[0], seen[1])


def require_memory(gigabytes: float) -> None:
    """Skip the test if the GPU has less free memory."""
    torch.cuda.empty_cache()  # frees memory that PyTorch's allocator kept from earlier tests
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GiB of free GPU memory, but has {free:.0f}")


@pytest.mark.parametrize("name", ["cuda", "triton"])
@pytest.mark.parametrize("tail", [4099, 4112])  # one of the sizes is a multiple of 16
def test_perturb_step_and_random_start_beyond_two_to_the_31_elements(name: str, tail: int) -> None:
    if reason := dispatch.why_not("cuda", name):
        pytest.skip(reason)
    require_memory(20)
    count = 2**31 + tail
    images = torch.zeros(count, dtype=torch.float16, device="cuda")
    origin = torch.zeros(count, dtype=torch.uint8, device="cuda")
    ends = [slice(0, 4096), slice(2**31 - 4096, 2**31 + 4096), slice(count - 4099, count)]
    generator = torch.Generator().manual_seed(0)
    for end in ends:
        size = end.stop - end.start
        images[end] = torch.rand(size, generator=generator).half()
        origin[end] = torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8)
    step = rmcla_fast.perturb_step(images, origin, images, step_size=0.1, epsilon=0.2, backend=name)
    for end in ends:
        x, o = images[end].cpu(), origin[end].cpu()
        assert torch.equal(step[end].cpu(), reference.perturb_step(x, o, x, 0.1, None, 0.2, None))
    del step
    mask = torch.zeros(16 * 6, dtype=torch.bool, device="cuda")  # repeats itself beyond 2^31 elements
    mask[::3] = True
    rows = images[: count // 96 * 96].view(-1, 96)
    step = rmcla_fast.perturb_step(rows, rows, rows, step_size=0.1, epsilon=0.2, mask=mask, backend=name)
    last = rows[-100:].cpu()
    expected = reference.perturb_step(last, last, last, 0.1, None, 0.2, None, 0.0, 1.0, mask.cpu())
    assert torch.equal(step[-100:].cpu(), expected)
    del step, rows
    rng = torch.tensor([11, 5], device="cuda")
    start = rmcla_fast.random_start(images, 0.1, rng=rng, backend=name)
    assert (start - images).abs_().max() <= 0.1 + 1e-3
    assert torch.equal(start[:4096].cpu(), reference.random_start(images[:4096].cpu(), 0.1, None, rng.cpu()))
    at = 2**31  # four elements beyond 2^31, whose noise follows from the definition of the generator
    counter = [torch.tensor([value]) for value in (at // 4, 0, 5, 0)]
    words = [int(word) for word in philox4x32(counter, [torch.tensor([11]), torch.tensor([0])])]
    uniform = torch.tensor([word >> 8 for word in words]).float() * 2.0**-24
    expected = images[at : at + 4].cpu().float() + torch.tensor(0.1) * (2 * uniform - 1)
    assert torch.equal(start[at : at + 4].cpu(), expected.half())
    del start
    size = count // 48 * 16 + (0 if tail == 4099 else 5)  # the last of three images ends beyond 2^31
    images.zero_()
    alone = rmcla_fast.random_start(images[:size], 0.1, rng=rng, backend=name)
    start = rmcla_fast.random_start(images[: 3 * size].view(3, size), 0.1, rng=rng.expand(3, 2), backend=name)
    assert all(torch.equal(image, alone) for image in start)


@pytest.mark.parametrize("classes", [10, 1000, 21841])
def test_rows_beyond_two_to_the_31_elements(classes: int) -> None:
    require_memory(24)
    rows = 2**31 // classes + 3
    logits = torch.zeros(rows, classes, dtype=torch.bfloat16, device="cuda")
    logits[:, 0] = 1
    tail = torch.randn(5, classes).bfloat16()
    logits[-5:] = tail.cuda()
    labels = torch.zeros(rows, dtype=torch.int64, device="cuda")
    labels[-5:] = 1
    soft = rmcla_fast.redistribute_labels(logits, labels, backend="cuda")
    expected = reference.redistribute_labels(tail.double(), torch.ones(5, dtype=torch.int64))
    assert (soft[-5:].cpu().double() - expected).abs().max() <= 1e-6
    del soft
    loss, grad, _ = torch.ops.rmcla_fast.soft_cross_entropy(logits, labels, "none", False, 0.0)
    expected_loss, expected_grad, _ = reference.soft_cross_entropy(tail.double(), labels[-5:].cpu(), "none")
    assert torch.allclose(loss[-5:].cpu().double(), expected_loss, rtol=1e-6, atol=1e-6)
    assert torch.allclose(grad[-5:].cpu().double(), expected_grad, rtol=2**-7, atol=1e-6)


def test_the_current_device_does_not_matter() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    logits = torch.randn(4, 10)
    labels = torch.arange(4)
    here = rmcla_fast.joint_gradient(logits.to("cuda:0"), labels.to("cuda:0"), backend="cuda")
    there = rmcla_fast.joint_gradient(logits.to("cuda:1"), labels.to("cuda:1"), backend="cuda")
    assert torch.equal(here.grad_logits.cpu(), there.grad_logits.cpu())


def test_gradients_of_the_public_functions_match_the_reference() -> None:
    generator = torch.Generator().manual_seed(3)
    for classes in CLASSES:
        logits = torch.randn(8, classes, generator=generator)
        labels = torch.randint(0, classes, (8,), generator=generator)
        grads = {}
        for device, backend in (("cpu", "reference"), ("cuda", "cuda")):
            z = logits.to(device).requires_grad_()
            joint = rmcla_fast.joint_objective(z, labels.to(device), backend=backend)
            loss = rmcla_fast.soft_cross_entropy(z, joint.soft_labels, backend=backend)
            grads[device] = torch.autograd.grad(joint.objective.sum() + loss, z)[0].cpu()
        assert (grads["cpu"] - grads["cuda"]).abs().max() <= 2e-6


def test_augment_beyond_two_to_the_31_elements() -> None:
    require_memory(20)
    dataset = torch.randint(0, 256, (7, 3, 32, 40), dtype=torch.uint8, device="cuda")
    count = 2**31 // dataset[0].numel() + 3
    index = torch.arange(count, device="cuda") % 7
    rng = torch.tensor([11, 5], device="cuda")
    images = rmcla_fast.augment(dataset, index, rng=rng, padding=0, flip=False, backend="cuda")
    for end in (slice(0, 3), slice(count - 7, count)):
        assert torch.equal(images[end], dataset[index[end]])
