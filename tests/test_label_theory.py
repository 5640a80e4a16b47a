"""The properties of labels that the paper proves (supplementary equations 7 to 10), for the oracle and all backends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import oracle
import pytest
import torch
from conftest import backend_named, why_skip
from hypothesis import given
from hypothesis import strategies as st

import rmcla_fast
from rmcla_fast.ops.dispatch import BACKENDS

Rule = Callable[..., np.ndarray]
PARAMS = ["oracle", *(pytest.param(name, marks=pytest.mark.gpu) if name == "cuda" else name for name in BACKENDS)]


@pytest.fixture(scope="session", params=PARAMS)
def label_of(request: pytest.FixtureRequest) -> Rule:
    """Return a function (z, c, beta, gamma, top_k, scheme) -> y' of one float64 row."""
    if request.param == "oracle":
        return oracle.adversarial_label
    backend = backend_named(request.param)
    reason = why_skip(backend)
    if reason:
        pytest.skip(f"backend {backend.name!r}: {reason}")

    def rule(z: np.ndarray, c: int, beta: float, gamma: float, top_k: int | None, scheme: str) -> np.ndarray:
        logits, labels = torch.from_numpy(z)[None].to(backend.device), torch.tensor([c], device=backend.device)
        options = {"beta": beta, "gamma": gamma, "top_k": top_k, "label_scheme": scheme, "backend": backend.name}
        return rmcla_fast.redistribute_labels(logits, labels, **options)[0].cpu().numpy()

    return rule


@st.composite
def rows(draw: st.DrawFn, least: int = 3) -> tuple[np.ndarray, int]:
    """Draw the logits of one image, whose v differ by far more than rounding errors, and its class."""
    classes = draw(st.integers(least, 40))
    scale = draw(st.sampled_from((0.3, 1.0, 3.0)))
    z = scale * np.random.default_rng(draw(st.integers(0, 2**31))).standard_normal(classes)
    return z, draw(st.integers(0, classes - 1))


BETAS = st.sampled_from((0.5, 1.0, 9.0, 11.0, 30.0))
BELOW = st.floats(0.01, 0.95)  # gamma / v_MC for which main gives the most confusing class less than sup
ABOVE = st.floats(1.05, 50.0)  # gamma / v_MC for which main gives it more


def v_and_most_confusing(z: np.ndarray, c: int) -> tuple[np.ndarray, int]:
    return oracle.label_gradient(z), oracle.most_confusing(z, c)


def objective_at_equal_mass(y: np.ndarray, v: np.ndarray, c: int) -> float:
    """Return sum_k y'_k v_k over the classes other than c, for eps_y = 1.

    eps_y and y'_c v_c are the same in both rules, so they are left out.
    """
    others = np.arange(len(v)) != c
    return float((y[others] * v[others]).sum() / y[others].sum())


def test_main_moves_less_mass_to_the_most_confusing_class(label_of: Rule) -> None:
    @given(row=rows(), beta=BETAS, factor=BELOW)
    def run(row: tuple[np.ndarray, int], beta: float, factor: float) -> None:
        z, c = row
        v, mc = v_and_most_confusing(z, c)
        gamma = factor * v[mc]
        assert label_of(z, c, beta, gamma, None, "main")[mc] < label_of(z, c, beta, gamma, None, "sup")[mc]

    run()


def test_a_gamma_above_v_mc_reverses_the_inequality(label_of: Rule) -> None:
    @given(row=rows(), beta=BETAS, factor=ABOVE)
    def run(row: tuple[np.ndarray, int], beta: float, factor: float) -> None:
        z, c = row
        v, mc = v_and_most_confusing(z, c)
        gamma = factor * v[mc]
        assert label_of(z, c, beta, gamma, None, "main")[mc] > label_of(z, c, beta, gamma, None, "sup")[mc]

    run()


def test_with_a_gamma_of_v_mc_both_rules_are_equal(label_of: Rule) -> None:
    @given(row=rows(), beta=BETAS)
    def run(row: tuple[np.ndarray, int], beta: float) -> None:
        z, c = row
        v, mc = v_and_most_confusing(z, c)
        main, sup = (label_of(z, c, beta, v[mc], None, scheme) for scheme in ("main", "sup"))
        assert np.allclose(main, sup, rtol=1e-12, atol=1e-15)

    run()


def test_equal_logits_give_equal_shares_under_both_rules(label_of: Rule) -> None:
    """The proofs exclude this case: if all v are equal, gamma makes no difference."""
    for classes in (2, 3, 10):
        z = np.full(classes, 1.5)
        for gamma in (0.001, 0.01, 5.0):
            for scheme in ("main", "sup"):
                y = label_of(z, 1, 9.0, gamma, None, scheme)
                wanted = np.full(classes, 1 / (classes - 1 + 9))
                wanted[1] = 9 / (classes - 1 + 9)
                assert np.allclose(y, wanted, rtol=1e-12)


def test_at_equal_mass_main_has_the_larger_objective(label_of: Rule) -> None:
    @given(row=rows(), beta=BETAS, below=BELOW, above=ABOVE)
    def run(row: tuple[np.ndarray, int], beta: float, below: float, above: float) -> None:
        z, c = row
        v, mc = v_and_most_confusing(z, c)
        sup = objective_at_equal_mass(label_of(z, c, beta, 0.01, None, "sup"), v, c)
        assert objective_at_equal_mass(label_of(z, c, beta, below * v[mc], None, "main"), v, c) > sup
        assert objective_at_equal_mass(label_of(z, c, beta, above * v[mc], None, "main"), v, c) < sup

    run()


def test_sup_is_one_gradient_step_on_the_label(label_of: Rule) -> None:
    @given(row=rows(), beta=BETAS)
    def run(row: tuple[np.ndarray, int], beta: float) -> None:
        z, c = row
        v, y = oracle.label_gradient(z), label_of(row[0], c, beta, 0.01, None, "sup")
        others = np.arange(len(z)) != c
        alpha = 1 / (v[others].sum() + beta * v[others].max())
        assert np.allclose(y[others], alpha * v[others], rtol=1e-11, atol=1e-15)

    run()


def test_the_true_class_keeps_beta_times_the_largest_share(label_of: Rule) -> None:
    @given(
        row=rows(least=2),
        beta=BETAS,
        gamma=st.sampled_from((1e-4, 0.01, 2.0)),
        top_k=st.one_of(st.none(), st.integers(1, 45)),
        scheme=st.sampled_from(("main", "sup")),
    )
    def run(row: tuple[np.ndarray, int], beta: float, gamma: float, top_k: int | None, scheme: str) -> None:
        z, c = row
        y = label_of(z, c, beta, gamma, top_k, scheme)
        others = np.arange(len(z)) != c
        assert abs(y.sum() - 1) < 1e-12
        assert y.min() >= 0
        assert y[c] >= beta * y[others].max() * (1 - 1e-12)
        receiving = len(z) - 1 if top_k is None else min(top_k, len(z) - 1)
        assert np.count_nonzero(y[others]) == receiving
        assert set(np.nonzero(y)[0]) - {c} == set(oracle.receivers_of(z, c, top_k))
        if receiving == len(z) - 1:
            assert np.array_equal(y, label_of(z, c, beta, gamma, None, scheme))  # top_k >= n - 1 is the full rule

    run()


def test_two_classes_get_mass_in_the_ratio_of_beta_to_one(label_of: Rule) -> None:
    @given(first=st.floats(-1e4, 1e4), second=st.floats(-1e4, 1e4), beta=BETAS, scheme=st.sampled_from(("main", "sup")))
    def run(first: float, second: float, beta: float, scheme: str) -> None:
        y = label_of(np.array([first, second]), 1, beta, 0.01, None, scheme)
        assert np.allclose(y, [1 / (1 + beta), beta / (1 + beta)], rtol=1e-12)

    run()


def test_the_log_sum_exp_cancels_in_main(label_of: Rule) -> None:
    """A change of the true class's logit, or a shift of all logits, changes nothing."""

    @given(row=rows(), beta=BETAS, shift=st.sampled_from((-64.0, 0.5, 1024.0)))
    def run(row: tuple[np.ndarray, int], beta: float, shift: float) -> None:
        z, c = row
        y = label_of(z, c, beta, 0.01, None, "main")
        assert np.allclose(label_of(z + shift, c, beta, 0.01, None, "main"), y, rtol=0, atol=1e-12)
        moved = z.copy()
        moved[c] += shift
        assert np.allclose(label_of(moved, c, beta, 0.01, None, "main"), y, rtol=0, atol=1e-12)

    run()
