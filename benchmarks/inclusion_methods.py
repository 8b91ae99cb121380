"""Priors and guides that `inclusion.py` compares: those of its task ``guides``, and the group lasso."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import StudentT
from torch import Tensor
from torch.distributions import constraints

import pyro_isingvit as iv
from pyro_isingvit.models.priors.structured import UNIT_LEVELS

DEGREES = 4.0
"""Degrees of freedom of the Student-t slab; its variance is finite from above 2."""


class StudentSlab(iv.FeatureSpikeSlab):
    """`FeatureSpikeSlab` with a Student-t slab, of the variance of the Gaussian one."""

    def slab(self, site: iv.WeightSite) -> Any:
        scale = ((DEGREES - 2) / DEGREES / site.fan_in) ** 0.5
        return StudentT(DEGREES, self.zero.expand(site.shape), scale)


@dataclass(frozen=True)
class Method:
    """A guide and a prior.

    Attributes:
        masks: what has a mask of its own: ``"features"`` alone, ``"units"`` of all roles, or ``"weights"``.
        prior: makes the prior of a network's sites.
        guide: makes the guide of a model.
    """

    masks: str
    prior: Callable[[Any], iv.Prior]
    guide: Callable[[iv.IsingViT], iv.Guide]


def _units(sites: Any) -> iv.Prior:
    return iv.StructuredSpikeSlab(sites, levels=UNIT_LEVELS)


METHODS: Mapping[str, Method] = {
    "likelihood-guided": Method("features", iv.FeatureSpikeSlab, iv.LikelihoodGuided),
    "Student-t slab": Method("features", StudentSlab, iv.LikelihoodGuided),
    "mean field": Method("features", iv.FeatureSpikeSlab, iv.MeanField),
    "low rank": Method("features", iv.FeatureSpikeSlab, iv.guides.LowRank),
    "likelihood-guided, units": Method("units", _units, iv.LikelihoodGuided),
    "mean field, weights": Method("weights", iv.IsingSpikeSlab, iv.MeanField),
    "backward Ising, weights": Method("weights", iv.priors.BackwardIsingSpikeSlab, iv.guides.BackwardIsing),
}
"""By name. `BackwardIsing` follows couplings, and none joins masks of features: it is compared on masks of weights, of
which the task ``grid`` has likelihood-guided fits. The horseshoe has no masks, and so no inclusion probabilities."""


class GroupLaplace(iv.Gaussian):
    """A density proportional to ``exp(-strength * sqrt(n) * norm)`` of each column of n weights: the group lasso."""

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, shape: tuple[int, int], strength: float) -> None:
        super().__init__(torch.zeros(shape), torch.zeros(shape))
        self.strength = strength

    def log_prob(self, value: Tensor) -> Tensor:
        norm = (value.square().sum(0) + 1e-12).sqrt()
        return (-self.strength * norm / math.sqrt(len(value))).expand(value.shape)  # summed over columns: sqrt(n) norm


class GroupLasso(iv.Prior):
    """Group lasso over the features of a patch, Gaussian weights elsewhere."""

    def __init__(self, sites: Any, strength: float) -> None:
        super().__init__(sites)
        self.strength = strength

    def slab(self, site: iv.WeightSite) -> Any:
        if site.name == "patch_embed":
            return GroupLaplace((site.shape[0], site.shape[1]), self.strength)
        return super().slab(site)
