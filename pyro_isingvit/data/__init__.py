"""Labelled images in memory: data sets by name, splits into parts that share no image,
augmentation of batches, and test beds of which the truth is known."""

from .augment import AUGMENTATIONS, Augment
from .images import Images
from .parts import Data, split
from .readers import DATASETS, from_dataset, read
from .testbeds import TestBed, digits_decoys, planted_network

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Augment",
    "Data",
    "Images",
    "TestBed",
    "digits_decoys",
    "from_dataset",
    "planted_network",
    "read",
    "split",
]
