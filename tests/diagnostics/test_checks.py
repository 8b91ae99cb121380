"""Predictive checks: uniform p-values under the model, planted misfits; leave-one-out against exact refits."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest
from torch import Tensor, nn

from pyro_isingvit import (
    FitConfig,
    Images,
    IndependentSpikeSlab,
    InputError,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    MeanField,
    Posterior,
    ViT,
    WeightSite,
    fit,
    split,
)
from pyro_isingvit.data import Data, planted_network
from pyro_isingvit.diagnostics.checks import (
    leave_one_out,
    posterior_predictive_check,
    predictive_check,
    prior_predictive_check,
)
from pyro_isingvit.diagnostics.label_statistics import STATISTICS
from pyro_isingvit.draws import draw_labels
from pyro_isingvit.testing import TINY


@pytest.fixture
def result(tiny_model):
    """A guide that is far from sure; its own draws stand for the truth. Every class is possible for every image."""
    guide = LikelihoodGuided(tiny_model, initial_logit=1.0, initial_scale=0.1)
    return Posterior((guide,))


def test_statistics_by_hand():
    labels = torch.tensor([0, 0, 1, 2])
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    found = {name: statistic(labels, probs).tolist() for name, statistic in STATISTICS["classes"].items()}
    assert found["class frequency"] == [0.5, 0.25, 0.25]
    assert found["accuracy"] == 0.75
    assert found["nll"] == pytest.approx(-math.log(0.5 * 0.2 * 0.8 * 0.4) / 4)
    assert found["class error"] == [0.5, 0, 0]


def test_p_values_are_uniform_if_the_labels_come_from_the_model(result):
    """200 data sets, the truth of each a draw of the guide; replications from a pool of 2,800 other draws."""
    images = torch.rand(100, 1, 4, 4)
    each = torch.stack([draw.logits(images).log_softmax(-1) for draw in result.draws(3000, seed=5)])
    generator = torch.Generator().manual_seed(1)
    labels = torch.stack([draw_labels(log_probs, generator) for log_probs in each])
    probs = each.exp().mean(0)
    p_values = {"class frequency": [], "accuracy": [], "nll": []}
    for i in range(200):
        table = predictive_check(labels[i], labels[torch.randint(200, 3000, (300,), generator=generator)], probs)
        for name in p_values:
            p_values[name].append(table.loc[table["statistic"] == name, "p_value"].iloc[0])
    for name, values in p_values.items():
        assert kstest(values, "uniform").pvalue > 1e-3, name  # all three of them: 3 in 1,000 right ones fail


def test_a_relabelled_class_is_flagged(stripes):
    _, guide = pair()
    config = FitConfig(steps=400, batch_size=20, learning_rate=2e-2, temperature=1e-3, device="cpu")
    result = fit(guide, stripes, config=config, progress=False).posterior
    fine = posterior_predictive_check(result, stripes, draws=200)
    assert not fine["fails"].any()
    labels = stripes.labels.clone()
    labels[labels == 1] = 2
    wrong = posterior_predictive_check(result, Images(stripes.images, labels, 3), draws=200)
    fails = {(row["statistic"], row["class"]) for _, row in wrong[wrong["fails"]].iterrows()}
    assert {("class frequency", 1), ("class frequency", 2), ("class error", 2)} <= fails
    assert "accuracy" in {name for name, _ in fails}


def pair():
    network = ViT(TINY.model_copy(update={"dim": 8}))
    model = IsingViT(network, IsingSpikeSlab(network.weight_sites(), coupling=0.5))
    return model, LikelihoodGuided(model)


def test_users_bring_their_own_statistic(result, stripes):
    table = posterior_predictive_check(
        result, stripes, {"first label": lambda labels, probs: labels[0].float()}, draws=100
    )
    assert table["statistic"].tolist() == ["first label"]
    assert table["class"].isna().all()


def test_prior_checks_know_nothing_of_the_classes(tiny_model, stripes):
    """Equal frequencies are what a symmetric prior expects; one class alone is not, with weights of this scale."""
    table = prior_predictive_check(tiny_model, stripes, draws=100)
    assert set(table["statistic"]) == {"class frequency"}  # others depend on which class is ahead by chance
    assert not table["fails"].any()
    one = Images(stripes.images, torch.zeros_like(stripes.labels), 3)
    table = prior_predictive_check(tiny_model, one, draws=100).query("statistic == 'class frequency'")
    assert table["p_value"].iloc[0] < 0.05
    assert table["p_value"].iloc[1] > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, s: posterior_predictive_check(r, s, draws=20), "draws=20: p-values at level 0.01 take at least 100"),
        (lambda r, s: posterior_predictive_check(r, s, draws=0), "draws=0"),
        (lambda r, s: leave_one_out(r, s, draws=5), "draws=5"),
        (lambda r, s: prior_predictive_check(r, s), r"model=Posterior: give the model .*such as posterior\.model"),
        (lambda r, s: r.calibrate(Data(s, s, s)), r"held_out=Data: give Images, such as data\.validation"),
        (lambda r, s: split(planted_network(images=20), 5), r"everything=TestBed: give Images, as iv\.read returns"),
        (lambda r, s: predictive_check(s.labels, s.labels, torch.rand(60, 3)), r"replicated \(60,\)"),
    ],
)
def test_refusals(result, stripes, call, message):
    with pytest.raises(InputError, match=message):
        call(result, stripes)


class Three(nn.Module):
    """Logistic regression on three pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -1.0, 0.1]]))

    def weight_sites(self) -> list[WeightSite]:
        return [WeightSite("weight", (1, 3), ("class", "pixel"), ("pixel",), ("class",))]

    def forward(self, images: Tensor) -> Tensor:
        score = F.linear(2 * images.flatten(1) - 1, self.weight)
        return torch.cat([torch.zeros_like(score), score], -1)


@pytest.mark.parametrize(("temperature", "logit_scale"), [(1.0, 1.0), (0.5, 1.0), (0.5, 0.6)])
def test_leave_one_out_is_that_of_exact_refits(temperature, logit_scale):
    """All eight masks times Gauss-Hermite quadrature over three weights; a refit without each image in turn, at a scale
    of 1, and what it says of that image, at the model's."""
    images = torch.rand(30, 1, 1, 3)
    x = 2 * images.flatten(1) - 1
    labels = torch.bernoulli((x @ torch.tensor([2.0, -2.0, 0.0])).sigmoid()).long()
    data = Images(images, labels, 2)
    network = Three()
    prior = IndependentSpikeSlab(network.weight_sites(), inclusion=0.5, slab_scale=3.0)
    model = IsingViT(network, prior)
    config = FitConfig(
        steps=1500, batch_size=30, learning_rate=1e-2, pilot=0.2, temperature=temperature, warmup=0.05, device="cpu"
    )
    guide = MeanField(model, initial_scale=0.5, mask_rate=2.0)
    posterior = fit(guide, data, config=config, progress=False).posterior

    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    points = torch.tensor(list(itertools.product(nodes, repeat=3))) * 3 / math.sqrt(3)
    volume = torch.tensor(list(itertools.product(weights, repeat=3))).log().sum(-1)
    likelihood, said, mass = [], [], []
    for mask in itertools.product((0.0, 1.0), repeat=3):
        scores = (points * torch.tensor(mask)) @ x.double().T
        right = torch.where(labels == 1, scores, -scores)
        likelihood.append(F.logsigmoid(right))
        said.append(F.logsigmoid(logit_scale * right))
        mass.append(volume)
    each, said, mass = torch.cat(likelihood), torch.cat(said), torch.cat(mass)
    total = each.sum(-1, keepdim=True)
    refit = (mass.unsqueeze(-1) + (total - each) / temperature).log_softmax(0)
    exact = (refit + said).logsumexp(0)

    loo = leave_one_out(replace(posterior, logit_scale=logit_scale), data, draws=4000)
    assert loo.elpd == pytest.approx(loo.pointwise.sum())
    assert abs(loo.elpd - exact.sum().item()) < 0.2 * loo.se  # well within the standard error, which is of the data
    assert np.abs(loo.pointwise - exact.numpy()).max() < 0.1


def test_a_guide_that_is_not_the_posterior_is_found_out(result, stripes):
    loo = leave_one_out(result, stripes, draws=200)
    assert loo.k_hat > 0.7
    assert not loo.reliable


def test_a_statistic_without_a_value_is_missing_and_no_failure():
    """In the labels themselves, or in so many replications that no interval is left."""
    labels, replicated = torch.arange(60) % 3, torch.randint(3, (400, 60))
    probs = torch.full((60, 3), 1 / 3)
    statistics = {
        "no such class": lambda labels, probs: (labels == 7).double().mean() / (labels == 7).double().mean(),
        "a number": lambda labels, probs: 0.5,
    }
    table = predictive_check(labels, replicated, probs, statistics).set_index("statistic")
    assert table.loc["no such class", ["observed", "lower", "upper", "p_value"]].isna().all()
    assert not table["fails"].any()
    assert table.loc["a number", "observed"] == 0.5
