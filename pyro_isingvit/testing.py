"""A conformance suite for your own priors and guides.

In a test module, subclass a suite and define how to build your prior or guide; pytest collects the inherited checks::

    class TestMyPrior(PriorConformance):
        def make_prior(self, sites):
            return MyPrior(sites)


    class TestMyGuide(GuideConformance):
        def make_guide(self, model):
            return MyGuide(model)
"""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import SkipTest

import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor, nn

from .data import Images
from .draws import seeded
from .guides import Guide, LikelihoodGuided, MeanField
from .inference.config import FitConfig
from .inference.elbo import TraceGraph_ELBO
from .inference.fit import fit
from .inference.pair import check_pair
from .models import IndependentSpikeSlab, IsingSpikeSlab, IsingViT, Prior
from .network import Linear, ViT, ViTConfig, WeightSite, linear
from .posterior import Posterior

TINY = ViTConfig(image_size=(4, 4), patch_size=(2, 2), classes=3, dim=4, depth=2, heads=2, mlp_ratio=2)
"""Configuration of a network of 286 weights, for the checks that run the network."""

ENUMERABLE = ViTConfig(
    image_size=(1, 2), patch_size=(1, 1), classes=2, dim=1, depth=1, heads=1, mlp_ratio=1, classifier_hidden=1
)
"""Configuration of a network of ten weights, few enough to enumerate all states of their masks."""

DRAWS = 4000
"""Number of draws of the masks for a comparison of frequencies."""

SMALLEST_SCALE = 1e-6
"""Standard deviation of draws of a weight, relative to their size, below which they are taken for a point."""

NARROWER, DENSITY_ERROR = 0.8, 0.1
"""Variance of the density that a guide's is compared with, relative to its draws', and error of its integral."""

STANDARD_ERRORS = 5.0
"""Largest error of a frequency, in standard errors; about 1 correct frequency in 10^6 exceeds it."""


class TwoLayers(nn.Module):
    """A network of ten weights without normalisation: three pixels, two hidden units, two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([[2.5, -2.5, 0.3], [0.2, 1.5, -0.2]]))
        self.second = nn.Parameter(torch.tensor([[2.0, 0.8], [-2.0, -0.8]]))

    def weight_sites(self) -> list[WeightSite]:
        return [
            WeightSite("first", (2, 3), ("hidden", "pixel"), ("pixel",), ("hidden",)),
            WeightSite("second", (2, 2), ("class", "hidden"), ("hidden",), ("class",)),
        ]

    def forward(self, images: Tensor, linear: Linear = linear) -> Tensor:
        hidden = torch.tanh(linear("first", None, 2 * images.flatten(1) - 1, self.first, None))
        return linear("second", None, hidden, self.second, None)


class Conformance:
    """The parts that both suites share: a model, a guide, data, and checks of the pair."""

    def make_prior(self, sites: Sequence[WeightSite]) -> Prior:
        """Build the prior; override to test yours."""
        return IsingSpikeSlab(sites, coupling=0.5)

    def make_guide(self, model: IsingViT) -> Guide:
        """Build the guide; override to test yours."""
        return LikelihoodGuided(model) if isinstance(model.prior, IndependentSpikeSlab) else MeanField(model)

    def pair(self, config: ViTConfig = TINY, seed: int = 0) -> tuple[IsingViT, Guide]:
        """Build a new model and guide."""
        with seeded(torch.device("cpu"), seed):
            network = ViT(config)
            model = IsingViT(network, self.make_prior(network.weight_sites()), num_data=60, temperature=0.1)
            return model, self.make_guide(model)

    def data(self) -> Images:
        """Sixty noisy images; those of class k have a bright row k."""
        with seeded(torch.device("cpu"), 0):
            labels = torch.arange(60) % 3
            images = 0.3 * torch.rand(60, 1, 4, 4)
        images[torch.arange(60), 0, labels] += 0.6
        return Images(images, labels, 3)

    def test_model_and_guide_have_the_same_sites(self) -> None:
        _, guide = self.pair()
        data = self.data()
        with seeded(torch.device("cpu"), 0):
            check_pair(guide, data.images, data.labels)

    def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(self) -> None:
        model, guide = self.pair()
        data, loss = self.data(), TraceGraph_ELBO()(model, guide)
        reached: dict[str, bool] = {}
        with seeded(torch.device("cpu"), 0):
            for _ in range(20):  # one draw may miss a parameter
                loss.zero_grad()
                loss(data.images, data.labels).backward()
                for name, parameter in loss.named_parameters():
                    if parameter.requires_grad:
                        gradient = parameter.grad
                        assert gradient is None or gradient.isfinite().all(), f"{name}: gradient is not finite"
                        reached[name] = reached.get(name, False) or (gradient is not None and bool(gradient.any()))
        unreached = [name for name, yes in reached.items() if not yes]
        assert not unreached, f"no gradient in {unreached}"

    def test_temperature_divides_the_likelihood_alone(self) -> None:
        """From T = 1 to T = 1/2, the negative ELBO of the same draws grows by their negative log-likelihood."""
        model, guide = self.pair()
        guide.eval()
        data, losses = self.data(), []
        with torch.no_grad():
            for model.temperature in (1.0, 0.5):
                with seeded(torch.device("cpu"), 1):
                    losses.append(TraceGraph_ELBO().loss(model, guide, data.images, data.labels))
            with seeded(torch.device("cpu"), 1):
                trace = poutine.trace(guide).get_trace(data.images, data.labels)
            with poutine.block():
                logits = poutine.replay(model, trace=trace)(data.images, data.labels)
        expected = F.cross_entropy(logits, data.labels, reduction="sum").item()
        grown = losses[1] - losses[0]
        assert abs(grown - expected) <= 1e-3 * expected + 1e-5 * abs(losses[0]), f"grew by {grown}, not {expected}"

    def test_it_fits_saves_and_loads(self) -> None:
        _, guide = self.pair()
        data = self.data()
        config = FitConfig(steps=40, batch_size=20, learning_rate=1e-2, temperature=0.1, pilot=0.25, device="cpu")
        posterior = fit(guide, data, config=config, progress=False).posterior
        probs = posterior.predict(data.images, draws=3).probs
        assert probs.isfinite().all()
        with tempfile.TemporaryDirectory() as folder:
            posterior.save(Path(folder) / "fit")
            again = Posterior.load(Path(folder) / "fit", self.pair(seed=1)[1])
        torch.testing.assert_close(again.predict(data.images, draws=3).probs, probs)


class PriorConformance(Conformance):
    """Checks of a prior; subclasses implement `make_prior`."""

    def test_shapes(self) -> None:
        model, guide = self.pair()  # a guide refuses masks of the wrong shape
        masks = {name: torch.ones(shape) for name, shape in guide.mask_shapes.items()}
        with guide.hypers_at_median():
            for site in model.sites:
                fn = model.prior.weight(site, masks.get(site.name))
                assert fn.batch_shape == (), f"{site.name}: weight has batch shape {tuple(fn.batch_shape)}"
                assert fn.event_shape == site.shape, f"{site.name}: weight has event shape {tuple(fn.event_shape)}"
            interaction = model.prior.interaction
            energy = None if interaction is None else interaction.energy(masks)
        assert energy is None or energy.shape == ()

    def test_a_dropped_weight_is_smaller(self) -> None:
        model, guide = self.pair()
        with guide.hypers_at_median(), seeded(torch.device("cpu"), 0):
            for site in model.sites:
                if site.name in guide.mask_shapes:
                    kept, dropped = (
                        model.prior.weight(site, fill(guide.mask_shapes[site.name])).sample((50,)).square().mean()
                        for fill in (torch.ones, torch.zeros)
                    )
                    assert dropped < kept, f"{site.name}: mask 0 gives larger weights than mask 1"

    def test_interaction_is_linear_in_each_mask(self) -> None:
        model, guide = self.pair(ENUMERABLE)
        names = list(guide.mask_shapes)
        with seeded(torch.device("cpu"), 0), guide.hypers_at_median():
            masks = {n: torch.bernoulli(torch.full(guide.mask_shapes[n], 0.5)).requires_grad_() for n in names}
            interaction = model.prior.interaction
            energy = None if interaction is None else interaction.energy(masks)
            if interaction is None or energy is None or not energy.requires_grad or not interaction.multilinear:
                raise SkipTest("no interaction, or none that claims to be linear")
            slopes = torch.autograd.grad(energy, list(masks.values()), materialize_grads=True)
            for name, slope in zip(names, slopes, strict=True):
                for i in range(slope.numel()):
                    ends = []
                    for value in (0.0, 1.0):
                        changed = {n: m.detach().clone() for n, m in masks.items()}
                        changed[name].view(-1)[i] = value
                        ends.append(interaction.energy(changed).item())
                    assert abs(ends[1] - ends[0] - slope.view(-1)[i].item()) < 1e-3, f"{name}: not linear"

    def test_draws_of_masks_follow_the_factor(self) -> None:
        """The frequencies of `draw_masks` agree with base measure times factor, summed over all states."""
        model, guide = self.pair(ENUMERABLE)
        if not guide.mask_shapes or guide.mask_hypers:
            raise SkipTest("no masks, or their prior is itself unknown")
        prior, sites = model.prior, {site.name: site for site in model.sites}
        with torch.no_grad(), seeded(torch.device("cpu"), 0):
            try:
                drawn = prior.draw_masks(DRAWS)
            except NotImplementedError as refusal:
                raise SkipTest(str(refusal)) from None
            states, logs = all_masks(guide), []
            for masks in states:
                total = torch.zeros(()) if prior.interaction is None else prior.interaction.energy(masks)
                for name, mask in masks.items():
                    base = prior.mask(sites[name])
                    assert base is not None
                    total = total + base.log_prob(mask)
                logs.append(total)
            weights = torch.stack(logs).softmax(0)
        for name, shape in guide.mask_shapes.items():
            exact = torch.einsum("s,s...->...", weights, torch.stack([masks[name] for masks in states]))
            assert drawn[name].shape == (DRAWS, *shape)
            error = STANDARD_ERRORS * (exact * (1 - exact) / DRAWS).sqrt() + 1e-3
            assert ((drawn[name].mean(0) - exact).abs() <= error).all(), f"{name}: exactly {exact}"


class GuideConformance(Conformance):
    """Checks of a guide; subclasses implement `make_guide`.

    Attributes:
        marginal_error: allowed error of the inclusion probabilities; raise it for guides that estimate them from draws.
    """

    marginal_error = 1e-3

    def test_inclusion_probabilities_are_the_frequencies_of_its_draws(self) -> None:
        _, guide = self.pair(ENUMERABLE)
        _spread(guide)
        if not guide.mask_shapes:
            raise SkipTest("no masks")
        probs = guide.inclusion_probabilities()
        with seeded(torch.device("cpu"), 0), torch.no_grad(), poutine.block():
            draws = [guide.draw_masks() for _ in range(DRAWS)]
        for name, p in probs.items():
            frequency = torch.stack([draw[name] for draw in draws]).mean(0)
            allowed = STANDARD_ERRORS * (p * (1 - p) / DRAWS).sqrt() + self.marginal_error
            assert ((frequency - p).abs() < allowed).all(), f"{name}: drawn {frequency}, said {p}"

    def test_a_dropped_weight_is_the_spike(self) -> None:
        """Zero where the prior's spike is; else smaller than one that is kept."""
        _, guide = self.pair()
        if not guide.mask_shapes:
            raise SkipTest("no masks")
        kept, dropped = (self._weights(guide, fill) for fill in (torch.ones, torch.zeros))
        prior = guide.model.prior
        for name in guide.mask_shapes:
            with guide.hypers_at_median():
                exact = isinstance(prior, IndependentSpikeSlab) and prior.spike(prior.sites[name]) is None
            size = dropped[name][1].square().mean()
            assert not (exact and size), f"{name}: a dropped weight is drawn, where the prior has it at zero"
            assert size < kept[name][1].square().mean(), f"{name}: a dropped weight is as large as one that is kept"

    def test_mean_weights_are_the_means_of_its_draws(self) -> None:
        _, guide = self.pair()
        _spread(guide)
        guide.eval()
        for fill in (torch.ones, torch.zeros):
            means = guide.mean_weights({name: fill(shape) for name, shape in guide.mask_shapes.items()})
            for name, (_, drawn) in self._weights(guide, fill).items():
                allowed = STANDARD_ERRORS * drawn.std(0) / len(drawn) ** 0.5 + 1e-6
                assert ((drawn.mean(0) - means[name]).abs() <= allowed).all(), f"{name}: mean_weights is not their mean"

    def test_density_of_its_weights_is_that_of_its_draws(self) -> None:
        r"""The mean of r / q over draws from q is 1 for any density r: here for the normal with their moments."""
        _, guide = self.pair(ENUMERABLE)
        _spread(guide)
        for name, (fn, drawn) in self._weights(guide, torch.ones).items():
            flat = drawn.flatten(1).double()
            if float(flat.std(0).min()) <= SMALLEST_SCALE * float(flat.abs().max()):
                continue  # a point
            within = NARROWER * flat.T.cov().view(flat.shape[1], -1)
            normal = torch.distributions.MultivariateNormal(flat.mean(0), within)
            log_ratio = normal.log_prob(flat) - fn.log_prob(drawn).double()
            total = float(log_ratio.detach().logsumexp(0).exp()) / len(flat)
            assert abs(total - 1) < DENSITY_ERROR, f"{name}: its density integrates to {1 / total:.3g} where it draws"

    def _weights(self, guide: Guide, fill: Callable[[torch.Size], Tensor]) -> dict[str, tuple[Any, Tensor]]:
        """Distribution of each site's weights given masks that are all alike, and draws from it, (draws, *shape)."""
        found = {}
        guide.eval()
        with seeded(torch.device("cpu"), 0), torch.no_grad(), poutine.block():
            for site in guide.model.sites:
                shape = guide.mask_shapes.get(site.name)
                try:
                    fn = guide.weight(site, None if shape is None else fill(shape))
                except NotImplementedError as refusal:
                    raise SkipTest(str(refusal)) from None
                assert fn.event_shape == site.shape, f"{site.name}: weight has event shape {tuple(fn.event_shape)}"
                found[site.name] = fn, fn.sample((DRAWS,)).detach()
        return found

    def test_density_of_its_masks_sums_to_one(self) -> None:
        _, guide = self.pair(ENUMERABLE)
        _spread(guide)
        if not guide.mask_shapes:
            raise SkipTest("no masks")
        total, first = 0.0, {name: torch.zeros(shape) for name, shape in guide.mask_shapes.items()}
        try:
            for masks in all_masks(guide):
                q = guide.mask_log_prob(masks).exp().item()
                total += q
                first = {name: first[name] + q * masks[name] for name in first}
        except NotImplementedError as error:
            raise SkipTest(str(error)) from None
        assert abs(total - 1) < 1e-4, f"sums to {total}"
        for name, p in guide.inclusion_probabilities().items():
            assert (first[name] - p).abs().max() < self.marginal_error, f"{name}: exactly {first[name]}, said {p}"


def all_masks(guide: Guide) -> list[dict[str, Tensor]]:
    """All states of the masks of a small model, each by site name."""
    shapes = guide.mask_shapes
    states = []
    for bits in itertools.product((0.0, 1.0), repeat=sum(shape.numel() for shape in shapes.values())):
        parts = torch.tensor(bits).split([shape.numel() for shape in shapes.values()])
        states.append({name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)})
    return states


def _spread(guide: Guide) -> None:
    """Move the parameters of a guide away from their initial values, so that its masks are uncertain."""
    with seeded(torch.device("cpu"), 5), torch.no_grad():
        for name, parameter in guide.named_parameters():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                continue  # a parameter of a lazy module that has not run
            if not name.startswith("estimator."):
                parameter.add_(0.7 * torch.randn_like(parameter))
            if name.startswith("logit."):
                parameter.sub_(parameter.mean().round())
