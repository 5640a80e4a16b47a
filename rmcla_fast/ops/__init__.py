"""The fused operators. Each file has a public function, its checks, and its registration with PyTorch."""

from rmcla_fast.ops.augment import augment
from rmcla_fast.ops.joint_gradient import (
    JointGradient,
    JointObjective,
    joint_gradient,
    joint_objective,
    redistribute_labels,
)
from rmcla_fast.ops.perturb_step import perturb_step
from rmcla_fast.ops.random_start import random_start
from rmcla_fast.ops.soft_cross_entropy import soft_cross_entropy

__all__ = [
    "JointGradient",
    "JointObjective",
    "augment",
    "joint_gradient",
    "joint_objective",
    "perturb_step",
    "random_start",
    "redistribute_labels",
    "soft_cross_entropy",
]
