"""Training: a whole run (`train`), one update (`TrainStep`), and what they are made of."""

from rmcla_fast.training.config import TrainConfig
from rmcla_fast.training.ema import ExponentialAverage
from rmcla_fast.training.loop import train
from rmcla_fast.training.step import TrainStep

__all__ = ["ExponentialAverage", "TrainConfig", "TrainStep", "train"]
