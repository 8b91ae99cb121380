"""Masks that meet at a unit agree: the Ising prior.

References:
    Salem & Kim, "Likelihood-guided Regularization in Attention Based Models", arXiv 2511.13221, 2025.
"""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyro_isingvit.distributions import Ising
from pyro_isingvit.interactions import VIT_COUPLINGS, CouplingGraph
from pyro_isingvit.sites import WeightSite

from .independent import IndependentSpikeSlab


class IsingSpikeSlab(IndependentSpikeSlab):
    """`IndependentSpikeSlab` times ``exp(coupling * energy(masks))``, with the energy of a `CouplingGraph`.

    ``inclusion`` is the external field: the probability a mask would have without its neighbours. Under a
    strong coupling the prior has two phases, all in and all out, and the mean-field posterior falls into
    one of them whatever the data say; a `UserWarning` says so.

    Args:
        sites: the network's `weight_sites()`.
        inclusion, slab_scale, spike_scale: see `IndependentSpikeSlab`.
        coupling: common strength J; the log odds of a mask change by up to 2 J for each coupling it is in.
        couplings: the graph; that of a `ViT` if omitted.
    """

    def __init__(
        self,
        sites: Sequence[WeightSite],
        inclusion: float = 0.2,
        slab_scale: float = 1.0,
        spike_scale: float = 0.0,
        coupling: float = 1.0,
        couplings: CouplingGraph | None = None,
    ) -> None:
        super().__init__(sites, inclusion, slab_scale, spike_scale)
        self.coupling = coupling
        self.couplings = CouplingGraph(sites, VIT_COUPLINGS) if couplings is None else couplings
        self._warn_of_phases()

    def potential(self, masks: Mapping[str, Tensor]) -> Tensor | None:
        return self.coupling * self.couplings.energy(masks)

    def ising(self, sweeps: int = 100) -> Ising:
        """The prior of all masks as one distribution; ``self.couplings.split`` parts a draw into sites."""
        log_odds = {site.name: self._log_odds(site).expand(site.shape) for site in self.couplings.sites.values()}
        return self.couplings.rescaled(self.coupling).ising(log_odds, sweeps)

    def _warn_of_phases(self) -> None:
        prior = self.ising()
        low, high = (prior.mean_field(torch.full_like(prior.field, start), 50, 1e-3) for start in (0.0, 1.0))
        if (high - low).mean() > 0.1:
            warnings.warn(
                f"coupling={self.coupling} with inclusion={self.inclusion}: the prior has two phases (mean-field "
                f"densities {float(low.mean()):.2f} and {float(high.mean()):.2f}), so a posterior may turn all masks "
                "on or off; lower the coupling",
                UserWarning,
                stacklevel=3,
            )
