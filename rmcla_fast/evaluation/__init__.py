"""How robust a model is: the paper's attacks and the field's, on any `nn.Module` that maps [0, 1] images to logits."""

from rmcla_fast.evaluation.attacks import pgd
from rmcla_fast.evaluation.gradient_magnitude import GradientMagnitude, gradient_magnitude
from rmcla_fast.evaluation.protocol import ATTACKS, AttackResult, evaluate

__all__ = ["ATTACKS", "AttackResult", "GradientMagnitude", "evaluate", "gradient_magnitude", "pgd"]
