"""Priors, one per file. To write one, subclass `Prior` or any of these and override one method."""

from .backward_ising import BackwardIsingSpikeSlab
from .base import Prior
from .features import FeatureSpikeSlab
from .flat import Flat
from .hierarchical import HierarchicalSpikeSlab
from .horseshoe import RegularisedHorseshoe
from .independent import IndependentSpikeSlab
from .interaction import Interaction
from .ising import IsingSpikeSlab
from .lattice import LatticeSpikeSlab
from .log_uniform import LogUniform
from .structured import StructuredSpikeSlab

__all__ = [
    "BackwardIsingSpikeSlab",
    "FeatureSpikeSlab",
    "Flat",
    "HierarchicalSpikeSlab",
    "IndependentSpikeSlab",
    "Interaction",
    "IsingSpikeSlab",
    "LatticeSpikeSlab",
    "LogUniform",
    "Prior",
    "RegularisedHorseshoe",
    "StructuredSpikeSlab",
]
