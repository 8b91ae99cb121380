"""Whole runs: data, network, fit, baseline, metrics, pictures, a folder that holds it all."""

from .recipes import RunConfig, recipe
from .runs import Run, evaluate, report, run

__all__ = ["Run", "RunConfig", "evaluate", "recipe", "report", "run"]
