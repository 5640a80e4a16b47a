"""Data sets with uint8 images and int64 labels: `load("digits")`."""

from rmcla_fast.data.load import DATASETS, load
from rmcla_fast.data.splits import DataSplits, ImageSet, StreamedSet

__all__ = ["DATASETS", "DataSplits", "ImageSet", "StreamedSet", "load"]
