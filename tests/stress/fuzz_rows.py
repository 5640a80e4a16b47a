"""Cases of the fuzzer for the operators on rows of logits, compared with the float64 oracle."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np
import oracle
import pytest
import torch
from adversarial_inputs import FLOAT_DTYPES, poison_free_memory
from stress.fuzz_elements import Target
from stress.fuzz_images import generator_of
from stress.fuzz_logits import as_read, draw_classes, draw_logits, draw_shape, known
from stress.fuzz_memory import Arguments, draw_number
from tolerances import (
    GRADIENT,
    LABEL_GRADIENT,
    LOSS,
    SOFT_LABEL_SUM,
    SOFT_LABELS,
    Tolerance,
    assert_close,
    assert_same_bits,
    exact,
)
from torch import Tensor

import rmcla_fast
from rmcla_fast.ops.tensors import compute_dtype

NAN = float("nan")
TARGETS = ("mc", "ll", "untargeted", "margin", "given")
# A gradient in 16 bits was rounded once before the incoming gradient scales it, and is rounded again after.
SCALED_GRADIENT = {
    dtype: Tolerance(1e-6, units_in_last_place=2) if dtype.itemsize == 2 else bound for dtype, bound in GRADIENT.items()
}
SCALED_LABEL_GRADIENT = {**LABEL_GRADIENT, torch.float64: LABEL_GRADIENT[torch.float32]}  # of float32 arithmetic


class Rule(NamedTuple):
    """The four arguments that define the adversarial labels."""

    beta: float
    gamma: float
    top_k: int | None
    label_scheme: str


def draw_rule(draw: random.Random, classes: int, schemes: tuple[str, ...]) -> Rule:
    top_k = draw.choice((None, None, draw.randint(1, 12), draw.randint(1, classes + 1), max(classes - 2, 1), 10**12))
    return Rule(
        draw.choice((9.0, 0.5, 1.0, 11.0, 30.0, 1e-30, 1e30, draw_number(draw, 1e-3, 1e6))),
        draw.choice((0.01, 1e-4, 1.0, 1e-30, 1e30, draw_number(draw, 1e-6, 1e6))),
        top_k,
        draw.choice(schemes),
    )


def shares(z: np.ndarray, label: int, rule: Rule) -> np.ndarray:
    """Return the shares of a row, of which its label is a multiple, and NaN for the classes that receive no mass.

    For "main", the oracle subtracts values v that nearly cancel for the largest and the smallest logits here; their
    differences are those of the logits.
    """
    beta, gamma = min(rule.beta, 1e15), min(max(rule.gamma, 2.0**-100), 1e20)  # the bounds of the public function
    receivers = oracle.receivers_of(z, label, rule.top_k)
    share = np.full_like(z, np.nan)
    if rule.label_scheme == "main":
        share[receivers] = np.delete(z, label).max() - z[receivers] + gamma
    else:
        share[receivers] = oracle.label_gradient(z)[receivers] if len(z) > 2 else 1
    share[label] = beta * np.nanmax(share)
    return share


def check_soft_labels(soft: Tensor, rows: np.ndarray, labels: Tensor, rule: Rule) -> None:
    """Check the values, the sum of each row, and that classes that receive no mass are exactly 0."""
    got, wanted = exact(soft), np.full(rows.shape, np.nan)
    for row, (z, label) in enumerate(zip(rows, labels.tolist(), strict=True)):
        if np.isfinite(z).all():
            share = shares(z, label, rule)
            wanted[row] = np.nan_to_num(share) / np.nansum(share)
            assert (got[row][np.isnan(share)] == 0).all(), "soft_labels: must be exactly 0 for classes without mass"
    assert_close(soft, wanted, SOFT_LABELS, "soft_labels")
    off = np.abs(got.sum(1) - 1)
    assert (off[np.isfinite(off)] <= SOFT_LABEL_SUM[soft.dtype]).all(), "soft_labels: rows must sum to 1"


class JointCase:
    """The arguments of `joint_gradient` and `joint_objective`, and the check of their results."""

    def __init__(self, draw: random.Random, target: Target) -> None:
        generator = generator_of(draw)
        shape = draw_shape(draw, target.small)
        self.generator = generator
        missing = draw.choice(("labels", "target", *[""] * 40))
        self.rule = draw_rule(draw, shape[1], ("main", "sup", "none"))
        self.wanted = draw.choice(TARGETS)
        self.arguments = Arguments(draw, target.device)
        self.arguments.add("logits", draw_logits(draw, generator, shape, draw.choice(FLOAT_DTYPES)))
        self.arguments.add("labels", draw_classes(draw, generator, shape, missing == "labels"))
        if self.wanted == "given":
            self.arguments.add("target", draw_classes(draw, generator, shape, missing == "target"))
        self.arguments.build()
        copies = self.arguments.copies
        self.valid = known(copies["labels"], shape[1])
        if self.wanted == "given":
            self.valid &= known(copies["target"], shape[1])
        poison_free_memory(copies["logits"].numel(), target.device)

    def options(self, target: Target) -> dict[str, Any]:
        given = {"target": self.arguments.tensors.get("target", self.wanted)}
        return {**self.rule._asdict(), **given, "backend": target.backend}

    def fails(self, target: Target) -> bool:
        return target.checks_labels and not bool(self.valid.all())

    def check(self, result: rmcla_fast.JointGradient) -> None:
        copies, rule = self.arguments.copies, self.rule
        logits, labels = copies["logits"], copies["labels"].clamp(0, copies["logits"].shape[1] - 1)
        wanted_target = copies["target"].tolist() if self.wanted == "given" else self.wanted
        rows = as_read(logits, self.valid)
        objective, gradient, _, targets = oracle.joint_gradient(
            rows, labels.tolist(), wanted_target, rule.beta, rule.gamma, rule.top_k, "none"
        )
        wide = compute_dtype(logits)
        assert result.targets.tolist() == targets.tolist(), f"targets: {result.targets}, expected {targets}"
        assert_close(result.objective, objective, LOSS, "objective")
        assert_close(result.grad_logits, gradient.astype(np.float64), GRADIENT, "grad_logits")
        assert (result.objective.dtype, result.grad_logits.dtype) == (wide, logits.dtype)
        if rule.label_scheme == "none":
            assert result.soft_labels is None
        else:
            assert result.soft_labels is not None
            assert result.soft_labels.dtype == wide
            check_soft_labels(result.soft_labels, rows, labels, rule)
        for tensor in result:
            assert tensor is None or (not tensor.requires_grad and tensor.is_contiguous())
        self.arguments.check()


def joint_gradient(draw: random.Random, target: Target) -> None:
    case = JointCase(draw, target)
    tensors = case.arguments.tensors
    if case.fails(target):
        with pytest.raises(ValueError, match=r"must lie in \[0,"):
            rmcla_fast.joint_gradient(tensors["logits"], tensors["labels"], **case.options(target))
        case.arguments.check()
        return
    case.check(rmcla_fast.joint_gradient(tensors["logits"], tensors["labels"], **case.options(target)))


def joint_objective(draw: random.Random, target: Target) -> None:
    """The results are those of `joint_gradient`, and its gradient times the incoming one is the derivative."""
    case = JointCase(draw, target)
    logits, labels = case.arguments.tensors["logits"].detach().requires_grad_(), case.arguments.tensors["labels"]
    if case.fails(target):
        with pytest.raises(ValueError, match=r"must lie in \[0,"):
            rmcla_fast.joint_objective(logits, labels, **case.options(target))
        return
    result = rmcla_fast.joint_objective(logits, labels, **case.options(target))
    plain = rmcla_fast.joint_gradient(logits, labels, **case.options(target))
    case.check(plain)
    assert_same_bits(result.objective, plain.objective, "objective")
    assert_same_bits(result.targets, plain.targets, "targets")
    if plain.soft_labels is not None:
        assert result.soft_labels is not None
        assert_same_bits(result.soft_labels, plain.soft_labels, "soft_labels")
    upstream = (3 * torch.randn(len(labels), generator=case.generator)).to(result.objective)
    (gradient,) = torch.autograd.grad(result.objective, logits, upstream)
    scaled = (plain.grad_logits.to(upstream.dtype) * upstream[:, None]).to(logits.dtype)
    assert_same_bits(gradient, scaled, "derivative")
    case.arguments.check()


def redistribute_labels(draw: random.Random, target: Target) -> None:
    generator = generator_of(draw)
    shape = draw_shape(draw, target.small)
    rule = draw_rule(draw, shape[1], ("main", "sup"))
    values = draw_logits(draw, generator, shape, draw.choice(FLOAT_DTYPES))
    arguments = Arguments(draw, target.device)
    arguments.add("logits", values)
    arguments.add("labels", draw_classes(draw, generator, shape, draw.random() < 0.02))
    arguments.build(shape, compute_dtype(values))
    tensors, logits, labels = arguments.tensors, arguments.copies["logits"], arguments.copies["labels"]
    valid = known(labels, shape[1])
    poison_free_memory(logits.numel(), target.device)
    options = {**rule._asdict(), "out": arguments.out, "backend": target.backend}
    if target.checks_labels and not bool(valid.all()):
        with pytest.raises(ValueError, match=r"labels must lie in \[0,"):
            rmcla_fast.redistribute_labels(tensors["logits"], tensors["labels"], **options)
        arguments.check(out_is_unchanged=True)
        return
    result = rmcla_fast.redistribute_labels(tensors["logits"], tensors["labels"], **options)
    assert result.dtype == compute_dtype(logits)
    assert arguments.out is None or result is arguments.out
    check_soft_labels(result, as_read(logits, valid), labels.clamp(0, shape[1] - 1), rule)
    arguments.check()


def draw_soft_labels(draw: random.Random, generator: torch.Generator, shape: tuple[int, int]) -> Tensor:
    """Draw labels (B, C): distributions, one-hot rows, or rows of any sum and sign, some with NaN."""
    kind = draw.choice(("distribution", "distribution", "one-hot", "anything", "signed", "zeros", "nan"))
    labels = torch.rand(shape, generator=generator, dtype=torch.float64)
    if kind == "distribution":
        return labels / labels.sum(1, keepdim=True)
    if kind == "one-hot":
        places = torch.randint(0, shape[1], (shape[0], 1), generator=generator)
        return torch.zeros(shape, dtype=torch.float64).scatter(1, places, 1.0)
    if kind == "signed":
        return 10 * (labels - 0.5)
    if kind == "nan" and shape[0]:
        labels[draw.randrange(shape[0]), draw.randrange(shape[1])] = NAN
    return labels * (kind != "zeros")


def soft_cross_entropy(draw: random.Random, target: Target) -> None:
    generator = generator_of(draw)
    shape = draw_shape(draw, target.small)
    indices, label_dtype = draw.random() < 0.3, draw.choice(FLOAT_DTYPES)
    reduction = draw.choice(("mean", "sum", "none"))
    arguments = Arguments(draw, target.device)
    arguments.add("logits", draw_logits(draw, generator, shape, draw.choice(FLOAT_DTYPES)))
    if indices:
        arguments.add("labels", draw_classes(draw, generator, shape, draw.random() < 0.05))
    else:
        arguments.add("labels", draw_soft_labels(draw, generator, shape).to(label_dtype))
    arguments.build()
    copies = arguments.copies
    wide = compute_dtype(copies["logits"])
    valid = known(copies["labels"], shape[1]) if indices else torch.ones(shape[0], dtype=torch.bool)
    poison_free_memory(copies["logits"].numel(), target.device)
    logits, labels = arguments.tensors["logits"].detach().requires_grad_(), arguments.tensors["labels"].detach()
    differentiable = not indices and draw.random() < 0.7
    labels.requires_grad_(differentiable)
    smoothing = draw.choice((0.0, 0.0, 0.1, 0.999, 1e-30, draw.random()))
    options = {"reduction": reduction, "label_smoothing": smoothing, "backend": target.backend}
    if target.checks_labels and not bool(valid.all()):
        with pytest.raises(ValueError, match=r"labels must lie in \[0,"):
            rmcla_fast.soft_cross_entropy(logits, labels, **options)
        return
    loss = rmcla_fast.soft_cross_entropy(logits, labels, **options)
    size = (shape[0],) if reduction == "none" else ()
    factor = draw.choice((1.0, 1.0, 0.0, 65536.0, draw.gauss(0, 1)))
    upstream = torch.full(size, factor) if draw.random() < 0.5 else factor * torch.randn(size, generator=generator)
    loss.backward(upstream.to(loss))

    if indices:
        y = np.zeros(shape)
        y[np.arange(shape[0]), copies["labels"].clamp(0, shape[1] - 1).numpy()] = 1
    else:
        y = exact(copies["labels"])
    rows, gradient, v = oracle.soft_cross_entropy(as_read(copies["logits"], valid), y, smoothing)
    gradient, v = gradient.astype(np.float64), v.astype(np.float64)
    terms = (np.abs(y) + smoothing / (1 - smoothing) / shape[1]) * v  # v is (1 - smoothing) times -log p
    size_of_terms = terms.sum(1)  # the error of a sum grows with its terms, which may cancel
    count = shape[0] if reduction == "mean" else 1
    if reduction != "none":
        with np.errstate(invalid="ignore"):
            rows, size_of_terms = (np.asarray(np.float64(sums.sum()) / count) for sums in (rows, size_of_terms))
    assert loss.dtype == wide
    assert_close(loss, rows, LOSS, "loss", (1 + size_of_terms) / (1 + np.abs(rows)))
    scale = exact(upstream.to(loss.dtype))[..., None] / max(count, 1)
    bound = np.maximum(1, np.abs(y).sum(1, keepdims=True)) * np.maximum(1, np.abs(scale))
    assert logits.grad is not None
    assert logits.grad.dtype == logits.dtype
    assert_close(logits.grad, scale * gradient, SCALED_GRADIENT, "gradient of the logits", bound)
    if differentiable:
        assert labels.grad is not None
        assert labels.grad.dtype == labels.dtype
        table = LABEL_GRADIENT if wide == torch.float64 else SCALED_LABEL_GRADIENT
        wanted = exact(torch.from_numpy(scale * v).to(label_dtype))  # may overflow
        assert_close(labels.grad, wanted, table, "gradient of the labels", np.maximum(1, np.abs(scale)))
    arguments.check()
