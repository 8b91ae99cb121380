"""Approximate posteriors of other libraries and papers, over all parameters of a plain network, for studies.

References:
    Shen et al., "Variational Learning is Effective for Large Deep Networks", ICML 2024 (IVON).
    Kristiadi, Hein & Hennig, "Being Bayesian, Even Just a Bit, Fixes Overconfidence in ReLU Networks", ICML 2020
        (last-layer Laplace).
    Maddox et al., "A Simple Baseline for Bayesian Uncertainty in Deep Learning", NeurIPS 2019 (SWAG).
"""

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from ..data import Data, Images
from ..data.batches import Batches
from ..data.streams import Labelled, in_memory
from ..draws import BATCH, draw_seed, seeded
from ..errors import InputError
from ..inference.precision import autocast_of
from ..network import ViT
from ..network.stem import as_floats
from .fits import build_network, fit_deterministic
from .recipes import RunConfig

IVON_SETTINGS = ((0.3, 10.0), (1.0, 100.0), (1.0, 1000.0), (0.3, 1000.0))
"""Learning rate of IVON, and its effective sample size as a multiple of the number of training images."""

IVON_CURVATURE = 1.0, 0.9999
"""Initial curvature of IVON, and the share of it that a step keeps, for fits of some thousands of steps."""

SWAG_RATES = 0.05, 0.2, 0.5
"""Constant learning rate of SWAG, as a share of the recipe's peak."""

SWAG_SHARE = 0.25
"""Steps of SWAG after the training of the network, as a share of that."""

SWAG_RANK = 20
"""Number of deviations from the mean that SWAG keeps."""


@dataclass(frozen=True)
class NetworkDraw:
    """A draw of some parameters of a network, by name; the others are the network's own."""

    network: nn.Module
    parameters: Mapping[str, Tensor]

    def logits(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of a batch of images."""
        with torch.no_grad():
            return torch.func.functional_call(self.network, dict(self.parameters), (images,))


@dataclass(frozen=True)
class Candidate:
    """An approximate posterior with one of the settings of its method.

    Attributes:
        setting: the setting, in words.
        draw: makes the draw of a seed.
        seconds: seconds of training.
        device: the device of the network.
    """

    setting: str
    draw: Callable[[], NetworkDraw]
    seconds: float
    device: torch.device

    def draws(self, draws: int, seed: int) -> Iterator[NetworkDraw]:
        """Independent draws; the t-th depends on ``seed`` and t alone."""
        for t in range(draws):
            with seeded(self.device, draw_seed(seed, t)):
                draw = self.draw()
            yield draw


Opponent = Callable[[RunConfig, Data, bool], Iterator[Candidate]]
"""A method that trains with each of its settings, as a run is configured; the validation images choose."""


def ivon(config: RunConfig, data: Data, progress: bool = True) -> Iterator[Candidate]:
    """Gaussian weights with a diagonal covariance, by the natural-gradient optimiser IVON of `ivon-opt`."""
    _check_installed("ivon", "ivon", "ivon-opt")
    from ivon import IVON

    curvature, kept = IVON_CURVATURE
    device = config.fit.torch_device()
    for rate, share in IVON_SETTINGS:
        network, start = build_network(config).to(device), time.perf_counter()
        ess = share * len(data.train)
        optimizer = IVON(network.parameters(), lr=rate, ess=ess, hess_init=curvature, beta2=kept)
        _train(network, optimizer, config, data.train, config.fit.steps, config.fit.rate_at, optimizer.sampled_params)
        draw, seconds = _ivon_draw(network, optimizer), time.perf_counter() - start
        yield Candidate(f"learning rate {rate:g}, {share:g} N", draw, seconds, device)


def _ivon_draw(network: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], NetworkDraw]:
    def draw() -> NetworkDraw:
        with optimizer.sampled_params(train=False):  # type: ignore[attr-defined]
            return NetworkDraw(network, {name: p.detach().clone() for name, p in network.named_parameters()})

    return draw


def laplace(config: RunConfig, data: Data, progress: bool = True) -> Iterator[Candidate]:
    """A Gaussian about the last layer of the deterministic network, with its full Hessian, by `laplace-torch`.

    The precision of the prior is that of least NLL of the validation images, of 100 on a grid.
    """
    _check_installed("laplace", "laplace", "laplace-torch")
    if config.module is not None:
        raise InputError(f"laplace: knows the last layer of a ViT alone, and the network is {config.module.name!r}")
    from laplace import Laplace

    result, start = fit_deterministic(config, data, progress), time.perf_counter()
    network = result.posterior.network()
    assert isinstance(network, ViT)
    head = network.classifier
    classes, hidden = head.out.shape
    train, validation = (_inputs_of_last_layer(network, part) for part in (in_memory(data.train), data.validation))
    with seeded(head.out.device, config.fit.seed), warnings.catch_warnings():
        last = nn.Linear(hidden, classes, device=head.out.device)
        last.load_state_dict({"weight": head.out.detach(), "bias": head.out_bias.detach()})
        posterior = Laplace(last, "classification", subset_of_weights="all", hessian_structure="full")
        posterior.fit(train)
        warnings.filterwarnings("ignore", "By default `link_approx` is `probit`")  # said whatever one sets
        posterior.optimize_prior_precision("glm", method="gridsearch", val_loader=validation, link_approx="probit")

    def draw() -> NetworkDraw:
        weight, bias = posterior.sample(1)[0].split([last.weight.numel(), last.bias.numel()])
        return NetworkDraw(network, {"classifier.out": weight.view_as(last.weight), "classifier.out_bias": bias})

    seconds = result.seconds + time.perf_counter() - start
    yield Candidate(f"prior precision {float(posterior.prior_precision):.3g}", draw, seconds, config.fit.torch_device())


def _inputs_of_last_layer(network: ViT, images: Images) -> torch.utils.data.DataLoader[tuple[Tensor, ...]]:
    seen: list[Tensor] = []

    def linear(site: str, block: int | None, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if site == "classifier.out":
            seen.append(x)
        return nn.functional.linear(x, weight, bias)

    with torch.no_grad():
        for batch in images.images.split(BATCH):
            network(batch, linear=linear)
    pairs = torch.utils.data.TensorDataset(torch.cat(seen), images.labels)
    return torch.utils.data.DataLoader(pairs, batch_size=BATCH)


def swag(config: RunConfig, data: Data, progress: bool = True) -> Iterator[Candidate]:
    """A Gaussian with the moments of the deterministic network's parameters as Adam goes on at a constant rate.

    The paper goes on with SGD, at which a Transformer that was trained with Adam hardly moves. Mean and second moments
    are those of the parameters after each pass through the images; the covariance is half diagonal, half of low rank.
    """
    result = fit_deterministic(config, data, progress)
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in result.posterior.network().modules()):
        raise InputError("swag: the network has batch normalisation, whose statistics every draw would need anew")
    device = config.fit.torch_device()
    for share in SWAG_RATES:
        network, start = copy.deepcopy(result.posterior.network()), time.perf_counter()
        optimizer = torch.optim.Adam(network.parameters(), lr=share * config.fit.learning_rate)
        moments = Moments(network)
        steps, every = max(2, round(SWAG_SHARE * config.fit.steps)), config.fit.steps_per_pass(len(data.train))

        def collect(step: int, moments: "Moments" = moments, every: int = every, steps: int = steps) -> None:
            if (step + 1) % every == 0 or (steps < 2 * every and step >= steps - 2):  # two at the least
                moments.add()

        _train(network, optimizer, config, data.train, steps, lambda step: 1.0, after_step=collect)
        before = result.seconds if share == SWAG_RATES[0] else 0.0  # the network is trained once
        yield Candidate(
            f"learning rate {share:g} of the peak", moments.draw, before + time.perf_counter() - start, device
        )


class Moments:
    """Running moments of a network's parameters, and draws from the Gaussian with them."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.number = network, 0
        self.mean = self.sum_of_squares = torch.zeros_like(self._now())
        self.deviations: list[Tensor] = []

    def _now(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.network.parameters()).detach().double()

    def add(self) -> None:
        """Add the parameters as they are now."""
        now, before, self.number = self._now(), self.mean, self.number + 1
        self.mean = before + (now - before) / self.number
        self.sum_of_squares = self.sum_of_squares + (now - before) * (now - self.mean)
        self.deviations = [*self.deviations, now - self.mean][-SWAG_RANK:]

    def draw(self) -> NetworkDraw:
        """A draw of all parameters."""
        variance = self.sum_of_squares / self.number
        normal = torch.randn(len(self.deviations), device=variance.device, dtype=variance.dtype)
        low_rank = normal @ torch.stack(self.deviations) / max(1, len(self.deviations) - 1) ** 0.5
        vector = (self.mean + (variance.sqrt() * torch.randn_like(variance) + low_rank) / 2**0.5).float()
        named = dict(self.network.named_parameters())
        parts = vector.split([p.numel() for p in named.values()])
        return NetworkDraw(self.network, {n: v.view_as(p) for (n, p), v in zip(named.items(), parts, strict=True)})


def _train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    train: Labelled,
    steps: int,
    rate: Callable[[int], float],
    context: Callable[..., AbstractContextManager[None]] | None = None,
    after_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Train a network for some steps by cross-entropy, with the batches, augmentation and clipping of `fit`."""
    settings, device = config.fit, config.fit.torch_device()
    autocast = autocast_of(settings, device)
    peaks = [group["lr"] for group in optimizer.param_groups]
    network.train()
    with seeded(device, settings.seed):
        batches = Batches(train, settings.batch_size, settings.seed, device)
        for step in range(steps):
            images, labels = next(batches)
            if settings.augment is not None:
                images = settings.augment(as_floats(images))
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate(step)
            with nullcontext() if context is None else context(train=True):
                with autocast():
                    logits = network(images)
                nn.functional.cross_entropy(logits.float(), labels).backward()
                nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad()
            after_step(step)
    network.eval()


def _check_installed(method: str, module: str, package: str) -> None:
    if find_spec(module) is None:
        raise InputError(f"method {method}: needs {package}; pip install 'pyro-isingvit[opponents]'")
