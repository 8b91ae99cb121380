"""The Ising prior: masks of weights that share a unit are coupled, and tend to be kept or dropped together.

References:
    Salem & Kim, "Likelihood-guided Regularization in Attention Based Models", arXiv 2511.13221, 2025.
    Besag, "Statistical Analysis of Non-Lattice Data", The Statistician 1975.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_isingvit.couplings import VIT_COUPLINGS
from pyro_isingvit.distributions import Ising
from pyro_isingvit.distributions.ising import EXACT_LIMIT
from pyro_isingvit.errors import InputError
from pyro_isingvit.interactions import CouplingGraph
from pyro_isingvit.network import WeightSite
from pyro_isingvit.network.units import SITES

from .independent import DEFAULT, Inclusion, IndependentSpikeSlab
from .interaction import Interaction


class IsingSpikeSlab(IndependentSpikeSlab):
    r"""`IndependentSpikeSlab` times ``exp(coupling * energy(masks))`` of a `CouplingGraph`.

    ``inclusion`` sets the external field: it is the inclusion probability of a mask without couplings. Under a strong
    coupling the prior has two phases, all masks on and all off, and the mean-field posterior falls into one of them
    whatever the data are; a `UserWarning` is then issued.

    Args:
        sites: the network's `weight_sites()`.
        inclusion: see `IndependentSpikeSlab`.
        coupling: common strength J; the log odds of a mask change by up to 2 J for each coupling that it is part of
            (on average over a unit's weights, where they count by magnitude).
        couplings: the graph of couplings, whose own strengths are multiplied by J; that of a `ViT` if None. A network
            that `adapt` has made has its own, ``network.couplings``.
        weighting: how weights count in the mean spin of a unit: all alike (``"uniform"``), or by their squares
            (``"magnitude"``), as published. Guides that update masks in closed form supply the magnitudes; until then
            all weights count alike.
        learn_coupling: whether J is a parameter, learned with the guide. The prior is then normalised, exactly up to
            `EXACT_LIMIT` masks and by Besag's pseudo-likelihood beyond.
        options: arguments of `IndependentSpikeSlab`.

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
        learn_coupling: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(sites, inclusion, **options)
        if weighting not in ("uniform", "magnitude"):
            raise InputError(f"weighting={weighting!r}: choose one of ('uniform', 'magnitude')")
        if not math.isfinite(coupling):
            raise InputError(f"coupling={coupling}: must be finite, e.g. 1.0; 0 switches it off")
        self.couplings = vit_graph(sites) if couplings is None else couplings
        self.weighting, self.learn_coupling = weighting, learn_coupling
        self.interaction: IsingInteraction = self.make_interaction(coupling)

    @property
    def coupling(self) -> float | Tensor:
        """Common strength J; 0 if the interaction was replaced by another one or taken away."""
        return getattr(self.interaction, "coupling", 0.0)

    @coupling.setter
    def coupling(self, value: float) -> None:
        self.interaction.coupling = value

    def make_interaction(self, coupling: float) -> "IsingInteraction":
        """The interaction of the masks; called once, at the end of the constructor."""
        interaction = IsingInteraction(self, coupling)
        interaction.warn_of_phases()
        return interaction

    def ising(self, sweeps: int = 100) -> Ising:
        """The prior of all masks as one distribution, flattened; ``self.couplings.split`` splits a draw by site."""
        return self.interaction.distribution(sweeps)

    def field(self, name: str) -> Tensor:
        """External field of a site: log odds that broadcast to its shape in the graph."""
        return self._log_odds(self.sites[name])

    def at_units(self, masks: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Masks, or squared weights, by site name, brought to the shapes of the graph's sites."""
        return masks


def vit_graph(sites: Sequence[WeightSite]) -> CouplingGraph:
    """The couplings of a `ViT`.

    Raises:
        InputError: if the sites are those of another network.
    """
    names = [site.name for site in sites]
    if not set(SITES) <= set(names):
        raise InputError(
            f"couplings=None: the couplings of a ViT, and these sites are of another network ({names[:3]}...); give "
            "couplings=network.couplings, or CouplingGraph(sites, ...)"
        )
    return CouplingGraph(sites, VIT_COUPLINGS)


class IsingInteraction(Interaction):
    """``coupling`` times the energy of a prior's `CouplingGraph`.

    Args:
        prior: the prior that it belongs to, whose graph, fields and settings it uses.
        coupling: common strength J.
    """

    def __init__(self, prior: IsingSpikeSlab, coupling: float) -> None:
        super().__init__()
        self._priors = (prior,)  # in a tuple, so that the prior is not registered as a submodule
        self.coupling: float | Tensor = (
            nn.Parameter(torch.tensor(float(coupling))) if prior.learn_coupling else float(coupling)
        )
        if prior.weighting == "magnitude":
            for site in self.graph.sites.values():
                self.register_buffer(f"squares_{site.key}", torch.ones(site.shape))

    @property
    def prior(self) -> IsingSpikeSlab:
        """The prior whose interaction this is."""
        return self._priors[0]

    @property
    def graph(self) -> CouplingGraph:
        """The graph of couplings."""
        return self.prior.couplings

    @property
    def squares(self) -> dict[str, Tensor] | None:
        """How much each weight counts at its units, by site name in the graph's shapes; None if all count alike."""
        if self.prior.weighting == "uniform":
            return None
        return {name: self.get_buffer(f"squares_{site.key}") for name, site in self.graph.sites.items()}

    def energy(self, masks: Mapping[str, Tensor]) -> Tensor:
        return self.coupling * self.graph.energy(self.prior.at_units(masks), self.squares)

    def log_normaliser(self, masks: Mapping[str, Tensor]) -> Tensor:
        """log Z, exact up to `EXACT_LIMIT` masks; beyond, the value that makes the prior Besag's pseudo-likelihood."""
        masks = self.prior.at_units(masks)
        ising, state = self.distribution(), self.graph.join(masks)
        field = ising.field
        if len(field) <= EXACT_LIMIT:
            return ising.log_normaliser() + (field / 2 - F.softplus(field)).sum()
        nothing = dict.fromkeys(self.graph.sites, self.prior.zero)
        pull = self.graph.ising(nothing, 1.0, self.squares).local_field(state)
        log_odds = field + self.coupling * pull
        pseudo = (state * log_odds - F.softplus(log_odds)).sum()
        base = (state * field - F.softplus(field)).sum()
        return base + self.coupling * self.graph.energy(masks, self.squares) - pseudo

    def draw(self, draws: int) -> dict[str, Tensor]:
        """Draws from one Gibbs chain; exact and independent up to `EXACT_LIMIT` masks."""
        return self._in_shape(self.graph.split(self.distribution().chain(draws)))

    def distribution(self, sweeps: int = 100) -> Ising:
        """The prior of all masks as one distribution, flattened."""
        log_odds = {name: self.prior.field(name) for name in self.graph.sites}
        return self.graph.ising(log_odds, self.coupling, self.squares, sweeps)

    def observe_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Use the squares of these weights, by site name, for ``weighting="magnitude"`` (empirical Bayes)."""
        if self.squares is not None:
            squares = self.prior.at_units({name: weight.detach().square() for name, weight in weights.items()})
            for name, buffer in self.squares.items():
                buffer.copy_(squares[name])

    @torch.no_grad()
    def warn_of_phases(self) -> None:
        """Issue a `UserWarning` if the prior, without data, has two phases."""
        ising = self.distribution()
        low, high = (ising.mean_field(torch.full_like(ising.field, start), 50, 1e-3) for start in (0.0, 1.0))
        if (high - low).mean() > 0.1:
            warnings.warn(
                f"coupling={float(self.coupling)} with inclusion={self.prior.inclusion}: the prior has two phases "
                f"(mean-field densities {float(low.mean()):.2f} and {float(high.mean()):.2f}), so a posterior may "
                "turn all masks on or off; lower the coupling",
                UserWarning,
                stacklevel=4,
            )

    def _in_shape(self, coupled: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Draws ``(draws, ...)`` by site name, reshaped from the graph's shapes to those of the prior's masks."""
        shapes = {}
        for name in coupled:
            base = self.prior.mask(self.prior.sites[name])
            assert base is not None
            shapes[name] = base.event_shape
        return {name: drawn.reshape(len(drawn), *shapes[name]) for name, drawn in coupled.items()}
