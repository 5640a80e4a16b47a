"""`redistribute_labels` against the float64 oracle and `joint_gradient`, with and without `out`."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from adversarial_inputs import FLOAT_DTYPES, LogitCase, lay_out, logit_cases, poison_free_memory, poisoned
from conftest import Backend
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_same_bits, assert_soft_labels, exact_logits
from torch import Tensor

import rmcla_fast


def expected(logits: Tensor, labels: Tensor, beta: float, gamma: float, top_k: int | None, scheme: str) -> np.ndarray:
    rows = [
        oracle.adversarial_label(z, c, beta, gamma, top_k, scheme)
        for z, c in zip(exact_logits(logits), labels.tolist(), strict=True)
    ]
    return np.array(rows).reshape(logits.shape)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def test_random_shapes(backend: Backend) -> None:
    @settings(max_examples=backend.examples)
    @given(
        case=logit_cases(backend.interpreted),
        scheme=st.sampled_from(("main", "sup")),
        top_k=st.one_of(st.none(), st.integers(1, 12), st.integers(1, 400)),
        beta=st.sampled_from((0.5, 1.0, 9.0, 11.0, 30.0)),
        gamma=st.sampled_from((1e-4, 0.01, 1.0)),
        out_layout=st.sampled_from((None, "contiguous", "strided", "transposed", "offset")),
    )
    def run(case: LogitCase, scheme: str, top_k: int | None, beta: float, gamma: float, out_layout: str | None) -> None:
        logits, labels = case.logits(backend.device), case.classes_drawn(backend.device)
        out = None
        if out_layout is not None:
            out = lay_out(poisoned(logits.shape, wide(logits.dtype), backend.device), out_layout)
        poison_free_memory(logits.numel(), backend.device)
        rule = {"beta": beta, "gamma": gamma, "top_k": top_k, "label_scheme": scheme}
        result = rmcla_fast.redistribute_labels(logits, labels, **rule, out=out, backend=backend.name)
        assert out is None or result is out
        assert result.dtype == wide(logits.dtype)
        assert not result.requires_grad
        assert_soft_labels(result, expected(logits, labels, beta, gamma, top_k, scheme))

    run()


@pytest.mark.parametrize("scheme", ["main", "sup"])
@pytest.mark.parametrize("top_k", [None, 1, 9])
def test_the_labels_are_those_of_joint_gradient(backend: Backend, scheme: str, top_k: int | None) -> None:
    for dtype in FLOAT_DTYPES:
        logits = torch.randn(4, 33, generator=torch.Generator().manual_seed(0)).to(backend.device, dtype)
        labels = torch.tensor([0, 32, 5, 17], device=backend.device)
        rule = {"top_k": top_k, "label_scheme": scheme, "backend": backend.name}
        joint = rmcla_fast.joint_gradient(logits, labels, **rule).soft_labels
        assert_same_bits(rmcla_fast.redistribute_labels(logits, labels, **rule), joint, "soft_labels")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("scheme", ["main", "sup"])
def test_a_bad_row_gives_nan_and_changes_no_other(backend: Backend, scheme: str, bad: float) -> None:
    logits = torch.randn(5, 33, generator=torch.Generator().manual_seed(1)).to(backend.device)
    labels = torch.tensor([0, 3, 7, 32, 9], device=backend.device)
    for top_k in (None, 3):
        rule = {"top_k": top_k, "label_scheme": scheme, "backend": backend.name}
        good = rmcla_fast.redistribute_labels(logits, labels, **rule)
        for place in (0, 7, 32):  # 7 is the row's own class
            spoilt = logits.clone()
            spoilt[2, place] = bad
            result = rmcla_fast.redistribute_labels(spoilt, labels, **rule)
            assert bool(result[2].isnan().all())
            assert torch.equal(result[[0, 1, 3, 4]], good[[0, 1, 3, 4]])


def test_two_classes(backend: Backend) -> None:
    """eps_y is 1 / (1 + beta) for all logits, also if p of the other class is 1 and its v is 0."""
    logits = torch.tensor([[1e4, -1e4], [1e4, -1e4], [0.0, 0.0], [3.0, -2.0]], device=backend.device)
    labels = torch.tensor([0, 1, 1, 0], device=backend.device)
    for scheme in ("main", "sup"):
        for top_k in (None, 1, 5):
            rule = {"top_k": top_k, "label_scheme": scheme, "backend": backend.name}
            result = rmcla_fast.redistribute_labels(logits, labels, beta=9.0, **rule)
            kept = result.gather(1, labels[:, None])
            assert torch.allclose(kept, torch.full_like(kept, 0.9), atol=1e-6), scheme


def test_labels_outside_the_classes(backend: Backend) -> None:
    """They are an error on a CPU, before anything is written, and on a GPU they give NaN rows."""
    logits = torch.randn(4, 10, device=backend.device)
    labels = torch.tensor([1, 2, 10, -1], device=backend.device)
    out = torch.full((4, 10), 7.0, device=backend.device)
    if backend.checks_label_values:
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 10\); got 10 in row 2"):
            rmcla_fast.redistribute_labels(logits, labels, out=out, backend=backend.name)
        assert bool((out == 7.0).all())
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 10\); got 10 in row 2"):
            rmcla_fast.redistribute_labels(logits, labels, backend=backend.name)
    else:
        rmcla_fast.redistribute_labels(logits, labels, out=out, backend=backend.name)
        assert bool(out[2:].isnan().all())
        assert bool(out[:2].isfinite().all())


def test_out_may_be_the_logits(backend: Backend) -> None:
    logits = torch.randn(5, 33, generator=torch.Generator().manual_seed(2)).to(backend.device)
    labels = torch.tensor([0, 3, 7, 32, 9], device=backend.device)
    for rule in ({"label_scheme": "main"}, {"label_scheme": "sup"}, {"top_k": 4}):
        buffer = logits.clone()
        plain = rmcla_fast.redistribute_labels(logits, labels, **rule, backend=backend.name)
        rmcla_fast.redistribute_labels(buffer, labels, **rule, out=buffer, backend=backend.name)
        assert_same_bits(buffer, plain, "out")


@pytest.mark.parametrize("scheme", ["main", "sup"])
def test_opcheck(backend: Backend, scheme: str) -> None:
    operator = backend.operator("redistribute_labels")
    labels = torch.tensor([0, 4, 2], device=backend.device)
    for dtype in (torch.float32, torch.float16):
        logits = lay_out(torch.randn(3, 5, device=backend.device).to(dtype), "transposed")
        torch.library.opcheck(operator.default, (logits, labels, 9.0, 0.01, 2, scheme))
        out = torch.empty(3, 5, device=backend.device)
        torch.library.opcheck(operator.out, (logits, labels, 9.0, 0.01, None, scheme), {"out": out})


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("scheme", ["main", "sup"])
def test_beta_and_gamma_outside_the_range_of_float32(backend: Backend, classes: int, scheme: str) -> None:
    """The labels are the limits and not NaN: equal logits get equal shares, and with a huge beta labels are one-hot."""
    logits = torch.zeros(3, classes, device=backend.device)
    labels = torch.tensor([0, 1, classes - 1], device=backend.device)
    one_hot = torch.nn.functional.one_hot(labels, classes).float()
    equal = (1 - one_hot + 9 * one_hot) / (classes + 8)
    soft = rmcla_fast.redistribute_labels(logits, labels, gamma=1e-300, label_scheme=scheme, backend=backend.name)
    torch.testing.assert_close(soft, equal, rtol=0, atol=1e-6)
    for gamma in (0.01, 1e300):
        rule = {"beta": 1e300, "gamma": gamma, "label_scheme": scheme}
        soft = rmcla_fast.redistribute_labels(logits, labels, **rule, backend=backend.name)
        torch.testing.assert_close(soft, one_hot, rtol=0, atol=1e-6)
    spread = logits + torch.arange(classes, device=backend.device)
    soft = rmcla_fast.redistribute_labels(spread, labels, gamma=1e300, backend=backend.name)
    torch.testing.assert_close(soft, equal, rtol=0, atol=1e-6)
