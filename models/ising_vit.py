"""A network as a probabilistic program: masks, their Ising factor, weights, labels."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol, Self

import pyro
import torch
from pyro import poutine
from pyro.distributions import Categorical
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.indep_messenger import IndepMessenger
from torch import Tensor, nn
from torch.func import functional_call

from pyro_isingvit.errors import InputError
from pyro_isingvit.network import Linear, ViT, WeightSite
from pyro_isingvit.programs import announce_parameters, full_precision

from .priors import Interaction, Prior


@dataclass(frozen=True)
class Pass:
    """One pass of the network in training, as a companion sees it.

    Attributes:
        images, labels: the batch.
        weights: as they enter the network, by site name. After the backward pass, ``grad`` of each is the gradient of
            the loss through the likelihood alone, without the prior and the entropy of the weight.
        temperature, num_data: of the model at the time.
    """

    images: Tensor
    labels: Tensor | None
    weights: dict[str, Tensor]
    temperature: float
    num_data: int


class Companion(Protocol):
    """What the program runs with: a `Guide`, which has all of this.

    Attributes:
        plated: whether masks and weights are sampled in plates over their dimensions, so that Pyro knows which
            terms of the loss are local.
        watches: whether it wants to see the passes of training.
    """

    plated: bool

    @property
    def watches(self) -> bool: ...

    def see(self, passing: Pass) -> Linear | None:
        """Called before the network runs. Returns what is to apply its linear layers, None for the usual."""


class IsingViT(nn.Module):
    r"""The Pyro model. With ``N = num_data`` and temperature ``T``:

    .. code-block:: text

        for site:  mask ~ prior.mask(site)
        factor("ising", prior.interaction.energy(masks))
        for site:  weight ~ prior.weight(site, mask)
        plate("data", N), scale 1 / T:  label ~ Categorical(logits=network(images; weights))

    The temperature is that of a power posterior, prior times likelihood ** (1 / T). Small data carry far
    less information than a network has weights, so T = 1 prunes everything; see `fit`.

    Biases, norms and embeddings that are not among the prior's sites are learned parameters.

    Args:
        network: a `ViT`, or any module that has the weights of the prior's sites as parameters. Its weights are where
            guides start; they are no longer trained themselves.
        prior: over the network's sites.
        num_data: N, the number of training images; `fit` sets it. The batch's own size if None.
        temperature: T > 0; `fit` sets it.

    Attributes:
        num_data, temperature: N and T, as above; both may be changed.
        fixed_masks: by site name, while masks are fixed; see `fix_masks`.

    Under `torch.autocast` the network's matrix products are in lower precision; masks, weights, priors and the loss
    stay in float32.

    Raises:
        InputError: if a site of the prior is no weight of the network, or of another shape there.
    """

    def __init__(self, network: ViT, prior: Prior, num_data: int | None = None, temperature: float = 1.0) -> None:
        super().__init__()
        self.sites = list(prior.sites.values())
        shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        strange = [site.name for site in self.sites if shapes.get(site.name) != site.shape]
        if strange:
            raise InputError(
                f"prior={type(prior).__name__} over sites {list(prior.sites)}: {strange} are no weights of the network "
                "or of another shape there; build it from network.weight_sites()"
            )
        self.network, self.prior = network, prior
        self.num_data, self.temperature = num_data, temperature
        self.fixed_masks: dict[str, Tensor] | None = None
        self._companions: tuple[Companion, ...] = ()  # at most one; in a tuple, since it is no part of the model
        self._varies = any(p.requires_grad for p in prior.parameters()) or _samples(prior)
        for site in self.sites:
            network.get_parameter(site.name).requires_grad_(False)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (batch, channels, height, width) in [0, 1] and labels (batch,) or None; returns the logits."""
        weights = self.draw_weights()
        batch = len(images)
        linear = None
        for companion in self._companions:
            if companion.watches and torch.is_grad_enabled():
                weights = {name: _entering(weight) for name, weight in weights.items()}
                linear = companion.see(Pass(images, labels, weights, self.temperature, self.num_data or batch))
        logits = self.logits(images, weights, linear)
        with (
            pyro.plate("data", self.num_data or batch, subsample=images),
            poutine.scale(scale=1 / self.temperature),
        ):
            pyro.sample("label", Categorical(logits=logits, validate_args=False), obs=labels)
        return logits

    def draw_weights(self) -> dict[str, Tensor]:
        """The latent part of the program: every mask and weight. Returns the weights by site name."""
        announce_parameters("model", self)
        with full_precision(self.prior.zero.device):
            masks = self._draw_masks() if self.fixed_masks is None else self.fixed_masks
            return {
                site.name: self.sample(site, site.weight_name, self.prior.weight(site, masks.get(site.name)))
                for site in self.sites
            }

    def follow(self, companion: Companion | None) -> None:
        """Run with a companion from now on, or with none. A `Guide` calls this each time it runs."""
        self._companions = () if companion is None else (companion,)

    def sample(self, site: WeightSite, name: str, fn: TorchDistributionMixin, **infer: Any) -> Tensor:
        """`pyro.sample` of a site's masks or weights, in plates over its dimensions if the companion is plated."""
        if not any(companion.plated for companion in self._companions):
            return pyro.sample(name, fn, infer=infer)
        with ExitStack() as plates:
            for dim, size in zip(site.dims, site.shape, strict=True):
                # A plate that takes no subsample, and so can be entered for the masks and again for the weights.
                plates.enter_context(IndepMessenger(f"{site.name}.{dim}", size, site.axis(dim)))
            return pyro.sample(name, fn.to_event(-fn.event_dim), infer=infer)

    def logits(self, images: Tensor, weights: Mapping[str, Tensor], linear: Linear | None = None) -> Tensor:
        """The network's logits (batch, classes) with given weights, by site name, in place of its own.

        Args:
            images: (batch, channels, height, width).
            weights: by site name.
            linear: applies the network's linear layers, see `pyro_isingvit.network.Linear`; None for the usual.

        Raises:
            InputError: if ``linear`` is given, and the network's ``forward`` does not take it.
        """
        options: dict[str, Any] = {}
        if linear is not None:
            if "linear" not in inspect.signature(self.network.forward).parameters:
                raise InputError(
                    f"network={type(self.network).__name__}: its forward takes no linear=, by which an estimator "
                    "watches its layers; add it as in ViT, or use estimator='squared_gradient'"
                )
            options["linear"] = linear
        return functional_call(self.network, dict(weights), (images,), options).float()

    def fix_masks(self, masks: Mapping[str, Tensor] | None) -> None:
        """Condition on masks, by site name: they are sampled neither here nor in guides. None frees them again."""
        self.fixed_masks = None if masks is None else dict(masks)

    def _draw_masks(self) -> dict[str, Tensor]:
        bases = {site: self.prior.mask(site) for site in self.sites}
        masks = {site.name: self.sample(site, site.mask_name, base) for site, base in bases.items() if base is not None}
        interaction = self.prior.interaction
        if masks and interaction is not None:
            pyro.factor("ising", interaction.energy(masks) - self._log_normaliser(interaction, masks, bases))
        return masks

    def _log_normaliser(
        self,
        interaction: Interaction,
        masks: Mapping[str, Tensor],
        bases: Mapping[WeightSite, TorchDistributionMixin | None],
    ) -> Tensor | float:
        """0 where the normaliser of base measure times factor is a constant."""
        if interaction.normalised or not self._varies:
            return 0.0
        detached = {name: mask.detach() for name, mask in masks.items()}
        terms = [base.log_prob(detached[site.name]) for site, base in bases.items() if base is not None]
        learned = any(isinstance(x, Tensor) and x.requires_grad for x in [*terms, interaction.energy(detached)])
        return interaction.log_normaliser(detached) if learned else 0.0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.fixed_masks is not None:
            self.fixed_masks = {name: fn(mask) for name, mask in self.fixed_masks.items()}
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_companions": ()}  # a copy has a guide of its own

    def extra_repr(self) -> str:
        return f"num_data={self.num_data}, temperature={self.temperature}"


def _entering(weight: Tensor) -> Tensor:
    """A view of a sampled weight that keeps its gradient."""
    if not weight.requires_grad:
        return weight
    entering = weight.view_as(weight)
    entering.retain_grad()
    return entering


def _samples(prior: Prior) -> bool:
    """Whether the prior's base measure has latent variables of its own."""
    with poutine.block(), torch.random.fork_rng(), torch.no_grad():
        traces = [poutine.trace(prior.mask).get_trace(site) for site in prior.sites.values()]
    return any(node["type"] == "sample" for trace in traces for node in trace.nodes.values())
