"""`joint_gradient` against the float64 oracle, with random and with difficult inputs."""

from __future__ import annotations

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
from tolerances import (
    GRADIENT,
    LOSS,
    SOFT_LABELS,
    assert_close,
    assert_soft_labels,
    assert_threads_change_no_bit,
    exact,
    exact_logits,
)
from torch import Tensor

import rmcla_fast

TARGETS = ("mc", "ll", "untargeted", "margin")
SCHEMES = ("main", "sup", "none")


def check(result: rmcla_fast.JointGradient, logits: Tensor, labels: Tensor, target: str | Tensor, **rule) -> None:
    """Check values, dtypes and shapes of a result against the oracle."""
    wanted_target = target.tolist() if isinstance(target, Tensor) else target
    objective, gradient, soft, targets = oracle.joint_gradient(
        exact_logits(logits),
        labels.tolist(),
        wanted_target,
        rule["beta"],
        rule["gamma"],
        rule["top_k"],
        rule["label_scheme"],
    )
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    assert result.objective.dtype == wide
    assert result.grad_logits.dtype == logits.dtype
    assert result.targets.dtype == torch.int64
    assert result.targets.tolist() == targets.tolist()
    assert_close(result.objective, objective, LOSS, "objective")
    assert_close(result.grad_logits, gradient, GRADIENT, "grad_logits")
    if soft is None:
        assert result.soft_labels is None
    else:
        assert result.soft_labels.dtype == wide
        assert_soft_labels(result.soft_labels, soft)
    for tensor in result:
        assert tensor is None or (not tensor.requires_grad and tensor.is_contiguous())


DEFAULT = {"beta": 9.0, "gamma": 0.01, "top_k": None, "label_scheme": "main"}


def test_random_shapes(backend: Backend) -> None:
    @settings(max_examples=backend.examples)
    @given(
        case=logit_cases(backend.interpreted),
        target=st.sampled_from((*TARGETS, "given")),
        scheme=st.sampled_from(SCHEMES),
        top_k=st.one_of(st.none(), st.integers(1, 12), st.integers(1, 400)),
        beta=st.sampled_from((0.5, 1.0, 9.0, 11.0, 30.0)),
        gamma=st.sampled_from((1e-4, 0.01, 1.0)),
    )
    def run(case: LogitCase, target: str, scheme: str, top_k: int | None, beta: float, gamma: float) -> None:
        logits, labels = case.logits(backend.device), case.classes_drawn(backend.device)
        wanted = case.classes_drawn(backend.device, salt=1) if target == "given" else target
        rule = {"beta": beta, "gamma": gamma, "top_k": top_k, "label_scheme": scheme}
        poison_free_memory(logits.numel(), backend.device)
        result = rmcla_fast.joint_gradient(logits, labels, target=wanted, **rule, backend=backend.name)
        check(result, logits, labels, wanted, **rule)

    run()


@pytest.mark.parametrize("scheme", ["main", "sup"])
@pytest.mark.parametrize("top_k", [None, 1, 9, 1000])
def test_imagenet_21k_classes(backend: Backend, scheme: str, top_k: int | None) -> None:
    if backend.interpreted:
        pytest.skip("21,841 classes take minutes in Triton's interpreter")
    logits = (5 * torch.randn(3, 21_841, generator=torch.Generator().manual_seed(0))).to(backend.device)
    labels = torch.tensor([0, 21_840, 12_345], device=backend.device)
    rule = {**DEFAULT, "top_k": top_k, "label_scheme": scheme}
    check(rmcla_fast.joint_gradient(logits, labels, **rule, backend=backend.name), logits, labels, "mc", **rule)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_ties_of_equal_logits_go_to_the_lower_class(backend: Backend, dtype: torch.dtype, target: str) -> None:
    classes = 33 if backend.interpreted else 257
    labels = torch.arange(classes if not backend.interpreted else 4, device=backend.device)
    logits = torch.full((len(labels), classes), 0.5, dtype=dtype, device=backend.device)
    rule = {**DEFAULT, "top_k": 3}
    result = rmcla_fast.joint_gradient(logits, labels, target=target, **rule, backend=backend.name)
    check(result, logits, labels, target, **rule)


@pytest.mark.parametrize("gap", [1, 7, 8, 15, 16, 31, 32, 33, 64, 128, 200])
def test_ties_between_lanes_go_to_the_lower_class(backend: Backend, gap: int) -> None:
    """The largest or smallest value is in two lanes of a vector, a warp or a block, and one may be the label's."""
    classes = 210 if not backend.interpreted else 66
    if gap >= classes - 3:
        pytest.skip("rows are shorter in Triton's interpreter")
    for first in (0, 1, 2):
        logits = torch.linspace(-1, 1, classes).repeat(4, 1)
        logits[0:2, [first, first + gap]] = 5.0
        logits[2:4, [first, first + gap]] = -5.0
        labels = torch.tensor([classes - 1, first, classes - 1, first])
        logits, labels = logits.to(backend.device), labels.to(backend.device)
        for target in ("mc", "ll"):
            rule = {**DEFAULT, "top_k": 1}
            result = rmcla_fast.joint_gradient(logits, labels, target=target, **rule, backend=backend.name)
            check(result, logits, labels, target, **rule)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("target", [*TARGETS, "given"])
def test_a_bad_row_gives_nan_and_changes_no_other(backend: Backend, target: str, scheme: str, bad: float) -> None:
    for classes in (10,) if backend.interpreted else (2, 10, 1000):
        generator = torch.Generator().manual_seed(classes)
        logits = torch.randn(5, classes, generator=generator).to(backend.device)
        labels = torch.randint(0, classes, (5,), generator=generator).to(backend.device)
        wanted = labels.flip(0) if target == "given" else target
        rule = {**DEFAULT, "label_scheme": scheme, "top_k": 3}
        good = rmcla_fast.joint_gradient(logits, labels, target=wanted, **rule, backend=backend.name)
        for place in {int(labels[2]), *(() if backend.interpreted else (0, classes // 2)), classes - 1}:
            spoilt = logits.clone()
            spoilt[2, place] = bad
            result = rmcla_fast.joint_gradient(spoilt, labels, target=wanted, **rule, backend=backend.name)
            assert result.targets[2] == -1
            for name, before, after in zip(good._fields[:3], good[:3], result[:3], strict=True):
                if before is not None:
                    assert bool(after[2].isnan().all()), f"{name} of the bad row"
                    others = torch.tensor([0, 1, 3, 4], device=backend.device)
                    assert torch.equal(before[others], after[others]), f"{name} of a good row"
            assert result.targets[[0, 1, 3, 4]].tolist() == good.targets[[0, 1, 3, 4]].tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_the_same_computation(backend: Backend, dtype: torch.dtype) -> None:
    """Float16 and bfloat16 rows give the results of their exact float32 copies, rounded once when stored."""
    logits = torch.randn(4, 33, generator=torch.Generator().manual_seed(3)).to(dtype).to(backend.device)
    labels = torch.tensor([0, 5, 31, 32], device=backend.device)
    stored = rmcla_fast.joint_gradient(logits, labels, backend=backend.name)
    exact_copy = rmcla_fast.joint_gradient(logits.float(), labels, backend=backend.name)
    assert_close(stored.objective, exact(exact_copy.objective), LOSS, "objective")
    assert_close(stored.soft_labels, exact(exact_copy.soft_labels), SOFT_LABELS, "soft_labels")
    assert_close(stored.grad_logits, exact(exact_copy.grad_logits), GRADIENT, "grad_logits")


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_empty_batch(backend: Backend, dtype: torch.dtype, classes: int) -> None:
    logits = torch.empty(0, classes, dtype=dtype, device=backend.device)
    labels = torch.empty(0, dtype=torch.int64, device=backend.device)
    result = rmcla_fast.joint_gradient(logits, labels, backend=backend.name)
    check(result, logits, labels, "mc", **DEFAULT)


def test_many_rows(backend: Backend) -> None:
    """There are more rows than one grid dimension or chunk holds, and each is computed independently."""
    rows = 70 if backend.interpreted else 100_003
    logits = torch.randn(rows, 10, generator=torch.Generator().manual_seed(1)).to(backend.device)
    labels = (torch.arange(rows) % 10).to(backend.device)
    result = rmcla_fast.joint_gradient(logits, labels, backend=backend.name)
    some = torch.linspace(0, rows - 1, 50).long().to(backend.device)
    picked = rmcla_fast.JointGradient(*(tensor[some] for tensor in result))
    check(picked, logits[some], labels[some], "mc", **DEFAULT)
    alone = rmcla_fast.joint_gradient(logits, labels, backend="reference")
    assert torch.equal(result.targets.cpu(), alone.targets.cpu())
    assert_close(result.soft_labels, exact(alone.soft_labels), SOFT_LABELS, "soft_labels")
    assert_close(result.grad_logits, exact(alone.grad_logits), GRADIENT, "grad_logits")


@pytest.mark.parametrize("layout", ["transposed", "strided", "offset", "expanded"])
def test_every_layout(backend: Backend, layout: str) -> None:
    logits = lay_out(torch.randn(6, 65, generator=torch.Generator().manual_seed(2)).to(backend.device), layout)
    labels = lay_out(torch.arange(6, device=backend.device), "strided")
    for top_k in (None, 5):
        rule = {**DEFAULT, "top_k": top_k}
        check(rmcla_fast.joint_gradient(logits, labels, **rule, backend=backend.name), logits, labels, "mc", **rule)


@pytest.mark.parametrize(("rows", "classes"), [(2003, 10), (300, 1000)])
def test_repeated_calls_and_threads_change_no_bit(backend: Backend, rows: int, classes: int) -> None:
    if backend.interpreted:
        rows, classes = 3, min(classes, 33)
    logits = torch.randn(rows, classes, generator=torch.Generator().manual_seed(4)).to(backend.device)
    labels = (torch.arange(rows) % classes).to(backend.device)
    rule = {"top_k": 5, "label_scheme": "sup", "backend": backend.name}
    assert_threads_change_no_bit(lambda: rmcla_fast.joint_gradient(logits, labels, **rule))


def test_outputs_never_require_grad(backend: Backend) -> None:
    logits = torch.randn(3, 5, device=backend.device, requires_grad=True)
    labels = torch.tensor([0, 1, 4], device=backend.device)
    assert not any(tensor.requires_grad for tensor in rmcla_fast.joint_gradient(logits, labels, backend=backend.name))


@pytest.mark.parametrize("target", ["mc", "given"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_opcheck(backend: Backend, scheme: str, target: str) -> None:
    operator = backend.operator("joint_gradient")
    labels = torch.tensor([0, 4, 2], device=backend.device)
    wanted = labels.flip(0) if target == "given" else None
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.randn(3, 5, device=backend.device).to(dtype)
        for layout in ("contiguous", "transposed"):
            arguments = (lay_out(logits, layout), labels, target, wanted, 9.0, 0.01, 2, scheme)
            torch.library.opcheck(operator.default, arguments)


@pytest.mark.parametrize("top_k", [None, 4])
def test_labels_outside_the_classes(backend: Backend, top_k: int | None) -> None:
    """They are an error on a CPU, and on a GPU, which the check would stall, they give a NaN row."""
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(8)).to(backend.device)
    labels = torch.tensor([1, 2, 3, 4], device=backend.device)
    rule = {"top_k": top_k, "backend": backend.name}
    good = rmcla_fast.joint_gradient(logits, labels, target=labels.flip(0), **rule)
    for name in ("labels", "target"):
        for value in (-1, 10, 2**32, -(2**62)):  # the lower 32 bits of 2**32 are class 0
            spoilt = labels.flip(0) if name == "target" else labels.clone()
            spoilt[2] = value
            arguments = {"labels": labels, "target": labels.flip(0), name: spoilt}
            if backend.checks_label_values:
                with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 10\); got {value} in row 2"):
                    rmcla_fast.joint_gradient(logits, **arguments, **rule)
                continue
            result = rmcla_fast.joint_gradient(logits, **arguments, **rule)
            assert result.targets[2] == -1
            for before, after in zip(good[:3], result[:3], strict=True):
                assert bool(after[2].isnan().all())
                assert torch.equal(before[[0, 1, 3]], after[[0, 1, 3]])
