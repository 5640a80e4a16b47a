"""Rows of logits so large that their sums could overflow: every operator and every kernel follows one rule.

A logit of magnitude 2**64 or more (2**960 in float64) counts as infinite, and makes its row NaN. All other rows have
finite results that agree with the oracle, whatever the number of classes, beta and gamma.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import oracle
import pytest
import torch
from all_kernels import Operators, _operators  # noqa: F401  (a fixture)
from tolerances import GRADIENT, LABEL_GRADIENT, LOSS, assert_close, assert_soft_labels, exact, exact_logits
from torch import Tensor

import rmcla_fast

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Triton's interpreter, for NaN rows

CLASSES = (2, 3, 10, 16, 17, 33, 100, 129, 1000, 1025)
TARGETS = ("mc", "ll", "untargeted", "margin", "given")
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
LARGEST_BETA, LARGEST_GAMMA = 1e15, 1e20  # the public functions pass no larger ones to the kernels


def limit(dtype: torch.dtype) -> float:
    return 2.0**960 if dtype == torch.float64 else 2.0**64


def below(dtype: torch.dtype) -> float:
    """Return the largest number of `dtype` that does not count as infinite."""
    return limit(dtype) * (1 - torch.finfo(dtype).eps / 2)


def rows(classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return logits and labels: large values in the true class, in one or two others, in half of them, or in all."""
    generator = torch.Generator().manual_seed(classes)
    largest = torch.finfo(dtype).max
    values = [below(dtype), limit(dtype), limit(dtype) * (1 + torch.finfo(dtype).eps), limit(dtype) / 3, largest]
    values += [1e300, 1e307] if dtype == torch.float64 else [1e30, 1e34, 1e36, 1e38]
    result, labels = [], []
    for value, sign in itertools.product(values, (1, -1)):
        at = int(torch.randint(0, classes, (1,), generator=generator))
        z = torch.randn(6, classes, generator=generator, dtype=torch.float64)
        z[0, at] = sign * value
        z[1, (at + 1) % classes] = sign * value
        z[2, :] = sign * value
        z[2, ::2] *= -1
        z[3, at], z[3, (at + 1) % classes] = sign * value, -sign * value
        z[4, :] = sign * value
        z[5, :] = value * torch.rand(classes, generator=generator, dtype=torch.float64)
        result.append(z)
        labels += [at] * len(z)
    return torch.cat(result).to(dtype), torch.tensor(labels)


def cases(operators: Operators, dtype: torch.dtype) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield numbers of classes with logits and labels; only few for Triton's interpreter and the slow emulation."""
    for classes in (3, 17) if operators.backend.interpreted else CLASSES:
        every = 5 if operators.backend.interpreted or operators.backend.name == "emulated" else 1
        logits, labels = rows(classes, dtype)
        yield classes, logits[::every], labels[::every]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_joint_gradient_and_redistribute_labels(operators: Operators, dtype: torch.dtype) -> None:
    for classes, logits, labels in cases(operators, dtype):
        z, given = exact_logits(logits), labels.flip(0)
        finite = np.isfinite(z).all(1)
        assert finite.any()
        assert not finite.all()
        logits, labels, given = (tensor.to(operators.backend.device) for tensor in (logits, labels, given))
        rules = [(target, "main", None) for target in TARGETS] + [("mc", "none", None)]
        rules += [("mc", scheme, k) for scheme in ("main", "sup") for k in (None, 1, classes // 2)]
        for target, scheme, top_k in rules:
            wanted = given if target == "given" else None
            arguments = (logits, labels, target, wanted, 9.0, 0.01, top_k, scheme)
            objective, gradient, soft, targets = operators.call("joint_gradient", *arguments)
            of_oracle = oracle.joint_gradient(
                z, labels.tolist(), target if wanted is None else wanted.tolist(), 9.0, 0.01, top_k, scheme
            )
            assert targets.tolist() == of_oracle[3].tolist()
            assert (targets.cpu().numpy() >= 0).tolist() == finite.tolist()
            assert_close(objective, of_oracle[0], LOSS, f"objective, {classes} classes, {target}")
            assert_close(gradient, of_oracle[1], GRADIENT, f"grad_logits, {classes} classes, {target}")
            if scheme == "none":
                continue
            assert_soft_labels(soft, of_oracle[2])
            assert_soft_labels(
                operators.call("redistribute_labels", logits, labels, 9.0, 0.01, top_k, scheme), of_oracle[2]
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_labels_are_finite_for_the_largest_beta_and_gamma(operators: Operators, dtype: torch.dtype) -> None:
    for classes, logits, labels in cases(operators, dtype):
        finite = np.isfinite(exact_logits(logits)).all(1)
        logits, labels = logits.to(operators.backend.device), labels.to(operators.backend.device)
        for scheme, top_k in itertools.product(("main", "sup"), (None, 1)):
            rule = (LARGEST_BETA, LARGEST_GAMMA, top_k, scheme)
            soft = exact(operators.call("redistribute_labels", logits, labels, *rule))
            assert np.isnan(soft[~finite]).all()
            assert (np.abs(soft[finite].sum(1) - 1) < 1e-6).all(), (classes, scheme, top_k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_soft_cross_entropy(operators: Operators, dtype: torch.dtype) -> None:
    for classes, logits, labels in cases(operators, dtype):
        z = exact_logits(logits)
        soft = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0))
        soft /= soft.sum(1, keepdim=True)
        soft[:, 0] = 0
        one_hot = torch.nn.functional.one_hot(labels, classes)
        for (y, wanted), smoothing in itertools.product(((labels, one_hot), (soft, soft)), (0.0, 0.4)):
            device = operators.backend.device
            arguments = (logits.to(device), y.to(device), "none", True, smoothing)
            loss, gradient, v = operators.call("soft_cross_entropy", *arguments)
            of_oracle = oracle.soft_cross_entropy(z, exact(wanted), smoothing)
            assert_close(loss, of_oracle[0], LOSS, f"loss, {classes} classes")
            assert_close(gradient, of_oracle[1], GRADIENT, f"gradient of the logits, {classes} classes")
            assert_close(v, of_oracle[2], LABEL_GRADIENT, f"gradient of the labels, {classes} classes")
            assert np.isfinite(exact(loss)).tolist() == np.isfinite(z).all(1).tolist()


def test_beta_and_gamma_of_any_size_give_finite_labels() -> None:
    """The public function passes on no larger beta and gamma than the kernels can add up."""
    logits, labels = rows(10, torch.float32)
    finite = torch.from_numpy(np.isfinite(exact_logits(logits)).all(1))
    for beta, gamma in itertools.product((1e-300, 1e300), repeat=2):
        soft = rmcla_fast.redistribute_labels(logits, labels, beta=beta, gamma=gamma)
        assert bool((soft[finite].sum(1) - 1).abs().max() < 1e-6)
        assert bool(soft[~finite].isnan().all())


def test_rows_of_too_many_classes_are_refused(operators: Operators) -> None:
    """Class indices are 32-bit integers in the kernels."""
    if operators.backend.name not in ("cpu", "cuda", "emulated"):
        pytest.skip("only the C++ kernels check this")
    logits = torch.zeros(1, 1, device=operators.backend.device).expand(1, 2**31)
    labels = torch.zeros(1, dtype=torch.int64, device=operators.backend.device)
    message = r"logits must have fewer than 2\*\*31 - 1025 classes; got 2147483648"
    with pytest.raises(ValueError, match=message):
        operators.call("redistribute_labels", logits, labels, 9.0, 0.01, None, "main")
    with pytest.raises(ValueError, match=message):
        operators.call("soft_cross_entropy", logits, labels, "none", False, 0.0)
