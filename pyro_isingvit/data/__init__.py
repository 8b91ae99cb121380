"""Labelled images, in memory or read when they are needed: data sets by name, splits into parts that share no image,
augmentation of batches, and test beds of which the truth is known."""

from .augment import AUGMENTATIONS, Augment
from .files import read_files
from .folders import FolderImages
from .images import Images
from .parts import Data, split
from .readers import DATASETS, from_dataset, read
from .streams import Labelled, Stream
from .testbeds import TestBed, digits_decoys, planted_network

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Augment",
    "Data",
    "FolderImages",
    "Images",
    "Labelled",
    "Stream",
    "TestBed",
    "digits_decoys",
    "from_dataset",
    "planted_network",
    "read",
    "read_files",
    "split",
]
