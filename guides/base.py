"""The base class of guides: the methods that define a variational family, and the Pyro program that calls them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Normal, TransformedDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_isingvit.errors import InputError
from pyro_isingvit.models.ising_vit import IsingViT, JointDraw, Pass
from pyro_isingvit.network import Linear, WeightSite
from pyro_isingvit.programs import DrawnOnce, announce_parameters, full_precision
from pyro_isingvit.settings import Described

SMALLEST = 1e-8
"""Distance of a probability from 0 or 1 below which single precision does not tell log odds apart."""

INITIAL_HYPER_SCALE = 0.1
"""Initial posterior scale of the prior's own latent variables, in unconstrained space."""


class Guide(Described, nn.Module):
    """A variational family for the masks and weights of a model.

    Subclasses implement `mask` and `weight`; a structured family overrides `draw_masks`. Latent variables of
    the prior's own (an inclusion probability, a scale) get a `hyper` distribution each. All learned
    values are `nn.Parameter`s of the guide; none are in Pyro's global store.

    Args:
        model: the model whose posterior this approximates.

    Attributes:
        mask_shapes: shape of the masks of every site that has them, by site name.

    Raises:
        InputError: if the prior's masks have a shape that does not fit their site.
    """

    plated = False
    """Whether masks and weights are sampled in plates over their dimensions."""

    independent_masks = True
    """Whether all masks are independent under this family. False for a class that overrides `draw_masks`, unless the
    class sets it."""

    seen: Pass | None = None
    """The last pass of training that `see` received and `learn` has not used yet."""

    sparsifies = False
    """Whether `fit` trains in phases, from a whole network to a sparse one, although no site has masks."""

    counters: tuple[str, ...] = ()
    """Names of numbers that change in training and that no draw or density depends on, such as those that `learn`
    counts in. Any other number is taken for part of the program, which is traced again when it changes."""

    closed_form = False
    """Whether masks and scales are updated in closed form, independently of the learning rate."""

    target_density: float | None = None
    """Mean inclusion probability that is held, see `hold_density`; None leaves it to prior and likelihood."""

    held: frozenset[str] = frozenset()
    """Names of the sites whose masks are held, see `hold_masks`."""

    averaging: Callable[[Sequence[Tensor]], None] | None = None
    """In a fit by several processes, puts the means over all of them in the place of tensors; set by `fit` alone."""

    def __init__(self, model: IsingViT) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that its parameters are not registered as the guide's
        self.mask_shapes: dict[str, torch.Size] = {}
        self._hypers: dict[str, dict[str, TorchDistributionMixin]] = {"mask": {}, "weight": {}}
        prior, masks = model.prior, {}
        with poutine.block(), torch.random.fork_rng(), torch.no_grad():
            for site in model.sites:
                base = self._discover("mask", prior.mask, site)
                if base is not None:
                    self.mask_shapes[site.name] = _checked_mask_shape(site, base)
                    masks[site.name] = torch.ones(base.event_shape, device=prior.zero.device)
            if masks and prior.interaction is not None:
                self._discover("mask", prior.interaction.energy, masks)
            for site in model.sites:
                self._discover("weight", prior.weight, site, masks.get(site.name))
            starts = {
                name: biject_to(fn.support).inv(fn.sample((101,)).median(0).values)
                for fns in self._hypers.values()
                for name, fn in fns.items()
            }
        self.hyper_loc = nn.ParameterDict({_key(name): nn.Parameter(start) for name, start in starts.items()})
        self.hyper_log_scale = nn.ParameterDict(
            {
                _key(name): nn.Parameter(torch.full_like(start, math.log(INITIAL_HYPER_SCALE)))
                for name, start in starts.items()
            }
        )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        drawn, said = (
            next(place for place, base in enumerate(cls.__mro__) if name in vars(base))
            for name in ("draw_masks", "independent_masks")
        )
        if drawn < said:
            cls.independent_masks = False

    @property
    def model(self) -> IsingViT:
        """The model whose posterior this approximates."""
        return self._model[0]

    @property
    def watches(self) -> bool:
        """Whether `see` is called before each pass of the network in training; False here."""
        return False

    def see(self, passing: Pass) -> Linear | None:
        """Receive a pass of training, before the network runs.

        Returns:
            The function that applies the network's linear layers, see `pyro_isingvit.network.Linear`; None for the
            default.
        """
        self.seen = passing
        return None

    def learn(self) -> None:
        """Update what is not learned by gradient, from the last pass that was seen, once; does nothing here.

        `fit` calls this after each step of the optimiser. Otherwise the guide calls it when it next runs, which is also
        after that step, so that training with `pyro.infer.SVI` gives the same result.
        """

    def forget(self) -> None:
        """Discard the last pass that was seen, if `learn` has not used it yet, and what is kept between draws."""
        self.seen = None

    @property
    def mask_hypers(self) -> list[str]:
        """Names of the latent variables that the prior of the masks samples."""
        return list(self._hypers["mask"])

    def mask(self, site: WeightSite) -> TorchDistributionMixin:
        """Distribution of the masks of a site, event shape ``mask_shapes[site.name]``."""
        raise NotImplementedError(f"{type(self).__name__} must implement mask(site)")

    def weight(self, site: WeightSite, mask: Tensor | None) -> TorchDistributionMixin:
        """Distribution of a weight given its mask (None for a site without masks), event shape ``site.shape``."""
        raise NotImplementedError(f"{type(self).__name__} must implement weight(site, mask)")

    def hyper(self, name: str, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        """Distribution of a latent variable of the prior's own; a Gaussian in unconstrained space.

        Args:
            name: name of its sample site.
            prior: its distribution under the prior when the guide was made.
        """
        loc, log_scale = self.hyper_loc[_key(name)], self.hyper_log_scale[_key(name)]
        transform = biject_to(prior.support)
        q = TransformedDistribution(Normal(loc, log_scale.exp()).to_event(transform.domain.event_dim), transform)
        return q.to_event(prior.event_dim - q.event_dim)

    def draw_masks(self) -> dict[str, Tensor]:
        """Sample the masks of all sites that have them, by site name."""
        return {
            site.name: self.model.sample(site, site.mask_name, self.mask(site))
            for site in self.model.sites
            if site.name in self.mask_shapes
        }

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The Pyro program. Takes the model's arguments and ignores them; returns the weights by site name."""
        self.begin()
        model = self.model
        with full_precision(model.prior.zero.device), DrawnOnce():
            if model.fixed_masks is None:
                self._draw_hypers("mask")
                masks = self.draw_masks()
            else:
                masks = model.fixed_masks
            self._draw_hypers("weight")
            return {
                site.name: model.sample(site, site.weight_name, self.weight(site, masks.get(site.name)))
                for site in model.sites
            }

    def begin(self) -> None:
        """What comes before each draw in training: the guide learns, and the model follows it."""
        announce_parameters("guide", self)
        self.model.follow(self)
        if self.training:
            with full_precision(self.model.prior.zero.device):
                self.learn()

    def draw_jointly(self) -> JointDraw | None:
        """All masks and weights in one draw, if their divergence from the prior has a closed form; None if not.

        `pyro_isingvit.inference.elbo.TraceGraph_ELBO` uses it in place of the Pyro program, which takes longer.
        """
        return None

    def mask_log_prob(self, masks: Mapping[str, Tensor]) -> Tensor:
        """Log probability of the masks of all sites together, given by site name; a scalar.

        Raises:
            NotImplementedError: if it is intractable for this family.
        """
        logs = [
            self.mask(site).log_prob(masks[site.name]) for site in self.model.sites if site.name in self.mask_shapes
        ]
        return torch.stack(logs).sum()

    @torch.no_grad()
    def inclusion_probabilities(self) -> dict[str, Tensor]:
        """Posterior probability of each mask being 1, by site name, in the shape of the masks."""
        return {site.name: self.mask(site).mean.detach() for site in self.model.sites if site.name in self.mask_shapes}

    @torch.no_grad()
    def inclusion_log_odds(self) -> dict[str, Tensor]:
        """Posterior log odds of each mask being 1, by site name, in the shape of the masks; finite.

        They rank masks whose probabilities round to 0 or 1.
        """
        return {name: p.double().logit(eps=SMALLEST) for name, p in self.inclusion_probabilities().items()}

    def inclusion_at(self, temperature: float) -> dict[str, Tensor]:
        """Inclusion probabilities that follow from the evidence at a given temperature, by site name.

        They are read off from the means and the curvature at the end of the fit. Masks that are held stay as they are.

        Raises:
            InputError: if this family has no estimate of the evidence.
        """
        raise InputError(
            f"temperature={temperature}: {type(self).__name__} has no estimate of the evidence at a temperature it "
            "was not fitted at; use LikelihoodGuided"
        )

    @torch.no_grad()
    def median_masks(self) -> dict[str, Tensor]:
        """Masks of the median-probability model: 1 where the inclusion probability is at least one half."""
        return {name: (p >= 0.5).to(p.dtype) for name, p in self.inclusion_probabilities().items()}

    @torch.no_grad()
    def mean_weights(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Posterior mean of every weight given masks, by site name."""
        return {site.name: self.weight(site, masks.get(site.name)).mean for site in self.model.sites}

    def hold_density(self, density: float | None) -> None:
        """Hold the mean inclusion probability of all weights at ``density`` from now on; None stops this.

        Raises:
            InputError: if this family cannot do so, or the density is out of range.
        """
        if density is not None:
            raise InputError(
                f"target_density={density}: {type(self).__name__} cannot hold a density; use LikelihoodGuided"
            )

    def hold_masks(self, probabilities: Mapping[str, Tensor]) -> None:
        """Hold the masks of some sites at given inclusion probabilities from now on. Sites held before are released.

        With probabilities from another posterior, this is a modular posterior: the masks of these sites are
        distributed as there, and all else follows from the data given them. In the pilot phase they are on where the
        probability is at least one half. Probabilities nearer to 0 or 1 than the guide's own can be are moved there.

        Args:
            probabilities: by site name, in the shape of the masks; empty to hold none.

        Raises:
            InputError: if this family cannot do so, or names, shapes or values do not fit.
        """
        if probabilities:
            raise InputError(
                f"probabilities of {list(probabilities)}: {type(self).__name__} cannot hold masks; use LikelihoodGuided"
            )

    def mask_temperature_of(self, site: WeightSite) -> float:
        """The temperature of the posterior that the masks of a site follow; that of the weights unless overridden."""
        return self.model.temperature

    def pilot_masks(self) -> dict[str, Tensor]:
        """Masks of the pilot phase, by site name: all on, except those that are held off."""
        device, median = self.model.prior.zero.device, self.median_masks() if self.held else {}
        return {
            name: median[name] if name in self.held else torch.ones(shape, device=device)
            for name, shape in self.mask_shapes.items()
        }

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The trainable parameters as parameter groups of a torch optimiser."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": learning_rate}]

    @contextmanager
    def hypers_at_median(self) -> Iterator[None]:
        """Context with the prior's own latent variables at their posterior medians, hidden from outer Pyro handlers."""
        with torch.no_grad():
            data = {
                name: biject_to(fn.support)(self.hyper_loc[_key(name)])
                for fns in self._hypers.values()
                for name, fn in fns.items()
            }
        with poutine.block(), poutine.condition(data=data):
            yield

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"seen": None, "averaging": None}  # neither can be copied or pickled

    def _discover(self, kind: str, part: Callable[..., Any], *args: Any) -> Any:
        """Run a method of the prior, store the latent variables it samples, and return its result."""
        trace = poutine.trace(part).get_trace(*args)
        for name, node in trace.nodes.items():
            if node["type"] == "sample" and not node["is_observed"] and not site_is_subsample(node):
                self._hypers[kind][name] = node["fn"]
        return trace.nodes["_RETURN"]["value"]

    def _draw_hypers(self, kind: str) -> None:
        for name, fn in self._hypers[kind].items():
            pyro.sample(name, self.hyper(name, fn))


def initial_weights(model: IsingViT) -> dict[str, Tensor]:
    """Initial weights of a guide: a copy of the network's, by ``site.key``, on the prior's device."""
    return {
        site.key: model.network.get_parameter(site.name).detach().clone().to(model.prior.zero.device)
        for site in model.sites
    }


def _key(name: str) -> str:
    return name.replace(".", "_")


def _checked_mask_shape(site: WeightSite, base: TorchDistributionMixin) -> torch.Size:
    shape = base.event_shape
    fits = len(shape) == len(site.shape) and all(m in (1, s) for m, s in zip(shape, site.shape, strict=True))
    if base.batch_shape or not fits:
        raise InputError(
            f"prior.mask at site {site.name!r} has batch shape {tuple(base.batch_shape)} and event shape "
            f"{tuple(shape)}; expected no batch shape and an event shape that broadcasts to {site.shape} "
            "with as many dimensions; use to_event"
        )
    return shape
