"""The distributions from which priors and guides are built."""

from .concrete import StraightThroughConcrete
from .gaussian import Gaussian
from .ising import Ising
from .spike_slab import SpikeAndSlab
from .straight_through import StraightThroughBernoulli

__all__ = ["Gaussian", "Ising", "SpikeAndSlab", "StraightThroughBernoulli", "StraightThroughConcrete"]
