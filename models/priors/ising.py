"""Masks that meet at a unit agree: the Ising prior.

References:
    Salem & Kim, "Likelihood-guided Regularization in Attention Based Models", arXiv 2511.13221, 2025.
    Besag, "Statistical Analysis of Non-Lattice Data", The Statistician 1975.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_isingvit.distributions import Ising
from pyro_isingvit.distributions.ising import EXACT_LIMIT
from pyro_isingvit.errors import InputError
from pyro_isingvit.interactions import VIT_COUPLINGS, Coupling, CouplingGraph
from pyro_isingvit.network import LAYER, WeightSite

from .independent import DEFAULT, Inclusion, IndependentSpikeSlab


class IsingSpikeSlab(IndependentSpikeSlab):
    r"""`IndependentSpikeSlab` whose masks are coupled where their weights meet, by a `CouplingGraph`.

    ``inclusion`` is the external field: the probability a mask would have without its neighbours.

    * ``direction="symmetric"``: times ``exp(coupling * energy(masks))``. Under a strong coupling this has two
      phases, all in and all out, and the mean-field posterior falls into one of them whatever the data say;
      a `UserWarning` says so.
    * ``direction="backward"``, as published: the masks behind (nearer to the output) come first, and each mask
      is Bernoulli with log odds ``field + 2 * coupling * mean spin behind``. This is normalised as it stands.

    Args:
        sites: the network's `weight_sites()`.
        inclusion: see `IndependentSpikeSlab`.
        coupling: common strength J; the log odds of a mask change by up to 2 J for each coupling it is in (on
            average over a unit's weights, where they count by magnitude).
        couplings: the graph, with strengths of its own that J multiplies; that of a `ViT` if omitted.
        weighting: how the mean spin of a unit counts its weights: all alike, or by the square of their
            magnitude, as published. Magnitudes are those that `observe_weights` was told last, which guides
            that update masks in closed form do; until then all are alike.
        direction: see above.
        learn_coupling: whether J is a parameter. A symmetric prior then is normalised exactly up to
            `EXACT_LIMIT` masks, and by Besag's pseudo-likelihood beyond.
        options: of `IndependentSpikeSlab`.

    Raises:
        InputError: if a value is out of range.
    """

    def __init__(
        self,
        sites: Sequence[WeightSite],
        inclusion: Inclusion = DEFAULT,
        coupling: float = 1.0,
        couplings: CouplingGraph | None = None,
        weighting: Literal["uniform", "magnitude"] = "uniform",
        direction: Literal["symmetric", "backward"] = "symmetric",
        learn_coupling: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(sites, inclusion, **options)
        for name, value, choices in (
            ("weighting", weighting, ("uniform", "magnitude")),
            ("direction", direction, ("symmetric", "backward")),
        ):
            if value not in choices:
                raise InputError(f"{name}={value!r}: choose one of {choices}")
        self.coupling: float | Tensor = nn.Parameter(torch.tensor(float(coupling))) if learn_coupling else coupling
        self.couplings = CouplingGraph(sites, self._default_couplings()) if couplings is None else couplings
        self.weighting, self.direction, self.learn_coupling = weighting, direction, learn_coupling
        if weighting == "magnitude":
            for site in self.couplings.sites.values():
                self.register_buffer(f"squares_{site.key}", torch.ones(site.shape))
        if direction == "symmetric":
            self._warn_of_phases()

    def potential(self, masks: Mapping[str, Tensor]) -> Tensor | None:
        masks = self._at_units(masks)
        if self.direction == "symmetric":
            return self.coupling * self.couplings.energy(masks, self.squares)
        pulls: dict[str, Tensor] = {}
        for _, coupling, pull in self.couplings.backward_pulls(masks, self.squares):
            pulls[coupling.first] = pulls.get(coupling.first, self.zero) + coupling.strength * pull
        total = self.zero
        for name, pull in pulls.items():
            field, base = self.coupling * pull, self._field(name)
            term = masks[name] * field - F.softplus(base + field) + F.softplus(base)
            total = total + term.sum()
        return total

    def log_normaliser(self, masks: Mapping[str, Tensor]) -> Tensor:
        if type(self).potential is not IsingSpikeSlab.potential:
            return super().log_normaliser(masks)  # a subclass has an interaction of its own
        if self.direction == "backward":
            return self.zero
        masks = self._at_units(masks)
        prior, state = self.ising(), self.couplings.join(masks)
        field = prior.field
        if len(field) <= EXACT_LIMIT:
            return prior.log_normaliser() + (field / 2 - F.softplus(field)).sum()
        pull = self.couplings.ising(dict.fromkeys(self.couplings.sites, self.zero), 1.0, self.squares).local_field(
            state
        )
        log_odds = field + self.coupling * pull
        pseudo = (state * log_odds - F.softplus(log_odds)).sum()
        base = (state * field - F.softplus(field)).sum()
        return base + self.coupling * self.couplings.energy(masks, self.squares) - pseudo

    def draw_masks(self, draws: int) -> dict[str, Tensor]:
        """By Gibbs sampling (exact up to `EXACT_LIMIT` masks); from the output backwards if the prior is directed."""
        if type(self).potential is not IsingSpikeSlab.potential:
            return super().draw_masks(draws)
        bases = {name: self.mask(site) for name, site in self.sites.items()}
        if self.direction == "symmetric":
            coupled = self.couplings.split(self.ising().chain(draws))
        else:
            each = [self._draw_backward() for _ in range(draws)]
            coupled = {name: torch.stack([masks[name] for masks in each]) for name in self.couplings.sites}
        return {
            name: coupled[name].reshape(draws, *base.event_shape) if name in coupled else base.sample((draws,))
            for name, base in bases.items()
            if base is not None
        }

    def _draw_backward(self) -> dict[str, Tensor]:
        """A draw of the graph's masks in its shapes: each block given those behind it."""
        sites = self.couplings.sites
        masks = {name: self.zero.expand(site.shape).clone() for name, site in sites.items()}
        for name, layer in self.couplings.backward_order():
            log_odds = self._field(name).expand(sites[name].shape)
            for _, coupling, pull in self.couplings.backward_pulls(masks, self.squares, first=name):
                log_odds = log_odds + self.coupling * coupling.strength * pull
            drawn = torch.bernoulli(log_odds.sigmoid())
            if layer is None:
                masks[name] = drawn
            else:
                axis = sites[name].axis(LAYER)
                masks[name].select(axis, layer).copy_(drawn.select(axis, layer))
        return masks

    def observe_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take the magnitudes of ``weighting="magnitude"`` from weights by site name (empirical Bayes)."""
        if self.squares is not None:
            squares = self._at_units({name: weight.detach().square() for name, weight in weights.items()})
            for name, buffer in self.squares.items():
                buffer.copy_(squares[name])

    def ising(self, sweeps: int = 100) -> Ising:
        """The prior of all masks as one distribution; ``self.couplings.split`` parts a draw into sites.

        Raises:
            InputError: if the prior is directed.
        """
        if self.direction != "symmetric":
            raise InputError(f"direction={self.direction!r}: only a symmetric prior is an Ising distribution")
        log_odds = {name: self._field(name) for name in self.couplings.sites}
        return self.couplings.ising(log_odds, self.coupling, self.squares, sweeps)

    @property
    def squares(self) -> dict[str, Tensor] | None:
        """How much each weight counts at its units, in the graph's shapes; None if all alike."""
        if self.weighting == "uniform":
            return None
        return {name: self.get_buffer(f"squares_{site.key}") for name, site in self.couplings.sites.items()}

    def _field(self, name: str) -> Tensor:
        """External field of a site, as log odds that broadcast to the graph's shape."""
        return self._log_odds(self.sites[name])

    def _default_couplings(self) -> Sequence[Coupling]:
        return VIT_COUPLINGS

    def _at_units(self, masks: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Masks, or squared weights, in the shapes of the graph's sites."""
        return masks

    @torch.no_grad()
    def _warn_of_phases(self) -> None:
        prior = self.ising()
        low, high = (prior.mean_field(torch.full_like(prior.field, start), 50, 1e-3) for start in (0.0, 1.0))
        if (high - low).mean() > 0.1:
            warnings.warn(
                f"coupling={float(self.coupling)} with inclusion={self.inclusion}: the prior has two phases "
                f"(mean-field densities {float(low.mean()):.2f} and {float(high.mean()):.2f}), so a posterior may "
                "turn all masks on or off; lower the coupling",
                UserWarning,
                stacklevel=3,
            )
