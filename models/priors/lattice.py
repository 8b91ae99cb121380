"""Masks that agree with their neighbours in the matrix: a two-dimensional Ising lattice.

References:
    Onsager, "Crystal Statistics I", Physical Review 1944.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_isingvit.distributions import Ising
from pyro_isingvit.network import WeightSite

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

    def ising(self, site: WeightSite, sweeps: int = 100) -> Ising:
        """The prior of a site's masks as one distribution over them all, flattened."""
        rows, columns = (torch.arange(n, device=self.zero.device) for n in site.shape[-2:])
        black = ((rows.unsqueeze(-1) + columns) % 2 == 0).expand(site.shape).flatten()

        def interaction(spins: Tensor) -> Tensor:
            return self.coupling * _agreement(spins.unflatten(-1, site.shape), len(site.shape))

        field = self._log_odds(site).expand(site.shape).flatten()
        return Ising(field, interaction, [black.nonzero()[:, 0], (~black).nonzero()[:, 0]], sweeps=sweeps)

    def draw_masks(self, draws: int) -> dict[str, Tensor]:
        """By Gibbs sampling, all black fields of the chessboard at once, then all white ones."""
        if type(self).potential is not LatticeSpikeSlab.potential:
            return super().draw_masks(draws)
        return {name: self.ising(site).chain(draws).view(draws, *site.shape) for name, site in self.sites.items()}

    def potential(self, masks: Mapping[str, Tensor]) -> Tensor | None:
        return self.coupling * torch.stack([_agreement(2 * mask - 1, mask.dim()) for mask in masks.values()]).sum()


def _agreement(spins: Tensor, dims: int) -> Tensor:
    """Sum of ``s_i s_j`` over nearest neighbours in the last two axes, over the last ``dims`` axes."""
    total = spins.new_zeros(spins.shape[: spins.dim() - dims])
    for axis in (-1, -2):
        length = spins.shape[axis] - 1
        pairs = torch.narrow(spins, axis, 0, length) * torch.narrow(spins, axis, 1, length)
        total = total + pairs.sum(tuple(range(-dims, 0)))
    return total
