"""The directed Ising prior, as published: masks nearer to the output come first.

References:
    Salem & Kim, "Likelihood-guided Regularization in Attention Based Models", arXiv 2511.13221, 2025.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_isingvit.distributions import Ising
from pyro_isingvit.errors import InputError
from pyro_isingvit.network import LAYER

from .ising import IsingInteraction, IsingSpikeSlab


class BackwardIsingSpikeSlab(IsingSpikeSlab):
    """`IsingSpikeSlab` whose couplings have a direction, from the output backwards.

    Given the masks behind it (nearer to the output), each mask is Bernoulli with log odds ``field + 2 * coupling *
    mean spin behind``, summed over its couplings. The product is a normalised distribution and does not have two
    phases. Arguments are those of `IsingSpikeSlab`.
    """

    def make_interaction(self, coupling: float) -> IsingInteraction:
        return BackwardInteraction(self, coupling)


class BackwardInteraction(IsingInteraction):
    """Log ratio of the conditional probabilities, each mask given those behind it, to the base measure."""

    multilinear = False
    normalised = True

    def energy(self, masks: Mapping[str, Tensor]) -> Tensor:
        masks = self.prior.at_units(masks)
        pulls: dict[str, Tensor] = {}
        for _, coupling, pull in self.graph.backward_pulls(masks, self.squares):
            pulls[coupling.first] = pulls.get(coupling.first, self.prior.zero) + coupling.strength * pull
        total = self.prior.zero
        for name, pull in pulls.items():
            field, base = self.coupling * pull, self.prior.field(name)
            term = masks[name] * field - F.softplus(base + field) + F.softplus(base)
            total = total + term.sum()
        return total

    def log_normaliser(self, masks: Mapping[str, Tensor]) -> Tensor:
        return self.prior.zero

    def draw(self, draws: int) -> dict[str, Tensor]:
        """Exact draws, made from the output backwards, ``(draws, *mask shape)`` by site name."""
        each = [self._draw() for _ in range(draws)]
        return self._in_shape({name: torch.stack([masks[name] for masks in each]) for name in self.graph.sites})

    def distribution(self, sweeps: int = 100) -> Ising:
        raise InputError(f"{type(self.prior).__name__}: only a symmetric prior is an Ising distribution")

    def _draw(self) -> dict[str, Tensor]:
        """One draw of all masks in the graph's shapes, each block given those behind it."""
        sites = self.graph.sites
        masks = {name: self.prior.zero.expand(site.shape).clone() for name, site in sites.items()}
        for name, layer in self.graph.backward_order():
            log_odds = self.prior.field(name).expand(sites[name].shape)
            for _, coupling, pull in self.graph.backward_pulls(masks, self.squares, first=name):
                log_odds = log_odds + self.coupling * coupling.strength * pull
            drawn = torch.bernoulli(log_odds.sigmoid())
            if layer is None:
                masks[name] = drawn
            else:
                axis = sites[name].axis(LAYER)
                masks[name].select(axis, layer).copy_(drawn.select(axis, layer))
        return masks
