"""Attacks on any `nn.Module` that maps images in [0, 1] to logits, and the accuracy that each of them leaves."""

from rmcla_fast.attacks.attack_result import AttackResult
from rmcla_fast.attacks.gradient_norm import GradientNorm, gradient_norm
from rmcla_fast.attacks.pgd import pgd
from rmcla_fast.attacks.suite import ATTACKS, evaluate

__all__ = ["ATTACKS", "AttackResult", "GradientNorm", "evaluate", "gradient_norm", "pgd"]
