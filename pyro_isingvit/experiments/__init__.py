"""Runs, each from a configuration to a folder with metrics and pictures, and studies of many runs."""

from .reading import evaluate, report
from .recipes import RunConfig, recipe
from .runs import Run, run

__all__ = ["Run", "RunConfig", "evaluate", "recipe", "report", "run"]
