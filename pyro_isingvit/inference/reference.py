"""A reference posterior for small networks: Gibbs draws of masks, Hamiltonian draws of weights.

The state is the masks and standardised weights z, with ``z ~ Normal(0, 1)`` and the weight ``loc + scale * z`` of the
slab where its mask is 1, and of the spike where it is 0. A sweep draws all masks, a few at a time, from their exact
conditional given z and all others, by evaluating the likelihood at each of their states; then it moves z by Hamiltonian
Monte Carlo given the masks. Both leave the posterior invariant.

References:
    George & McCulloch, "Variable Selection via Gibbs Sampling", JASA 1993.
    Neal, "MCMC Using Hamiltonian Dynamics", Handbook of Markov Chain Monte Carlo 2011.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer.mcmc import HMC
from rich.progress import track
from torch import Tensor

from ..data import Images
from ..distributions import Gaussian, SpikeAndSlab
from ..draws import Draw, draw_seed, evaluating, seeded
from ..errors import InputError, check_count, kind_of
from ..models import IsingViT
from ..network import WeightSite
from ..prediction import Prediction, predictions
from .inputs import check_part

MOST_WEIGHTS = 5000
"""Largest number of weights that is sampled; beyond some 500 it mixes slowly."""

BLOCK = 4
"""Number of masks that are drawn at a time, from all of their states at once."""

TRAJECTORY = 1.0
"""Mean length of the moves of the standardised weights, whose prior has unit scale."""


@dataclass(frozen=True)
class Reference:
    """Draws of Markov chains whose stationary distribution is the posterior.

    Attributes:
        masks: by site name, (chains, draws, *mask shape), zeros and ones.
        weights: by site name, (chains, draws, *site shape), with the masks applied.
        log_likelihood: of each training image, in nats, neither tempered nor scaled: (chains, draws, images).
        acceptance: share of the moves of the weights that were accepted, (chains,).
        model: the model.
    """

    masks: dict[str, Tensor]
    weights: dict[str, Tensor]
    log_likelihood: Tensor
    acceptance: Tensor
    model: IsingViT

    def inclusion_probabilities(self) -> dict[str, Tensor]:
        """Posterior probability of each mask being 1, by site name."""
        return {name: masks.flatten(0, 1).mean(0) for name, masks in self.masks.items()}

    def draws(self) -> Iterator[Draw]:
        """All draws, one chain after the other."""
        masks, weights = ({k: v.flatten(0, 1) for k, v in each.items()} for each in (self.masks, self.weights))
        for t in range(self.log_likelihood.shape[:2].numel()):
            yield Draw({k: v[t] for k, v in masks.items()}, {k: v[t] for k, v in weights.items()}, self.model)

    def predict(self, images: Tensor, interval: float = 0.9) -> Prediction:
        """Average the network's predictions over all draws; see `Posterior.predict`."""
        draws = self.log_likelihood.shape[:2].numel()
        return predictions(self.draws, draws, images, (1.0,), interval, self.log_likelihood.device)[0]


def sample_reference(
    model: IsingViT,
    train: Images,
    draws: int = 500,
    warmup: int = 300,
    chains: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> Reference:
    """Sample the posterior of the masks and weights of a small network by Markov chain Monte Carlo.

    The target is the power posterior at the model's temperature, given the other parameters of the network (biases,
    norms, embeddings) as they are, and the masks of the model if these are fixed. Chains start at draws from the prior
    without its interaction.

    Args:
        model: a model whose weights are Gaussian, or spike-and-slab with Gaussian components, given their masks.
        train: the training images, all of which are used at each step.
        draws: number of draws of each chain, one after each sweep.
        warmup: number of sweeps before them, in which the step size of the Hamiltonian moves is adapted.
        chains: number of chains.
        seed: seed of the chains; the k-th depends on ``seed`` and k alone.
        progress: whether to show progress bars.

    Returns:
        The draws. `pyro_isingvit.diagnostics.convergence` says whether the chains agree.

    Raises:
        InputError: if a number is out of range, the network has more than `MOST_WEIGHTS` weights, the prior has latent
            variables of its own, or a weight is not Gaussian given its mask.

    Example:
        >>> reference = sample_reference(posterior.model, train)  # doctest: +SKIP
        >>> convergence(reference)["r_hat"].max()  # doctest: +SKIP
    """
    for argument, given, kind in (("model", model, IsingViT), ("train", train, Images)):
        if not isinstance(given, kind):
            raise InputError(
                f"{argument}={kind_of(given)}: sample_reference(model, train) takes an IsingViT, such as "
                "posterior.model, and Images"
            )
    for name, value in (("draws", draws), ("warmup", warmup), ("chains", chains)):
        check_count(name, value, 1_000_000)
    weights = sum(site.numel for site in model.sites)
    if weights > MOST_WEIGHTS:
        raise InputError(f"model: {weights:,} weights; chains mix in reasonable time up to some 500, and stop at 5,000")
    device = model.prior.zero.device
    train = train.to(device)
    check_part(model, "train", train)
    found = []
    for chain in range(chains):
        with evaluating(model), seeded(device, draw_seed(seed, chain)):
            sampler = _Sampler(model, train)
            sweeps = range(warmup + draws)
            shown = track(sweeps, f"chain {chain + 1} of {chains}", transient=True) if progress else sweeps
            sampler.begin(warmup)
            states = []
            for sweep in shown:
                sampler.sweep()
                if sweep >= warmup:
                    states.append(sampler.state())
            found.append((states, sampler.acceptance(draws)))
    chained, accepted = [states for states, _ in found], torch.tensor([share for _, share in found])
    return Reference(
        _stacked([[state.masks for state in states] for states in chained]),
        _stacked([[state.weights for state in states] for states in chained]),
        torch.stack([torch.stack([state.log_likelihood for state in states]) for states in chained]),
        accepted,
        model,
    )


class _State(NamedTuple):
    """Masks, weights, and the log-likelihood of each image."""

    masks: dict[str, Tensor]
    weights: dict[str, Tensor]
    log_likelihood: Tensor


def _stacked(chains: list[list[dict[str, Tensor]]]) -> dict[str, Tensor]:
    return {name: torch.stack([torch.stack([s[name] for s in states]) for states in chains]) for name in chains[0][0]}


class _Sampler:
    """The state of one chain, and its moves."""

    def __init__(self, model: IsingViT, train: Images) -> None:
        self.model, self.train, self.sites = model, train, list(model.sites)
        prior = model.prior
        self._refuse_latents()
        bases = {site.name: prior.mask(site) for site in self.sites}
        self.bases = {name: base for name, base in bases.items() if base is not None}
        self.shapes = {name: base.event_shape for name, base in self.bases.items()}
        self.parts = {site.name: self._components(site) for site in self.sites}
        fixed = model.fixed_masks
        self.fixed = fixed is not None
        self.masks = {name: base.sample() for name, base in self.bases.items()} if fixed is None else dict(fixed)
        self.z = {site.key: torch.randn(site.shape, device=prior.zero.device) for site in self.sites}
        self.accepted = 0.0

    def _refuse_latents(self) -> None:
        masks: dict[str, Tensor] = {}
        with poutine.block(), poutine.trace() as trace:
            for site in self.sites:
                base = self.model.prior.mask(site)
                mask = None if base is None else base.sample()
                self.model.prior.weight(site, mask)
                masks |= {} if mask is None else {site.name: mask}
            if masks and self.model.prior.interaction is not None:
                self.model.prior.interaction.energy(masks)
        latent = list(trace.trace.stochastic_nodes)
        if latent:
            raise InputError(
                f"prior={type(self.model.prior).__name__}: has latent variables of its own, {latent[:3]}, which the "
                "reference sampler does not draw; fix them, as with an IsingSpikeSlab"
            )

    def _components(self, site: WeightSite) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Mean and scale of a weight that is dropped, and of one that is kept."""
        prior, zero = self.model.prior, torch.zeros(site.shape, device=self.model.prior.zero.device)
        if site.name not in self.shapes:
            kept = self._moments(site, prior.weight(site, None))
            return kept, kept
        ones = torch.ones(self.shapes[site.name], device=zero.device)
        fn = prior.weight(site, ones)
        if isinstance(fn, SpikeAndSlab):
            spike = (zero, zero) if fn.spike is None else self._moments(site, fn.spike)
            return spike, self._moments(site, fn.slab)
        return self._moments(site, prior.weight(site, 0 * ones)), self._moments(site, fn)

    def _moments(self, site: WeightSite, fn: Any) -> tuple[Tensor, Tensor]:
        fn = getattr(fn, "base_dist", fn)
        if not isinstance(fn, Gaussian | torch.distributions.Normal):
            raise InputError(
                f"prior: a weight of {site.name} is {type(fn).__name__} given its mask; the reference sampler needs "
                "Gaussian slabs and spikes"
            )
        return fn.mean.expand(site.shape), fn.stddev.expand(site.shape)

    def begin(self, warmup: int) -> None:
        """Prepare the Hamiltonian moves."""
        self.kernel = HMC(potential_fn=self._potential, trajectory_length=TRAJECTORY, adapt_mass_matrix=False)
        self.kernel.initial_params = self.z
        with torch.enable_grad():
            self.kernel.setup(warmup)
        self.warmup = warmup

    def sweep(self) -> None:
        """Draw all masks, then move the weights."""
        self._draw_masks()
        self.kernel.clear_cache()  # the potential has changed with the masks
        # Of random length, as a length of one period of a direction would bring that back to where it was.
        self.kernel.trajectory_length = TRAJECTORY * (0.5 + float(torch.rand(())))
        with torch.enable_grad():
            moved = self.kernel.sample(self.z)
        self.z = {key: value.detach() for key, value in moved.items()}

    def acceptance(self, draws: int) -> float:
        """Share of the moves after warm-up that were accepted."""
        return self.kernel._accept_cnt / draws

    def state(self) -> _State:
        """The state as it is now."""
        weights = self._weights(self.masks, self.z)
        return _State(dict(self.masks), weights, self._log_likelihood(weights))

    def _weights(self, masks: Mapping[str, Tensor], z: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = {}
        for site in self.sites:
            (loc, scale), (kept_loc, kept_scale) = self.parts[site.name]
            kept = kept_loc + kept_scale * z[site.key]
            mask = masks.get(site.name)
            weights[site.name] = kept if mask is None else mask * kept + (1 - mask) * (loc + scale * z[site.key])
        return weights

    def _log_likelihood(self, weights: Mapping[str, Tensor]) -> Tensor:
        return self.model.likelihood.log_prob(self.model.logits(self.train.images, weights), self.train.labels)

    def _potential(self, z: Mapping[str, Tensor]) -> Tensor:
        """Negative log density of z given the masks, up to a constant."""
        fit = self._log_likelihood(self._weights(self.masks, z)).sum() / self.model.temperature
        return 0.5 * sum(value.square().sum() for value in z.values()) - fit

    def _draw_masks(self) -> None:
        """Draw masks a block at a time, in random order, from their joint conditional given all else."""
        if not self.bases or self.fixed:
            return
        sizes = [shape.numel() for shape in self.shapes.values()]
        flat = torch.cat([self.masks[name].flatten() for name in self.shapes])

        def by_site(states: Tensor) -> dict[str, Tensor]:
            parts = states.split(sizes, -1)
            return {
                name: part.view(*states.shape[:-1], *shape)
                for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
            }

        order = torch.randperm(len(flat), device=flat.device)
        for block in order.split(BLOCK):
            bits = torch.arange(2 ** len(block), device=flat.device).unsqueeze(-1)
            values = (bits >> torch.arange(len(block), device=flat.device)) & 1
            states = flat.expand(len(values), -1).clone()
            states[:, block] = values.to(flat.dtype)
            chosen = torch.distributions.Categorical(logits=self._log_joint(by_site(states))).sample()
            flat = states[chosen]
        self.masks = by_site(flat)

    def _log_joint(self, masks: dict[str, Tensor]) -> Tensor:
        """Log density of several states of the masks given z, (states,), up to a constant."""
        log_prior = torch.stack([self.bases[name].log_prob(mask) for name, mask in masks.items()]).sum(0)
        interaction = self.model.prior.interaction
        if interaction is not None:
            states = len(log_prior)
            energy = interaction.energy(masks) if interaction.multilinear else None
            if energy is None or energy.shape != (states,):  # it takes one state at a time
                each = [{name: mask[i] for name, mask in masks.items()} for i in range(states)]
                energy = torch.stack([interaction.energy(one) for one in each])
            log_prior = log_prior + energy
        fit: Callable[[dict[str, Tensor]], Tensor] = torch.func.vmap(
            lambda each: self._log_likelihood(self._weights(each, self.z)).sum()
        )
        return log_prior + fit(masks) / self.model.temperature
