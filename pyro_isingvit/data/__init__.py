"""Labelled images in memory: data sets by name, splits into parts that share no image, and augmentation of batches."""

from .augment import AUGMENTATIONS, Augment
from .images import Data, Images, split
from .readers import DATASETS, from_dataset, read

__all__ = ["AUGMENTATIONS", "DATASETS", "Augment", "Data", "Images", "from_dataset", "read", "split"]
