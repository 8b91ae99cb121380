"""Gains from held-out images against gradients of single images, and brute force."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from pyro_isingvit import FitConfig, Images, InputError, LikelihoodGuided, Regression, WeightSite, fit
from pyro_isingvit.guides.estimators import HeldOut
from pyro_isingvit.models import IndependentSpikeSlab, IsingViT
from pyro_isingvit.models.ising_vit import Pass

from .test_estimators import IMAGES, toy  # noqa: F401, a fixture


def held_out_guide(network, data, other, logit=30.0, **options):
    model = IsingViT(network, IndependentSpikeSlab(network.weight_sites()), num_data=len(data))
    estimator = partial(HeldOut, held_out=(other.images, other.labels), **options)
    guide = LikelihoodGuided(model, initial_logit=logit, initial_scale=1e-6, estimator=estimator)
    seen = Pass(data.images, data.labels, {}, 1.0, len(data))
    with torch.no_grad():
        for _ in range(2000):
            guide.estimator.prepare(guide, seen)
    return model, guide


def test_held_out_gains_are_those_of_held_out_gradients(toy):  # noqa: F811
    """Slope and curvature against the gradients of single images, with all weights kept."""
    network, other = toy
    data = Images(other.images[:30], other.labels[:30], 2)
    model, guide = held_out_guide(network, data, other, decay=0.999, batch=5)
    gradients = {site.name: [] for site in model.sites}
    for i in range(IMAGES):
        weights = {site.name: guide.loc[site.key].detach().clone().requires_grad_() for site in model.sites}
        loss = F.cross_entropy(model.logits(other.images[i : i + 1], weights), other.labels[i : i + 1])
        for name, gradient in zip(weights, torch.autograd.grad(-loss, list(weights.values())), strict=True):
            gradients[name].append(gradient)
    for site in model.sites:
        each, mean = torch.stack(gradients[site.name]), guide.loc[site.key].detach()
        slope, curvature = 30 * each.mean(0), 30 * each.var(0, correction=0)
        expected = mean * slope + 0.5 * mean.square() * curvature
        found = guide.estimator.pull(site, guide.slab(site))
        # 2,000 batches with decay .999 count as some 1,700: 2.5 % of a slope's spread, 4 % of a curvature
        spread = mean.abs() * 30 * (each.var(0) / 5).sqrt() / 40 + 0.05 * mean.square() * curvature
        assert ((found - expected).abs() < 4 * spread + 1e-4).all()


@pytest.mark.parametrize("logit", [4.0, 0.0, -4.0])
def test_held_out_gains_are_the_same_whatever_the_masks_are(logit):
    """Of a linear network, whose weights do not interact: the gain of keeping one, by brute force."""

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([[0.2, -0.15, 0.1]]))

        def weight_sites(self):
            return [WeightSite("weight", (1, 3), ("out", "pixel"), ("pixel",), ("out",))]

        def forward(self, images):
            return images.flatten(1) @ self.weight.mT

    images = torch.eye(3).repeat(1000, 1).view(3000, 1, 1, 3)
    labels = images.flatten(1) @ torch.tensor([0.2, -0.03, 0.0]) + 0.5 * torch.randn(3000)
    other, network = Images(images, labels, 1), Linear()
    model = IsingViT(
        network, IndependentSpikeSlab(network.weight_sites()), 3000, likelihood=Regression(initial_scale=0.5)
    )
    estimator = partial(HeldOut, held_out=(other.images, other.labels), decay=0.999)
    guide = LikelihoodGuided(model, initial_logit=logit, initial_scale=0.03, estimator=estimator)
    with torch.no_grad():
        for _ in range(3000):
            guide.estimator.prepare(guide, Pass(images, other.labels, {}, 1.0, 3000))
        found = guide.estimator.pull(model.sites[0], guide.slab(model.sites[0])).squeeze(0)
        # log-likelihood of 3,000 images, in expectation over a weight that is kept, less that with it dropped
        mean, own = network.weight[0], other.labels.view(1000, 3)
        gain = (own.square() - (own - mean).square() - 0.03**2).sum(0) / (2 * 0.5**2)
    assert gain[0] > 50
    assert gain[2] < -10
    # The true curvature is 4,000. That from squared gradients is as much higher as the residuals of the draws are
    # larger, by up to .2 ** 2 / .5 ** 2 = 16 %; slopes of 1,700 batches are known to 2.5 % of the spread of one, 1,100.
    assert ((found - gain).abs() < 0.16 * 4000 * mean.square() / 2 + 4 * 0.025 * 1100 * mean.abs() + 2).all()


def test_a_weight_that_fits_noise_earns_nothing(toy):  # noqa: F811
    """A pixel is random in held-out images, but in training it gives the label away."""
    network, other = toy
    labels = other.labels
    told = other.images.clone()
    told[:, 0, 0, 2] = labels.float()
    with torch.no_grad():
        network.first.copy_(torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]))
        network.second.copy_(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]))
    data, generator = Images(told, labels, 2), torch.Generator().manual_seed(0)
    fresh = Images(torch.rand(400, 1, 1, 3, generator=generator), torch.arange(400) % 2, 2)
    model, guide = held_out_guide(network, data, fresh)
    site = model.sites[0]
    assert float(guide.estimator.pull(site, guide.slab(site)).detach()[0, 2]) < 0
    model, guide = held_out_guide(network, data, Images(told.repeat(10, 1, 1, 1), labels.repeat(10), 2))
    assert float(guide.estimator.pull(site, guide.slab(site)).detach()[0, 2]) > 0


def test_a_fit_with_held_out_gains(toy):  # noqa: F811
    network, data = toy
    estimator = partial(HeldOut, held_out=(data.images[20:], data.labels[20:]), batch=7)
    model = IsingViT(network, IndependentSpikeSlab(network.weight_sites()))
    guide = LikelihoodGuided(model, estimator=estimator)
    config = FitConfig(steps=60, batch_size=5, pilot=0.2, temperature=0.1, device="cpu")
    posterior = fit(guide, data[torch.arange(20)], config=config, progress=False).posterior
    assert posterior.guide.estimator.settings() == {"decay": 0.98, "batch": 7, "held_out": "20 images"}
    probs = torch.cat([p.flatten() for p in posterior.inclusion_probabilities().values()])
    assert probs.min() < probs.max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": (torch.rand(0, 1, 1, 3), torch.zeros(0))}, r"held_out: images of shape \(0, 1, 1, 3\)"),
        ({"held_out": (torch.rand(4, 1, 1, 3), torch.zeros(3))}, r"labels of shape \(3,\); give one label for each"),
        ({"held_out": (torch.rand(4, 1, 1, 3), torch.zeros(4)), "batch": 0}, "batch=0"),
        ({"held_out": torch.rand(4, 1, 1, 3)}, r"held_out=Tensor: give a pair of tensors"),
    ],
)
def test_wrong_held_out_images_are_refused(toy, options, message):  # noqa: F811
    model = IsingViT(toy[0], IndependentSpikeSlab(toy[0].weight_sites()))
    with pytest.raises(InputError, match=message):
        HeldOut(model, **options)
