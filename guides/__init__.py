"""The variational side, one guide a file. To write one, subclass any and override `mask` or `weight`."""

from .base import Guide
from .likelihood_guided import LikelihoodGuided
from .mean_field import MeanField
from .point import PointEstimate

__all__ = ["Guide", "LikelihoodGuided", "MeanField", "PointEstimate"]
