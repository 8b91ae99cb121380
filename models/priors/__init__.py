"""Priors, one a file. To write one, subclass `Prior` or any of these and override one method."""

from .base import Prior
from .flat import Flat
from .independent import IndependentSpikeSlab
from .ising import IsingSpikeSlab

__all__ = ["Flat", "IndependentSpikeSlab", "IsingSpikeSlab", "Prior"]
