"""Guides, one per file. To write one, subclass `Guide` or any of these and override one method."""

from .auto import Auto
from .backward_ising import BackwardIsing
from .base import Guide
from .likelihood_guided import LikelihoodGuided
from .low_rank import LowRank
from .mean_field import MeanField
from .point import PointEstimate
from .relaxed import Relaxed
from .score_function import ScoreFunction
from .sparse_variational_dropout import SparseVariationalDropout

__all__ = [
    "Auto",
    "BackwardIsing",
    "Guide",
    "LikelihoodGuided",
    "LowRank",
    "MeanField",
    "PointEstimate",
    "Relaxed",
    "ScoreFunction",
    "SparseVariationalDropout",
]
