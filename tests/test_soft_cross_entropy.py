"""`soft_cross_entropy`: loss and both gradients against the float64 oracle, for soft labels and for class indices."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from adversarial_inputs import (
    FLOAT_DTYPES,
    LogitCase,
    lay_out,
    logit_cases,
    poison_free_memory,
)
from conftest import Backend
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import GRADIENT, LABEL_GRADIENT, LOSS, assert_close, assert_threads_change_no_bit, exact, exact_logits
from torch import Tensor

import rmcla_fast

REDUCTIONS = ("mean", "sum", "none")
SMOOTHING = (0.0, 0.1, 0.4, 0.999)


def soft_labels(case: LogitCase, kind: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return labels (B, C): rows that sum to one, one-hot rows, or rows that sum to any number."""
    generator = torch.Generator().manual_seed(case.seed + 2)
    shape = (case.batch, case.classes)
    labels = torch.rand(shape, generator=generator, dtype=torch.float64)
    if kind == "distribution":
        labels = labels / labels.sum(1, keepdim=True)
    elif kind == "one-hot":
        labels = torch.zeros(shape, dtype=torch.float64).scatter(
            1, case.classes_drawn(torch.device("cpu"))[:, None], 1.0
        )
    return labels.to(dtype).to(device)


def check(
    logits: Tensor, labels: Tensor, reduction: str, upstream: Tensor, backend: str, smoothing: float = 0.0
) -> None:
    """Check the loss, the gradient in the logits and, for float labels, in the labels; `upstream` scales them."""
    logits = logits.detach().requires_grad_()
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if labels.dtype == torch.int64:
        y = np.zeros(tuple(logits.shape))
        y[np.arange(len(y)), labels.cpu().numpy()] = 1
    else:
        labels = labels.detach().requires_grad_()
        y = exact(labels)
    rule = {"reduction": reduction, "label_smoothing": smoothing, "backend": backend}
    loss = rmcla_fast.soft_cross_entropy(logits, labels, **rule)
    rows, gradient, v = oracle.soft_cross_entropy(exact_logits(logits), y, smoothing)
    batch = max(len(rows), 1)
    factor = exact(upstream)[..., None] / (batch if reduction == "mean" else 1)
    if reduction == "none":
        wanted = rows
    elif len(rows):
        wanted = np.asarray(rows.sum() / (batch if reduction == "mean" else 1))
    else:  # an empty batch gives the result of torch's cross entropy
        wanted = np.asarray(np.nan if reduction == "mean" else 0.0)
    assert loss.dtype == wide
    assert_close(loss, wanted, LOSS, "loss")
    loss.backward(upstream.to(loss))
    # The rounding error of the gradient grows with sum(y) and with the incoming gradient.
    scale = np.maximum(1, np.abs(y).sum(1, keepdims=True)) * np.maximum(1, np.abs(factor))
    assert logits.grad.dtype == logits.dtype
    assert_close(logits.grad, factor * gradient, GRADIENT, "gradient of the logits", scale)
    if labels.dtype != torch.int64:
        assert labels.grad.dtype == labels.dtype
        table = (
            LABEL_GRADIENT
            if wide == torch.float64
            else {**LABEL_GRADIENT, torch.float64: LABEL_GRADIENT[torch.float32]}
        )
        wanted = exact(torch.from_numpy(factor * v).to(labels.dtype))  # narrow labels can turn it into infinity
        assert_close(labels.grad, wanted, table, "gradient of the labels", np.maximum(1, np.abs(factor)))


def test_random_shapes(backend: Backend) -> None:
    @settings(max_examples=backend.examples)
    @given(
        case=logit_cases(backend.interpreted),
        kind=st.sampled_from(("distribution", "one-hot", "anything", "indices", "expanded")),
        label_dtype=st.sampled_from(FLOAT_DTYPES),
        label_layout=st.sampled_from(("contiguous", "transposed", "strided", "offset")),
        reduction=st.sampled_from(REDUCTIONS),
        smoothing=st.sampled_from(SMOOTHING),
        scaled=st.booleans(),
    )
    def run(
        case: LogitCase,
        kind: str,
        label_dtype: torch.dtype,
        label_layout: str,
        reduction: str,
        smoothing: float,
        scaled: bool,
    ) -> None:
        logits = case.logits(backend.device)
        if kind == "indices":
            labels = case.classes_drawn(backend.device)
        else:
            name = "distribution" if kind == "expanded" else kind
            labels = soft_labels(case, name, label_dtype, backend.device)
            labels = lay_out(labels, "expanded" if kind == "expanded" else label_layout)
        size = (case.batch,) if reduction == "none" else ()
        upstream = torch.ones(size, device=backend.device)
        if scaled:
            upstream = torch.randn(size, generator=torch.Generator().manual_seed(case.seed + 3)).to(backend.device)
        poison_free_memory(logits.numel(), backend.device)
        check(logits, labels, reduction, upstream, backend.name, smoothing)

    run()


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_smoothed_labels_of_every_dtype(backend: Backend, smoothing: float) -> None:
    """The kernels handle rows of up to 64 classes, whole vectors, and rows longer than a block in different ways."""
    for classes in (2, 10, 40) if backend.interpreted else (2, 3, 10, 64, 65, 96, 1000, 5003):
        for dtype, layout in zip(FLOAT_DTYPES, ("contiguous", "transposed", "strided", "offset"), strict=True):
            case = LogitCase(5, classes, dtype, "normal", layout, classes)
            logits, upstream = case.logits(backend.device), torch.linspace(0.5, 2, 5, device=backend.device)
            every = [case.classes_drawn(backend.device)]
            every += [soft_labels(case, kind, dtype, backend.device) for kind in ("distribution", "anything")]
            for labels in every:
                check(logits, labels, "none", upstream, backend.name, smoothing)
                check(logits[:0], labels[:0], "mean", upstream[0], backend.name, smoothing)


@pytest.mark.parametrize("classes", [10, 101])
def test_smoothing_too_small_to_change_one_counts_beside_huge_logits(backend: Backend, classes: int) -> None:
    """1 - 1e-30 is 1, but a share of 1e-30 of a gap of 1e60 is 1e30."""
    generator = torch.Generator().manual_seed(classes)
    logits = (1e60 * torch.randn(5, classes, generator=generator, dtype=torch.float64)).to(backend.device)
    labels = logits.argmax(1)
    upstream = torch.ones(5, device=backend.device)
    for some in (labels, torch.nn.functional.one_hot(labels, classes).double()):
        check(logits, some, "none", upstream, backend.name, smoothing=1e-30)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.999])
def test_imagenet_21k_classes(backend: Backend, reduction: str, smoothing: float) -> None:
    if backend.interpreted:
        pytest.skip("21,841 classes take minutes in Triton's interpreter")
    case = LogitCase(3, 21_841, torch.float32, "normal", "contiguous", 0)
    upstream = torch.ones(3 if reduction == "none" else (), device=backend.device)
    logits = case.logits(backend.device)
    for labels in (
        soft_labels(case, "distribution", torch.float32, backend.device),
        case.classes_drawn(backend.device),
    ):
        check(logits, labels, reduction, upstream, backend.name, smoothing)


def test_large_batch(backend: Backend) -> None:
    """The mean and the sum of many rows are within the tolerance, since rows are not added one after the other."""
    case = LogitCase(200 if backend.interpreted else 20_003, 10, torch.float32, "normal", "contiguous", 0)
    logits, labels = case.logits(backend.device), soft_labels(case, "distribution", torch.float32, backend.device)
    rows, _, _ = oracle.soft_cross_entropy(exact(logits), exact(labels))
    for reduction, wanted in (("sum", rows.sum()), ("mean", rows.mean()), ("none", rows)):
        loss = rmcla_fast.soft_cross_entropy(logits, labels, reduction=reduction, backend=backend.name)
        assert_close(loss, np.asarray(wanted), LOSS, reduction)


@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_loss_and_gradient_equal_those_of_torchs_cross_entropy(
    backend: Backend, reduction: str, smoothing: float
) -> None:
    """This holds for class indices and distributions, and for an empty batch."""
    rule = {"reduction": reduction, "label_smoothing": smoothing}
    for batch in (0, 5):
        logits = torch.randn(batch, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(
            backend.device
        )
        for labels in (torch.arange(batch, device=backend.device), logits.softmax(1).flip(1)):
            leaves = [logits.clone().requires_grad_()]
            if labels.is_floating_point():
                leaves.append(labels.requires_grad_())
            ours = rmcla_fast.soft_cross_entropy(leaves[0], labels, **rule, backend=backend.name)
            theirs = torch.nn.functional.cross_entropy(leaves[0], labels, **rule)
            gradients = [torch.autograd.grad(loss.sum(), leaves) for loss in (ours, theirs)]
            for left, right in zip((ours, *gradients[0]), (theirs, *gradients[1]), strict=True):
                assert torch.allclose(left, right, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("indices", [False, True])
def test_a_bad_row_gives_nan_and_changes_no_other(
    backend: Backend, indices: bool, smoothing: float, bad: float
) -> None:
    rule = {"label_smoothing": smoothing, "backend": backend.name}
    case = LogitCase(5, 33, torch.float32, "normal", "contiguous", 1)
    logits = case.logits(backend.device)
    labels = (
        case.classes_drawn(backend.device)
        if indices
        else soft_labels(case, "distribution", torch.float32, backend.device)
    )
    if not indices:
        labels[2, 7] = 0  # 0 times NaN is still NaN
    for place in (0, 7, 32):
        spoilt = logits.clone()
        spoilt[2, place] = bad
        rows = []
        for z in (logits, spoilt):
            z = z.clone().requires_grad_()
            loss = rmcla_fast.soft_cross_entropy(z, labels, reduction="none", **rule)
            (gradient,) = torch.autograd.grad(loss.sum(), z)
            rows.append((loss.detach(), gradient))
        assert bool(rows[1][0][2].isnan())
        assert bool(rows[1][1][2].isnan().all())
        others = torch.tensor([0, 1, 3, 4], device=backend.device)
        assert torch.equal(rows[0][0][others], rows[1][0][others])
        assert torch.equal(rows[0][1][others], rows[1][1][others])
        assert bool(rmcla_fast.soft_cross_entropy(spoilt, labels, **rule).isnan())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_soft_label_makes_only_its_row_not_finite(backend: Backend, bad: float) -> None:
    """This is so with and without smoothing, which does not turn the infinite loss into NaN."""
    case = LogitCase(5, 10, torch.float32, "normal", "contiguous", 1)
    logits, labels = case.logits(backend.device), soft_labels(case, "distribution", torch.float32, backend.device)
    labels[2, 3] = bad
    for smoothing in SMOOTHING:
        rule = {"label_smoothing": smoothing, "backend": backend.name}
        loss = rmcla_fast.soft_cross_entropy(logits, labels, reduction="none", **rule)
        assert loss.isfinite().tolist() == [True, True, False, True, True]
        assert np.array_equal(loss[2].item(), bad, equal_nan=True)


@pytest.mark.parametrize(("reduction", "smoothing"), [("mean", 0.0), ("sum", 0.1), ("none", 0.4)])
def test_gradcheck(backend: Backend, reduction: str, smoothing: float) -> None:
    case = LogitCase(3, 6, torch.float64, "normal", "contiguous", 2)
    logits = case.logits(backend.device).requires_grad_()
    labels = soft_labels(case, "anything", torch.float64, backend.device).requires_grad_()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        rule = {"reduction": reduction, "label_smoothing": smoothing, "backend": backend.name}
        return rmcla_fast.soft_cross_entropy(z, y, **rule)

    assert torch.autograd.gradcheck(loss, (logits, labels))
    assert torch.autograd.gradcheck(lambda z: loss(z, case.classes_drawn(backend.device)), (logits,))


def test_only_inputs_that_require_grad_get_a_gradient(backend: Backend) -> None:
    case = LogitCase(3, 6, torch.float32, "normal", "contiguous", 2)
    logits, labels = case.logits(backend.device), soft_labels(case, "distribution", torch.float32, backend.device)
    assert not rmcla_fast.soft_cross_entropy(logits, labels, backend=backend.name).requires_grad
    labels.requires_grad_()
    rmcla_fast.soft_cross_entropy(logits, labels, backend=backend.name).backward()
    assert logits.grad is None
    assert_close(labels.grad, oracle.soft_cross_entropy(exact(logits), exact(labels))[2] / 3, LABEL_GRADIENT, "labels")


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_loss_scale_too_large_for_float16(backend: Backend, reduction: str) -> None:
    """The first scale of a gradient scaler, 65,536, is infinite in float16, but the scaled gradients are finite."""
    case = LogitCase(100, 6, torch.float16, "normal", "contiguous", 2)
    logits, labels = case.logits(backend.device), case.classes_drawn(backend.device)
    logits = logits.scatter(1, labels[:, None], 3.0)  # gradients below 1
    check(logits, labels, reduction, torch.full((100,) if reduction == "none" else (), 65_536.0), backend.name)


@pytest.mark.parametrize("wanted", ["logits", "labels"])
def test_a_second_derivative_raises(backend: Backend, wanted: str) -> None:
    logits = torch.randn(3, 6, device=backend.device, requires_grad=True)
    labels = torch.rand(3, 6, device=backend.device, requires_grad=True)
    loss = rmcla_fast.soft_cross_entropy(logits, labels, backend=backend.name)
    with pytest.raises(RuntimeError, match="soft_cross_entropy has no second derivative"):
        torch.autograd.grad(loss, {"logits": logits, "labels": labels}[wanted], create_graph=True)


def test_labels_outside_the_classes(backend: Backend) -> None:
    logits = torch.randn(4, 10, device=backend.device)
    for value in (-1, 10, -100, 2**40):  # also -100, which torch would ignore
        labels = torch.tensor([1, 2, value, 4], device=backend.device)
        if backend.checks_label_values:
            with pytest.raises(ValueError, match=rf"labels must lie in \[0, 10\); got {value} in row 2"):
                rmcla_fast.soft_cross_entropy(logits, labels, backend=backend.name)
        else:
            for smoothing in (0.0, 0.1):
                rule = {"label_smoothing": smoothing, "backend": backend.name}
                loss = rmcla_fast.soft_cross_entropy(logits, labels, reduction="none", **rule)
                assert loss.isfinite().tolist() == [True, True, False, True]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_repeated_calls_and_threads_change_no_bit(backend: Backend, reduction: str) -> None:
    case = LogitCase(3 if backend.interpreted else 1003, 33, torch.float32, "normal", "contiguous", 4)
    logits, labels = case.logits(backend.device), soft_labels(case, "distribution", torch.float32, backend.device)
    rule = {"reduction": reduction, "backend": backend.name}
    assert_threads_change_no_bit(lambda: rmcla_fast.soft_cross_entropy(logits, labels, **rule))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_opcheck(backend: Backend, reduction: str) -> None:
    operator = backend.operator("soft_cross_entropy").default
    case = LogitCase(3, 5, torch.bfloat16, "normal", "transposed", 5)
    logits = case.logits(backend.device)
    torch.library.opcheck(operator, (logits, case.classes_drawn(backend.device), reduction, False, 0.1))
    for label_gradient in (False, True):
        labels = soft_labels(case, "distribution", torch.float32, backend.device)
        torch.library.opcheck(operator, (logits, labels, reduction, label_gradient, 0.0))
