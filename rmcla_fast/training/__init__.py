"""Training: one update (`TrainStep`) and what it is made of."""

from rmcla_fast.training.average import ExponentialAverage
from rmcla_fast.training.step import TrainStep

__all__ = ["ExponentialAverage", "TrainStep"]
