r"""Estimators of the likelihood's pull on a mask, :math:`L_+ - L_-`: what the log-likelihood of all data gains
if a weight is kept rather than dropped.

To second order about a stationary point, dropping a weight of mean m costs half of m squared times the curvature
(Optimal Brain Damage), and keeping it costs half of its posterior variance times the curvature: its uncertainty hurts
too. Without the second, weights that fit noise look worth keeping, and the expected false discovery rate is too low.
The first-order term vanishes there, and its noise would drown the second. `ESTIMATORS` lists them all.

References:
    LeCun, Denker & Solla, "Optimal Brain Damage", NeurIPS 1989.
    LeCun, Bottou, Orr & Muller, "Efficient BackProp", 1998, section 9.
    Dong, Mnih & Tucker, "DisARM: An Antithetic Gradient Estimator for Binary Latent Variables", NeurIPS 2020.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from .errors import InputError
from .network import Linear, WeightSite
from .settings import Described

if TYPE_CHECKING:
    from .guides import LikelihoodGuided
    from .models.ising_vit import IsingViT, Pass


class SquaredGradient(Described, nn.Module):
    r"""Curvature of the log-likelihood from squared minibatch gradients; the base of all other estimators.

    With :math:`\bar g` the gradient of the mean log-likelihood of a batch of ``B`` out of ``N`` images,
    :math:`F = N B\, \mathrm{E}[\bar g^2]` is the diagonal of the empirical Fisher information where the
    mean gradient is zero. It costs no extra pass. All averages are exponential, with the start corrected for.

    Args:
        model: whose weights are followed.
        decay: of the averages, a batch.
    """

    def __init__(self, model: "IsingViT", decay: float = 0.98) -> None:
        super().__init__()
        self.sites, self.decay, self._device = list(model.sites), decay, model.prior.zero.device
        self.squares, self.squares_weight = self._averages(self.sites), self._weight()

    def watch(self, weights: Mapping[str, Tensor]) -> Linear | None:
        """Before the network's forward pass in training, with the weights as they enter it: what is to apply its linear
        layers; None for the usual."""
        return None

    def update(self, guide: "LikelihoodGuided", seen: "Pass") -> None:
        """After each backward pass of training. ``grad`` of ``seen.weights`` is that of the loss, in nats."""
        gradients = [_gradient(seen, site) for site in self.sites]
        # The loss is N / T times the mean loss of the batch, so N * B * mean ** 2 is its square times this:
        scale = seen.temperature**2 * len(seen.images) / seen.num_data
        self._take_in(self.squares, self.squares_weight, torch._foreach_mul(gradients, gradients), scale)

    def prepare(self, guide: "LikelihoodGuided", seen: "Pass") -> None:
        """Before each update of the masks."""

    def curvature(self, site: WeightSite) -> Tensor:
        """F, of the log-likelihood of all data in each weight, shape ``site.shape``."""
        return self._mean(self.squares, self.squares_weight, site)

    def pull(self, site: WeightSite, slab: Distribution) -> Tensor:
        """``L+ - L-`` of each weight, shape ``site.shape``, given its distribution where it is in."""
        return 0.5 * _spared(slab) * self.curvature(site)

    def _averages(self, sites: list[WeightSite]) -> nn.ParameterDict:
        return nn.ParameterDict(
            {s.key: nn.Parameter(torch.zeros(s.shape, device=self._device), requires_grad=False) for s in sites}
        )

    def _weight(self) -> nn.Parameter:
        """Total weight of what an average has taken in, below 1; a batch counts ``1 - decay``."""
        return nn.Parameter(torch.zeros((), dtype=torch.float64, device=self._device), requires_grad=False)

    def _take_in(self, averages: nn.ParameterDict, weight: nn.Parameter, news: Any, scale: float = 1.0) -> None:
        each = [averages[site.key] for site in self.sites if site.key in averages]  # a ParameterDict sorts its keys
        torch._foreach_mul_(each, self.decay)
        torch._foreach_add_(each, news, alpha=(1 - self.decay) * scale)
        weight.mul_(self.decay).add_(1 - self.decay)

    def _mean(self, averages: nn.ParameterDict, weight: nn.Parameter, site: WeightSite) -> Tensor:
        average = averages[site.key]
        return average / weight.clamp_min(1 - self.decay).to(average.dtype)


class LevenbergMarquardt(SquaredGradient):
    r"""Curvature from squared back-propagated signals times squared inputs, as in the published method.

    For a weight from input j to unit i, :math:`F_{ij} = N\,\mathrm{E}[\sum_t \delta_{ti}^2 x_{tj}^2]` over
    images and their tokens t: the Gauss-Newton diagonal without terms between tokens. It is captured in the
    ordinary backward pass, by a `Linear` of its own.
    """

    def __init__(self, model: "IsingViT", decay: float = 0.98) -> None:
        super().__init__(model, decay)
        self._caught: dict[str, Tensor] = {}
        self._met: set[str] = set()

    def watch(self, weights: Mapping[str, Tensor]) -> Linear | None:
        self._caught = {name: torch.zeros_like(weight) for name, weight in weights.items()}

        def linear(site: str, layer: int | None, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            self._met.add(site)
            caught = self._caught[site] if layer is None else self._caught[site][layer]
            return _CatchingLinear.apply(x, weight, bias, caught.view(weight.shape))

        return linear

    def update(self, guide: "LikelihoodGuided", seen: "Pass") -> None:
        scale = seen.temperature**2 * len(seen.images) / seen.num_data
        unmet = [site.name for site in self.sites if site.name not in self._met]
        if unmet:
            raise InputError(f"levenberg_marquardt: the network does not apply {unmet} by linear=; use another")
        caught = [self._caught[site.name] for site in self.sites]
        self._take_in(self.squares, self.squares_weight, caught, scale)


class HessianDiagonal(SquaredGradient):
    """The exact diagonal of the Hessian on a batch, one product with the Hessian for every weight.

    For small networks and for comparison: thousands of passes. `curvature` is its positive part.

    Args:
        model, decay: see `SquaredGradient`; the average runs over evaluations.
        every: updates of the masks from one evaluation to the next.
        chunk: weights at a time.
    """

    def __init__(self, model: "IsingViT", decay: float = 0.5, every: int = 20, chunk: int = 128) -> None:
        super().__init__(model, decay)
        self.every, self.chunk, self._calls = every, chunk, 0

    def update(self, guide: "LikelihoodGuided", seen: "Pass") -> None:
        """Nothing: all is done in `prepare`."""

    def prepare(self, guide: "LikelihoodGuided", seen: "Pass") -> None:
        if not self.squares_weight:  # none yet, or a training begins anew
            self._calls = 0
        if self._calls % self.every == 0:
            scale = seen.num_data / len(seen.images)
            diagonal = hessian_diagonal(guide.model, seen, self.chunk)
            self._take_in(self.squares, self.squares_weight, [diagonal[site.name] for site in self.sites], scale)
        self._calls += 1

    def curvature(self, site: WeightSite) -> Tensor:
        return super().curvature(site).clamp_min(0)

    def pull(self, site: WeightSite, slab: Distribution) -> Tensor:
        return 0.5 * _spared(slab) * self._mean(self.squares, self.squares_weight, site)


class PairedDraws(SquaredGradient):
    """Last layer: mean difference of the log-likelihood between each weight kept and dropped, over draws.

    Each pair shares all other masks and weights (common random numbers). All other layers: squared gradients.

    Args:
        model, decay: see `SquaredGradient`; the last site has to be a linear layer to the logits.
        draws: pairs for each weight at each update of the masks.
    """

    def __init__(self, model: "IsingViT", decay: float = 0.98, draws: int = 128) -> None:
        super().__init__(model, decay)
        self.draws, self.last = draws, self.sites[-1]
        self.pairs, self.pairs_weight = self._averages([self.last]), self._weight()

    def prepare(self, guide: "LikelihoodGuided", seen: "Pass") -> None:
        model, name, scale = guide.model, self.last.name, seen.num_data / len(seen.images)
        assert seen.labels is not None
        total = torch.zeros(self.last.shape, device=seen.images.device)
        for _ in range(self.draws):
            masks, slabs = guide.sample_parts()
            weights = {n: slab * masks[n] for n, slab in slabs.items()}
            inputs: list[Tensor] = []

            def linear(
                site: str, layer: int | None, x: Tensor, weight: Tensor, bias: Tensor | None, inputs: Any = inputs
            ) -> Tensor:
                if site == self.last.name:
                    inputs.append(x)
                return F.linear(x, weight, bias)

            logits = model.logits(seen.images, weights, linear)
            if len(inputs) != 1:
                raise InputError(f"paired_draws: the last site, {name!r}, is not one linear layer to the logits")
            total += keep_minus_drop(logits, inputs[0], slabs[name], weights[name], seen.labels)
        self._take_in(self.pairs, self.pairs_weight, [total / self.draws], scale)

    def pull(self, site: WeightSite, slab: Distribution) -> Tensor:
        if site.name == self.last.name:
            return self._mean(self.pairs, self.pairs_weight, site)
        return super().pull(site, slab)


class StraightThrough(SquaredGradient):
    """First-order: weight times gradient. For comparison: its noise makes masks collapse."""

    def __init__(self, model: "IsingViT", decay: float = 0.98) -> None:
        super().__init__(model, decay)
        self.slopes, self.slopes_weight = self._averages(self.sites), self._weight()

    def update(self, guide: "LikelihoodGuided", seen: "Pass") -> None:
        super().update(guide, seen)
        slopes = [guide.loc[site.key] * _gradient(seen, site) for site in self.sites]
        self._take_in(self.slopes, self.slopes_weight, slopes, -seen.temperature)

    def pull(self, site: WeightSite, slab: Distribution) -> Tensor:
        return self._mean(self.slopes, self.slopes_weight, site)


class NoPull(SquaredGradient):
    """The likelihood is not asked: masks follow prior and weights alone."""

    def pull(self, site: WeightSite, slab: Distribution) -> Tensor:
        return torch.zeros_like(slab.mean)


class DisARM(SquaredGradient):
    """Unbiased, from an antithetic pair of draws of all masks at once, over the same slabs.

    Two extra passes at each batch. Its variance grows with the number of masks.
    """

    def __init__(self, model: "IsingViT", decay: float = 0.98) -> None:
        super().__init__(model, decay)
        self.scores, self.scores_weight = self._averages(self.sites), self._weight()

    def update(self, guide: "LikelihoodGuided", seen: "Pass") -> None:
        super().update(guide, seen)
        model, scale = guide.model, seen.num_data / len(seen.images)
        assert seen.labels is not None
        _, slabs = guide.sample_parts()
        logits = {site.name: guide.logit[site.key] for site in self.sites}
        uniforms = {name: torch.rand_like(logit) for name, logit in logits.items()}
        pair = [
            {name: (flip(u) < logits[name].sigmoid()).to(u.dtype) for name, u in uniforms.items()}
            for flip in (lambda u: u, lambda u: 1 - u)
        ]
        log_likelihoods = []
        for masks in pair:
            scores = model.logits(seen.images, {name: slab * masks[name] for name, slab in slabs.items()})
            log_likelihoods.append(-F.cross_entropy(scores.float(), seen.labels, reduction="sum"))
        difference = 0.5 * (log_likelihoods[0] - log_likelihoods[1])
        news = []
        for site in self.sites:
            logit, (first, second) = logits[site.name], (masks[site.name] for masks in pair)
            slope = difference * (first - second) * logit.abs().sigmoid()
            share = logit.numel() / site.numel  # of a mask that several weights have in common
            news.append((slope * share / (logit.sigmoid() * (-logit).sigmoid())).expand(site.shape))
        self._take_in(self.scores, self.scores_weight, news, scale)

    def pull(self, site: WeightSite, slab: Distribution) -> Tensor:
        return self._mean(self.scores, self.scores_weight, site)


def _spared(slab: Distribution) -> Tensor:
    return slab.mean.square() - slab.variance


ESTIMATORS: dict[str, Callable[..., SquaredGradient]] = {
    "squared_gradient": SquaredGradient,
    "levenberg_marquardt": LevenbergMarquardt,
    "hessian_diagonal": HessianDiagonal,
    "paired_draws": PairedDraws,
    "straight_through": StraightThrough,
    "disarm": DisARM,
    "none": NoPull,
}
"""All estimators by name; each is called with the model and options."""


def hessian_diagonal(model: "IsingViT", seen: "Pass", chunk: int = 128) -> dict[str, Tensor]:
    """The exact diagonal of the Hessian of the negative log-likelihood of a batch, in every weight, by site name."""
    assert seen.labels is not None
    labels = seen.labels
    weights = {name: weight.detach() for name, weight in seen.weights.items()}

    def loss(of: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model.logits(seen.images, of).float(), labels, reduction="sum")

    result = {}
    for name, weight in weights.items():
        slope = torch.func.grad(lambda w, name=name: loss(weights | {name: w}))
        product = torch.func.vjp(slope, weight)[1]  # the Hessian is symmetric

        def entry(unit: Tensor, product: Any = product, weight: Tensor = weight) -> Tensor:
            return (product(unit.view_as(weight))[0].flatten() * unit).sum()

        rows = []
        for indices in torch.arange(weight.numel(), device=weight.device).split(chunk):
            units = F.one_hot(indices, weight.numel()).to(weight.dtype)
            rows.append(torch.func.vmap(entry)(units))
        result[name] = torch.cat(rows).view_as(weight)
    return result


def keep_minus_drop(logits: Tensor, inputs: Tensor, kept: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Log-likelihood of a batch with each weight of the last layer kept, minus with it dropped.

    Args:
        logits: (n, classes), computed with ``weight``.
        inputs: (n, units), of the last layer.
        kept: (classes, units), each weight's value if it is in.
        weight: (classes, units), its value in this draw: ``kept`` or 0.
        labels: (n,).

    Returns:
        (classes, units).
    """
    classes = logits.shape[-1]
    own = F.one_hot(labels, classes).bool().unsqueeze(-1)
    others = (
        logits.unsqueeze(1)
        .expand(-1, classes, -1)
        .masked_fill(torch.eye(classes, dtype=torch.bool, device=logits.device), -torch.inf)
    )
    rest = others.logsumexp(-1, keepdim=True)  # of all other classes
    target = logits.gather(-1, labels.unsqueeze(-1)).unsqueeze(-1)

    def log_likelihood(value: Tensor) -> Tensor:
        changed = logits.unsqueeze(-1) + (value - weight) * inputs.unsqueeze(1)
        return torch.where(own, changed, target) - torch.logaddexp(rest, changed)

    return (log_likelihood(kept) - log_likelihood(torch.zeros_like(kept))).sum(0)


class _CatchingLinear(torch.autograd.Function):
    """`linear` whose backward pass adds squared signals times squared inputs to ``into``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, into: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased, ctx.into = bias is not None, into
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        signal, x = signal.to(weight.dtype), x.to(weight.dtype)  # of a pass in lower precision
        rows, inputs = signal.flatten(0, -2), x.flatten(0, -2)
        ctx.into.add_(rows.square().mT @ inputs.square())
        return signal @ weight, rows.mT @ inputs, rows.sum(0) if ctx.biased else None, None


def _gradient(seen: "Pass", site: WeightSite) -> Tensor:
    gradient = seen.weights[site.name].grad
    assert gradient is not None
    return gradient
