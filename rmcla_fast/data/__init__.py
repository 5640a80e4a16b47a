"""Data sets with uint8 images and int64 labels: `load("digits")`, and more images for training: `load_extra`."""

from rmcla_fast.data.extra import load_extra
from rmcla_fast.data.load import DATASETS, load
from rmcla_fast.data.splits import DataSplits, ExtraSet, ImageSet, StreamedSet

__all__ = ["DATASETS", "DataSplits", "ExtraSet", "ImageSet", "StreamedSet", "load", "load_extra"]
