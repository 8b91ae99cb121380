"""The base class of priors: the base measure of masks, their interaction, and weights given their masks."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_isingvit.distributions import Gaussian
from pyro_isingvit.errors import InputError
from pyro_isingvit.network import WeightSite, by_name
from pyro_isingvit.programs import DrawnOnce
from pyro_isingvit.settings import Described

from .interaction import Interaction


class Prior(Described, nn.Module):
    """A prior over the masks and weights of a network.

    Override what differs: `mask` (base measure of a site's masks, or None for no masks) or `weight` (a weight given its
    mask), or just its `slab`; and set ``interaction`` to couple the masks. Each of these may call `pyro.sample` for a
    latent variable of the prior's own (a guide then has a `hyper` distribution for it) or use `nn.Parameter`s. They are
    called once for each site, and a latent variable that several calls sample by the same name is one that these sites
    share. The base class has no masks, and weights ``Normal(0, 1 / sqrt(fan_in))``.

    A subclass keeps its constructor's arguments as attributes of the same names, since a saved posterior is described
    by them; see `pyro_isingvit.settings.Described`.

    Args:
        sites: the network's `weight_sites()`.

    Example: weights with heavier tails.

        >>> class HeavyTailed(IsingSpikeSlab):
        ...     def slab(self, site):
        ...         return StudentT(4.0, self.zero.expand(site.shape), site.fan_in**-0.5)

    Example: one scale, itself unknown, for the weights of all sites.

        >>> class OneScale(IndependentSpikeSlab):
        ...     def slab(self, site):
        ...         scale = pyro.sample("scale", HalfCauchy(self.zero + 1.0))
        ...         return Gaussian(self.zero, scale.log() - 0.5 * math.log(site.fan_in), site.shape)

    Example: attention is kept more readily than the rest.

        >>> class AttentionFirst(IsingSpikeSlab):
        ...     def inclusion_of(self, site):
        ...         return 0.5 if site.name.startswith("encoder.query") else super().inclusion_of(site)
    """

    interaction: Interaction | None
    """The interaction of the masks; None if they are independent."""

    zero: Tensor
    """A scalar zero on the prior's device, to build distributions from."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "potential" in vars(cls):
            raise InputError(
                f"{cls.__name__}.potential is not used: set interaction to an Interaction with it as energy(masks)"
            )

    def __init__(self, sites: Sequence[WeightSite]) -> None:
        super().__init__()
        self.sites = by_name(sites)
        self.interaction = None
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def check(self) -> None:
        """Refuse values that no model can have, with a message that names the site; called when a model is made."""

    def mask(self, site: WeightSite) -> TorchDistributionMixin | None:
        """Base measure of the masks of a site, event shape broadcastable to ``site.shape``; None for no masks."""
        return None

    def draw_masks(self, draws: int) -> dict[str, Tensor]:
        """Draws of all masks from the prior with its interaction, ``(draws, *mask shape)`` by site name.

        Raises:
            NotImplementedError: if there is an interaction that does not implement `draw`.
        """
        drawn = {} if self.interaction is None else self.interaction.draw(draws)
        alone = {name: site for name, site in self.sites.items() if name not in drawn}
        every: list[dict[str, Tensor]] = []
        for _ in range(draws):
            with DrawnOnce():
                bases = {name: self.mask(site) for name, site in alone.items()}
            every.append({name: base.sample() for name, base in bases.items() if base is not None})
        return drawn | {name: torch.stack([masks[name] for masks in every]) for name in every[0]}

    def weight(self, site: WeightSite, mask: Tensor | None) -> TorchDistributionMixin:
        """Distribution of a weight given its mask (None for a site without masks), event shape ``site.shape``."""
        return self.slab(site).to_event(len(site.shape))

    def slab(self, site: WeightSite) -> TorchDistributionMixin:
        """Distribution of a weight that is kept, batch shape ``site.shape``."""
        return Gaussian(self.zero, self.zero - 0.5 * math.log(site.fan_in), site.shape)
