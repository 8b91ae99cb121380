r"""Estimators, one a file, of :math:`L_+ - L_-`: the gain in log-likelihood of all data from keeping a weight.

To second order about a stationary point, dropping a weight of mean m costs half of m squared times the curvature
(Optimal Brain Damage), and keeping it costs half of its posterior variance times the curvature: its uncertainty hurts
too. Without the second term, weights that fit noise look worth keeping, and the expected false discovery rate is too
low. The first-order term vanishes there, and its noise would drown the second-order one.
"""

from .base import Estimator
from .disarm import DisARM
from .hessian_diagonal import HessianDiagonal
from .levenberg_marquardt import LevenbergMarquardt
from .none import NoPull
from .paired_draws import PairedDraws
from .squared_gradient import SquaredGradient
from .straight_through import StraightThrough

ESTIMATORS: dict[str, type[Estimator]] = {
    "squared_gradient": SquaredGradient,
    "levenberg_marquardt": LevenbergMarquardt,
    "hessian_diagonal": HessianDiagonal,
    "paired_draws": PairedDraws,
    "straight_through": StraightThrough,
    "disarm": DisARM,
    "none": NoPull,
}
"""All estimators by name; each is called with the model and options."""

__all__ = [
    "ESTIMATORS",
    "DisARM",
    "Estimator",
    "HessianDiagonal",
    "LevenbergMarquardt",
    "NoPull",
    "PairedDraws",
    "SquaredGradient",
    "StraightThrough",
]
