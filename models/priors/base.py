"""What a prior is: three methods, each with a sensible default."""

import math
from collections.abc import Mapping, Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_isingvit.distributions import Gaussian
from pyro_isingvit.network import WeightSite, by_name
from pyro_isingvit.settings import Described


class Prior(Described, nn.Module):
    """A prior over the masks and weights of a network.

    Override what differs: `mask` (base measure of a site's masks, or None for no masks), `potential`
    (interaction of the masks), `weight` (a weight given its mask) or just its `slab`. Each may itself
    call `pyro.sample` (a guide then has a `hyper` for that site) or hold `nn.Parameter`s. As it stands: no
    masks, and weights ``Normal(0, 1 / sqrt(fan_in))``.

    Args:
        sites: the network's `weight_sites()`.

    Example: weights with heavier tails.

        >>> class HeavyTailed(IsingSpikeSlab):
        ...     def slab(self, site):
        ...         return StudentT(4.0, self.zero.expand(site.shape), site.fan_in**-0.5)

    Example: attention is kept more readily than the rest.

        >>> class AttentionFirst(IsingSpikeSlab):
        ...     def inclusion_of(self, site):
        ...         return 0.5 if site.name.startswith("encoder.query") else super().inclusion_of(site)
    """

    zero: Tensor
    """A scalar zero on the prior's device, to build distributions from."""

    def __init__(self, sites: Sequence[WeightSite]) -> None:
        super().__init__()
        self.sites = by_name(sites)
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def mask(self, site: WeightSite) -> TorchDistributionMixin | None:
        """Base measure of the masks of a site: event shape broadcastable to the site's; None for no masks."""
        return None

    def potential(self, masks: Mapping[str, Tensor]) -> Tensor | None:
        """Log of the factor over all masks, unnormalised, a scalar; None for no interaction.

        Should be linear in each mask, so that its gradient at mean masks is the mean-field one.
        """
        return None

    def log_normaliser(self, masks: Mapping[str, Tensor]) -> Tensor:
        """log Z of base measure times ``exp(potential)``; asked for only where `potential` has parameters.

        Args:
            masks: the current draw, for those who put a pseudo-likelihood in place of log Z.

        Raises:
            NotImplementedError: unless overridden.
        """
        raise NotImplementedError(
            f"{type(self).__name__}.potential depends on learned parameters, so its normaliser does too: override "
            "log_normaliser(masks) with log Z (Ising.log_normaliser for small systems) or a pseudo-likelihood in "
            "its place, or detach the parameters"
        )

    def observe_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Told the posterior means of all weights, by site name, before masks are updated in closed form."""

    def draw_masks(self, draws: int) -> dict[str, Tensor]:
        """Draws of all masks from the prior with its interaction, ``(draws, *mask shape)`` by site name.

        Raises:
            NotImplementedError: if there is a `potential` and this is not overridden: the base measure alone
                is another distribution.
        """
        every: list[dict[str, Tensor]] = []
        for _ in range(draws):
            bases = {name: self.mask(site) for name, site in self.sites.items()}
            every.append({name: base.sample() for name, base in bases.items() if base is not None})
        if every[0] and self.potential(every[0]) is not None:
            raise NotImplementedError(
                f"{type(self).__name__} has a potential, so its masks are not drawn from prior.mask: override "
                "draw_masks(draws), e.g. with Ising.chain"
            )
        return {name: torch.stack([masks[name] for masks in every]) for name in every[0]}

    def weight(self, site: WeightSite, mask: Tensor | None) -> TorchDistributionMixin:
        """A weight given its mask (None where `mask` is): event shape equal to the site's."""
        return self.slab(site).to_event(len(site.shape))

    def slab(self, site: WeightSite) -> TorchDistributionMixin:
        """A weight that is in: batch shape equal to the site's."""
        return Gaussian(self.zero, self.zero - 0.5 * math.log(site.fan_in), site.shape)
