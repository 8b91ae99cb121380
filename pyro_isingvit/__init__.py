"""Bayesian sparsification of Vision Transformers as a probabilistic program."""

from .data import Data, Images, RandomAffine, read, split
from .distributions import Gaussian, Ising, SpikeAndSlab, StraightThroughBernoulli
from .elbo import TraceGraph_ELBO
from .errors import InputError, TrainingError
from .fit import FitConfig, fit
from .guides import Guide, LikelihoodGuided, MeanField, PointEstimate
from .interactions import VIT_COUPLINGS, Coupling, CouplingGraph
from .models import Flat, IndependentSpikeSlab, IsingSpikeSlab, IsingViT, Prior
from .network import ViT, ViTConfig
from .predict import Prediction, predict, predict_plug_in
from .result import FitResult
from .sites import WeightSite

__all__ = [
    "VIT_COUPLINGS",
    "Coupling",
    "CouplingGraph",
    "Data",
    "FitConfig",
    "FitResult",
    "Flat",
    "Gaussian",
    "Guide",
    "Images",
    "IndependentSpikeSlab",
    "InputError",
    "Ising",
    "IsingSpikeSlab",
    "IsingViT",
    "LikelihoodGuided",
    "MeanField",
    "PointEstimate",
    "Prediction",
    "Prior",
    "RandomAffine",
    "SpikeAndSlab",
    "StraightThroughBernoulli",
    "TraceGraph_ELBO",
    "TrainingError",
    "ViT",
    "ViTConfig",
    "WeightSite",
    "fit",
    "predict",
    "predict_plug_in",
    "read",
    "split",
]
