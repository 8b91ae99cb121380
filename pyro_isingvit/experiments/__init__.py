"""Runs, each from a configuration to a folder with metrics and pictures, and studies of many runs."""

from .predict import FilePrediction, FilePredictor, predict_files
from .reading import evaluate, open_fit, report
from .recipes import RunConfig, recipe
from .runs import Run, run

__all__ = [
    "FilePrediction",
    "FilePredictor",
    "Run",
    "RunConfig",
    "evaluate",
    "open_fit",
    "predict_files",
    "recipe",
    "report",
    "run",
]
