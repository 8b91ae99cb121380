"""A two-dimensional Ising lattice: the masks of neighbours in a matrix tend to be alike.

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
from .interaction import Interaction

CRITICAL = 0.4407
"""Coupling beyond which an infinite lattice without external field is ordered (Onsager)."""


class LatticeSpikeSlab(IndependentSpikeSlab):
    """`IndependentSpikeSlab` times ``exp(coupling * sum of s_i s_j)`` over nearest neighbours within each matrix.

    A matrix is the last two dimensions of a site. Kept weights tend to form patches. The four neighbours of a mask
    change its log odds by up to ``8 * coupling``.

    Args:
        sites: the network's `weight_sites()`.
        inclusion: see `IndependentSpikeSlab`.
        coupling: strength of the coupling of two neighbours; beyond `CRITICAL` a `UserWarning` is issued.
        options: arguments of `IndependentSpikeSlab`.

    Raises:
        InputError: see `IndependentSpikeSlab`.
    """

    def __init__(
        self, sites: Sequence[WeightSite], inclusion: Inclusion = DEFAULT, coupling: float = 0.2, **options: Any
    ) -> None:
        super().__init__(sites, inclusion, **options)
        self.coupling = coupling
        self.interaction = LatticeInteraction(self)
        if coupling > CRITICAL:
            warnings.warn(
                f"coupling={coupling}: beyond {CRITICAL} a lattice orders by itself, so a posterior may turn all masks "
                "on or off; lower the coupling",
                UserWarning,
                stacklevel=2,
            )

    def ising(self, site: WeightSite, sweeps: int = 100) -> Ising:
        """The prior of all masks of a site as one distribution, flattened."""
        rows, columns = (torch.arange(n, device=self.zero.device) for n in site.shape[-2:])
        black = ((rows.unsqueeze(-1) + columns) % 2 == 0).expand(site.shape).flatten()

        def interaction(spins: Tensor) -> Tensor:
            return self.coupling * _agreement(spins.unflatten(-1, site.shape), len(site.shape))

        field = self._log_odds(site).expand(site.shape).flatten()
        return Ising(field, interaction, [black.nonzero()[:, 0], (~black).nonzero()[:, 0]], sweeps=sweeps)


class LatticeInteraction(Interaction):
    """Agreement of nearest neighbours within each matrix, times ``coupling``.

    Args:
        prior: the prior that it belongs to, whose fields and coupling it uses.
    """

    def __init__(self, prior: LatticeSpikeSlab) -> None:
        super().__init__()
        self._priors = (prior,)  # in a tuple, so that the prior is not registered as a submodule

    def energy(self, masks: Mapping[str, Tensor]) -> Tensor:
        each = [_agreement(2 * mask - 1, mask.dim()) for mask in masks.values()]
        return self._priors[0].coupling * torch.stack(each).sum()

    def draw(self, draws: int) -> dict[str, Tensor]:
        """Draws by Gibbs sampling, which updates all black squares of a checkerboard at once, then all white ones."""
        prior = self._priors[0]
        return {name: prior.ising(site).chain(draws).view(draws, *site.shape) for name, site in prior.sites.items()}


def _agreement(spins: Tensor, dims: int) -> Tensor:
    """``s_i s_j`` of all nearest neighbours in the last two axes, summed over the last ``dims`` axes."""
    total = spins.new_zeros(spins.shape[: spins.dim() - dims])
    for axis in (-1, -2):
        length = spins.shape[axis] - 1
        pairs = torch.narrow(spins, axis, 0, length) * torch.narrow(spins, axis, 1, length)
        total = total + pairs.sum(tuple(range(-dims, 0)))
    return total
