"""The operators in a few lines of plain torch each; they run on any device, and every backend is tested against them.

They take the arguments of the registered schemas. The public functions in `rmcla_fast.ops` check shapes and dtypes.
"""

from rmcla_fast.reference.augment import augment
from rmcla_fast.reference.joint_gradient import joint_gradient, redistribute_labels
from rmcla_fast.reference.perturb_step import perturb_step
from rmcla_fast.reference.random_start import random_start
from rmcla_fast.reference.soft_cross_entropy import soft_cross_entropy

__all__ = [
    "augment",
    "joint_gradient",
    "perturb_step",
    "random_start",
    "redistribute_labels",
    "soft_cross_entropy",
]
