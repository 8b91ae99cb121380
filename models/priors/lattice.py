"""Masks that agree with their neighbours in the matrix: a two-dimensional Ising lattice.

References:
    Onsager, "Crystal Statistics I", Physical Review 1944.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_isingvit.sites import WeightSite

from .independent import DEFAULT, Inclusion, IndependentSpikeSlab

CRITICAL = 0.4407
"""Coupling beyond which an infinite lattice without field orders by itself (Onsager)."""


class LatticeSpikeSlab(IndependentSpikeSlab):
    """`IndependentSpikeSlab` times ``exp(coupling * sum of s_i s_j)`` over nearest neighbours within each matrix.

    A matrix is the last two dimensions of a role. Kept weights come in patches. The log odds of a mask
    change by up to ``8 * coupling``.

    Args:
        sites: the network's `weight_sites()`.
        inclusion: see `IndependentSpikeSlab`.
        coupling: of two neighbours.
        options: of `IndependentSpikeSlab`.
    """

    def __init__(
        self, sites: Sequence[WeightSite], inclusion: Inclusion = DEFAULT, coupling: float = 0.2, **options: Any
    ) -> None:
        super().__init__(sites, inclusion, **options)
        self.coupling = coupling
        if coupling > CRITICAL:
            warnings.warn(
                f"coupling={coupling}: beyond {CRITICAL} a lattice orders by itself, so a posterior may turn all masks "
                "on or off; lower the coupling",
                UserWarning,
                stacklevel=2,
            )

    def potential(self, masks: Mapping[str, Tensor]) -> Tensor | None:
        total = self.zero
        for mask in masks.values():
            spins = 2 * mask - 1
            for axis in (-1, -2):
                length = spins.shape[axis] - 1
                pairs = torch.narrow(spins, axis, 0, length) * torch.narrow(spins, axis, 1, length)
                total = total + pairs.sum()
        return self.coupling * total
