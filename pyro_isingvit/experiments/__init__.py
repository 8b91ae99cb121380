"""Runs, each from a configuration to a folder with metrics and pictures, and studies of many runs."""

from .recipes import RunConfig, recipe
from .runs import Run, evaluate, report, run

__all__ = ["Run", "RunConfig", "evaluate", "recipe", "report", "run"]
