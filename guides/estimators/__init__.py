r"""Estimators, one per file, of :math:`L_+ - L_-`: the gain in log-likelihood of all data from keeping a weight.

To second order about a stationary point, dropping a weight of mean m costs half of m squared times the curvature
(Optimal Brain Damage). Keeping it costs half of its posterior variance times the curvature, since its value is
uncertain. Without this cost, weights that fit noise would be kept, and the expected false discovery rate would be too
low. The first-order term is zero at a stationary point; it is left out, since its noise exceeds the second-order term.
"""

from .base import Estimator
from .disarm import DisARM
from .held_out import HeldOut
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
"""Estimators by name. Each is called with the model and, optionally, its own options. `HeldOut` needs images."""

__all__ = [
    "ESTIMATORS",
    "DisARM",
    "Estimator",
    "HeldOut",
    "HessianDiagonal",
    "LevenbergMarquardt",
    "NoPull",
    "PairedDraws",
    "SquaredGradient",
    "StraightThrough",
]
