"""The generative side: the model and its priors."""

from .ising_vit import IsingViT
from .priors import Flat, IndependentSpikeSlab, IsingSpikeSlab, Prior

__all__ = ["Flat", "IndependentSpikeSlab", "IsingSpikeSlab", "IsingViT", "Prior"]
