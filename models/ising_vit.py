"""A network as a probabilistic program: masks, their Ising factor, weights, labels."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol, Self

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.indep_messenger import IndepMessenger
from torch import Tensor, nn
from torch.func import functional_call

from pyro_isingvit.errors import InputError, check_count, check_positive
from pyro_isingvit.network import Linear, WeightSite
from pyro_isingvit.programs import DrawnOnce, announce_parameters, full_precision

from .likelihoods import Classes, Likelihood
from .priors import Interaction, Prior


@dataclass(frozen=True)
class Pass:
    """One forward pass of the network in training, as the guide receives it.

    Attributes:
        images: (batch, channels, height, width).
        labels: (batch,), or None.
        weights: by site name, as they enter the network. After the backward pass, ``grad`` of each is the gradient of
            the loss through the likelihood alone, without the prior and the entropy of the weight.
        temperature, num_data: the model's temperature of the posterior and number of training images at the time.
    """

    images: Tensor
    labels: Tensor | None
    weights: dict[str, Tensor]
    temperature: float
    num_data: int


class Companion(Protocol):
    """The interface through which the model uses its guide; every `Guide` has it.

    Attributes:
        plated: whether masks and weights are sampled in plates over their dimensions, so that Pyro knows which
            terms of the loss are local to each element.
        watches: whether `see` is called before each pass of the network in training.
    """

    plated: bool

    @property
    def watches(self) -> bool: ...

    def see(self, passing: Pass) -> Linear | None:
        """Called before the network runs. Returns a function to apply its linear layers, or None for the default."""


Distributions = Callable[[], Sequence[TorchDistributionMixin]]
"""A function that makes distributions, as these take time and are not always needed."""


class JointDraw(Protocol):
    """A draw of all masks and weights at once, from a guide whose divergence from the prior has a closed form.

    Attributes:
        masks, weights: by site name.
    """

    @property
    def masks(self) -> dict[str, Tensor]: ...

    @property
    def weights(self) -> dict[str, Tensor]: ...

    def expected_energy(self, interaction: Interaction) -> Tensor:
        """Expectation over masks of the energy of an interaction that is linear in each of them."""

    def divergence(self, bases: Distributions, priors: Distributions) -> Tensor:
        """Divergence of the guide from the prior, given the masks that were drawn, in nats; a scalar.

        Args:
            bases: makes the base measures of the masks of the sites that have them, in order; none if they are fixed.
            priors: makes the priors of the weights of all sites given their masks, in order.
        """


class IsingNetwork(nn.Module):
    r"""The Pyro model of masks, their interaction, weights and labels.

    With ``N = num_data`` and temperature of the posterior ``T``:

    .. code-block:: text

        for site:  mask ~ prior.mask(site)
        factor("ising", prior.interaction.energy(masks))
        for site:  weight ~ prior.weight(site, mask)
        plate("data", N), scale 1 / T:  label ~ likelihood(network(images; weights))

    The posterior is a power posterior, prior times likelihood ** (1 / T). A network has far more weights than small
    data have information, so T = 1 prunes everything; see `fit`.

    Parameters of the network that are not among the prior's sites (biases, norms, embeddings) are learned without a
    prior.

    Args:
        network: a `ViT`, a network that `adapt` has made, or any module that has the weights of the prior's sites as
            parameters. Guides start from these weights; the network's own copy is no longer trained.
        prior: the prior over the network's sites.
        num_data: N, the number of training images; `fit` sets it. If None, the size of each batch, as if there were
            no more.
        temperature: T > 0, the temperature of the posterior; `fit` sets it.
        likelihood: distribution of the label given the network's outputs; `Classes` if None.

    Attributes:
        num_data, temperature: N and T, as above; both may be changed.
        fixed_masks: masks by site name while they are fixed, else None; see `fix_masks`.

    Under `torch.autocast` the network's matrix products are in lower precision; masks, weights, priors and the loss
    remain in float32.

    Raises:
        InputError: if a site of the prior is not a parameter of the network, or has another shape there.
    """

    def __init__(
        self,
        network: nn.Module,
        prior: Prior,
        num_data: int | None = None,
        temperature: float = 1.0,
        likelihood: Likelihood | None = None,
    ) -> None:
        super().__init__()
        self.sites = list(prior.sites.values())
        shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        strange = [site.name for site in self.sites if shapes.get(site.name) != site.shape]
        if strange:
            raise InputError(
                f"prior={type(prior).__name__} over sites {list(prior.sites)}: {strange} are no weights of the network "
                "or of another shape there; build it from network.weight_sites()"
            )
        self.network: Any = network
        self.prior = prior
        self.likelihood = Classes() if likelihood is None else likelihood.to(prior.zero.device)
        self.num_data, self.temperature = num_data, temperature
        self._check()
        self.fixed_masks: dict[str, Tensor] | None = None
        self._companions: tuple[Companion, ...] = ()  # at most one; in a tuple, so that it is not a submodule
        prior.check()
        self._varies = any(p.requires_grad for p in prior.parameters()) or _samples(prior)
        for site in self.sites:
            network.get_parameter(site.name).requires_grad_(False)

    def forward(self, images: Tensor, labels: Tensor | None = None, draw: JointDraw | None = None) -> Tensor:
        """Run the model on a batch.

        Args:
            images: (batch, channels, height, width), floats within [0, 1] or bytes.
            labels: (batch,); None samples them.
            draw: masks and weights that a guide has drawn; a factor then takes the place of their sample sites. None
                samples them.

        Returns:
            The logits, (batch, classes).
        """
        self._check()
        weights = self.draw_weights(draw)
        batch = len(images)
        linear = None
        for companion in self._companions:
            if companion.watches and torch.is_grad_enabled():
                if draw is None:  # sampled weights also enter the log density of the prior
                    weights = {name: weight.view_as(weight) for name, weight in weights.items()}
                for weight in weights.values():
                    if weight.requires_grad:
                        weight.retain_grad()
                linear = companion.see(Pass(images, labels, weights, self.temperature, self.num_data or batch))
        logits = self.logits(images, weights, linear)
        with (
            pyro.plate("data", self.num_data or batch, subsample=images),
            poutine.scale(scale=1 / self.temperature),
        ):
            self.likelihood.observe(logits, labels)
        return logits

    def _check(self) -> None:
        """Check the two numbers that may be set from outside; of a step that is traced, the temperature is a tensor."""
        temperature: Any = self.temperature
        if self.num_data is not None:
            check_count("num_data", self.num_data, 2**63)
        if not isinstance(temperature, Tensor):
            check_positive("temperature", temperature, "1.0")

    def draw_weights(self, draw: JointDraw | None = None) -> dict[str, Tensor]:
        """Sample all masks and weights, the latent part of the model. Returns the weights by site name."""
        announce_parameters("model", self)
        prior = self.prior
        with full_precision(prior.zero.device), DrawnOnce():
            if draw is not None:
                return self._take(draw)
            masks = self._draw_masks() if self.fixed_masks is None else self.fixed_masks
            return {
                site.name: self.sample(site, site.weight_name, prior.weight(site, masks.get(site.name)))
                for site in self.sites
            }

    def _take(self, draw: JointDraw) -> dict[str, Tensor]:
        """The factors that take the place of the sites of a draw. Returns its weights."""
        masks = draw.masks
        if self.fixed_masks is None:
            self._interact(masks, self._bases, draw)

        def priors() -> list[TorchDistributionMixin]:
            return [self.prior.weight(site, masks.get(site.name)) for site in self.sites]

        pyro.factor("divergence", -draw.divergence(lambda: list(self._bases().values()), priors))
        return draw.weights

    def follow(self, companion: Companion | None) -> None:
        """Set the guide that the model runs with from now on, or None. A `Guide` calls this each time it runs."""
        self._companions = () if companion is None else (companion,)

    def sample(self, site: WeightSite, name: str, fn: TorchDistributionMixin, **infer: Any) -> Tensor:
        """`pyro.sample` of a site's masks or weights, in plates over its dimensions if the guide is plated."""
        if not any(companion.plated for companion in self._companions):
            return pyro.sample(name, fn, infer=infer)
        with ExitStack() as plates:
            for dim, size in zip(site.dims, site.shape, strict=True):
                # This plate does not subsample, so that it can be entered for the masks and again for the weights.
                plates.enter_context(IndepMessenger(f"{site.name}.{dim}", size, site.axis(dim)))
            return pyro.sample(name, fn.to_event(-fn.event_dim), infer=infer)

    def logits(self, images: Tensor, weights: Mapping[str, Tensor], linear: Linear | None = None) -> Tensor:
        """Logits (batch, classes) of the network with the given weights in place of its own.

        Args:
            images: (batch, channels, height, width).
            weights: by site name.
            linear: a function that applies the network's linear layers, see `pyro_isingvit.network.Linear`; None for
                the default.

        Raises:
            InputError: if ``linear`` is given, but the network's ``forward`` has no argument of that name.
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
        """Fix the masks, given by site name, so that neither the model nor guides sample them. None undoes this."""
        self.fixed_masks = None if masks is None else dict(masks)

    def _bases(self) -> dict[WeightSite, TorchDistributionMixin]:
        every = {site: self.prior.mask(site) for site in self.sites}
        return {site: base for site, base in every.items() if base is not None}

    def _draw_masks(self) -> dict[str, Tensor]:
        bases = self._bases()
        masks = {site.name: self.sample(site, site.mask_name, base) for site, base in bases.items()}
        self._interact(masks, lambda: bases)
        return masks

    def _interact(
        self,
        masks: Mapping[str, Tensor],
        bases: Callable[[], Mapping[WeightSite, TorchDistributionMixin]],
        draw: JointDraw | None = None,
    ) -> None:
        """The factor of the interaction; for masks that were drawn at once its expectation, if that is known."""
        interaction = self.prior.interaction
        if not masks or interaction is None:
            return
        known = draw if interaction.multilinear else None
        energy = interaction.energy(masks) if known is None else known.expected_energy(interaction)
        pyro.factor("ising", energy - self._log_normaliser(interaction, masks, bases))

    def _log_normaliser(
        self,
        interaction: Interaction,
        masks: Mapping[str, Tensor],
        bases: Callable[[], Mapping[WeightSite, TorchDistributionMixin]],
    ) -> Tensor | float:
        """log Z of base measure times factor, or 0 where nothing that requires a gradient affects it."""
        if interaction.normalised or not self._varies:
            return 0.0
        detached = {name: mask.detach() for name, mask in masks.items()}
        terms = [base.log_prob(detached[site.name]) for site, base in bases().items()]
        learned = any(isinstance(x, Tensor) and x.requires_grad for x in [*terms, interaction.energy(detached)])
        return interaction.log_normaliser(detached) if learned else 0.0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.fixed_masks is not None:
            self.fixed_masks = {name: fn(mask) for name, mask in self.fixed_masks.items()}
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_companions": ()}  # a copy runs with a guide of its own

    def extra_repr(self) -> str:
        return f"num_data={self.num_data}, temperature={self.temperature}"


def _samples(prior: Prior) -> bool:
    """Whether the prior's base measure has latent variables of its own."""
    with poutine.block(), torch.random.fork_rng(), torch.no_grad():
        traces = [poutine.trace(prior.mask).get_trace(site) for site in prior.sites.values()]
    return any(node["type"] == "sample" for trace in traces for node in trace.nodes.values())


IsingViT = IsingNetwork
"""The name of `IsingNetwork` from when it took a `ViT` alone."""
