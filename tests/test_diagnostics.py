"""Scores against scikit-learn and sums by hand, inclusion tables, ArviZ groups."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from pyro_isingvit import FitResult, InputError, LikelihoodGuided, MeanField, Prior
from pyro_isingvit.diagnostics.calibration import BINS, metrics
from pyro_isingvit.diagnostics.inclusion import alive_units, inclusion_table
from pyro_isingvit.diagnostics.inference_data import to_inference_data
from pyro_isingvit.diagnostics.plots import plot_inclusion
from pyro_isingvit.models import IsingViT
from pyro_isingvit.predict import evaluating, posterior_draws


@pytest.fixture
def guide(tiny_model):
    guide = LikelihoodGuided(tiny_model, initial_scale=0.3)
    with torch.no_grad():
        for logit in guide.logit.values():
            logit.normal_()
    return guide


@pytest.fixture
def result(tiny_model, guide):
    return FitResult(tiny_model, guide, history=None, path=None, seconds=0.0)


def test_metrics():
    probs, labels = torch.rand(500, 4, dtype=torch.double).softmax(-1), torch.randint(4, (500,))
    scores = metrics(probs, labels)
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, probs.argmax(-1)))
    assert scores["nll"] == pytest.approx(log_loss(labels, probs))
    assert scores["brier"] == pytest.approx(np.square(probs.numpy() - np.eye(4)[labels]).sum(1).mean())
    confidence, right = probs.max(-1).values.numpy(), (probs.argmax(-1) == labels).numpy()
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(right[bins == b].sum() - confidence[bins == b].sum()) for b in range(BINS)]
    assert scores["ece"] == pytest.approx(sum(gaps) / 500, abs=1e-6)


def test_inclusion_table_has_a_row_for_each_site_and_block(guide):
    table = inclusion_table(guide)
    assert table["site"].iloc[0] == "patch_embed"
    assert table["site"].iloc[-1] == "head.out"
    assert table["layer"].dropna().tolist() == [0] * 6 + [1] * 6
    row = table[(table["site"] == "encoder.up") & (table["layer"] == 1)].iloc[0]
    logit = guide.logit["encoder_up"][1]
    assert row["weights"] == logit.numel()
    assert row["expected"] == pytest.approx(logit.sigmoid().mean().item())
    assert row["median"] == pytest.approx((logit >= 0).float().mean().item())
    assert table["weights"].sum() == sum(site.numel for site in guide.model.sites)


def test_a_unit_is_alive_if_something_enters_and_leaves_it(guide):
    with torch.no_grad():
        for logit in guide.logit.values():
            logit.fill_(-1.0)
        guide.logit["encoder_up"][0, 3, 1] = guide.logit["encoder_down"][0, 2, 3] = 1.0
        guide.logit["encoder_up"][1, 5] = 1.0  # nothing leaves this one
        guide.logit["encoder_value"][1, 0, 1, 2] = guide.logit["encoder_out"][1, 3, 0, 0] = 1.0
    assert alive_units(guide) == {"heads": (1, 4), "hidden units": (1, 16)}


def test_picture_has_a_bar_for_each_row(guide):
    ax = plot_inclusion(guide)
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(inclusion_table(guide)["expected"].tolist())


def test_inference_data_holds_the_draws(result, guide, stripes):
    data = to_inference_data(result, stripes, draws=200, seed=1)
    masks = data.posterior["encoder.up.mask"]
    assert masks.dims == ("chain", "draw", "layer", "hidden", "dim")
    assert masks.dtype == bool
    probs = guide.inclusion_probabilities()["encoder.up"].numpy()
    # a mean of 200 draws: five standard errors
    assert np.abs(masks.mean(("chain", "draw")).values - probs).max() < 5 * 0.5 / 200**0.5
    log_likelihood = data.log_likelihood["label"]
    assert log_likelihood.shape == (1, 200, 60)
    with evaluating(result.model, guide):
        probs = [
            result.model.logits(stripes.images, draw.weights).softmax(-1)
            for draw in posterior_draws(result.model, guide, 200, 0)
        ]
    each = torch.stack(probs).gather(-1, stripes.labels.expand(200, 60).unsqueeze(-1)).log().mean()
    assert float(log_likelihood.mean()) == pytest.approx(each.item(), abs=0.05)
    assert (data.observed_data["label"].values == stripes.labels.numpy()).all()
    assert "not a Markov chain" in data.attrs["draws_are"]


def test_inference_data_refusals(result, tiny_network):
    with pytest.raises(InputError, match="draws=0"):
        to_inference_data(result, draws=0)
    model = IsingViT(tiny_network, Prior(tiny_network.weight_sites()))
    with pytest.raises(InputError, match="has no masks"):
        to_inference_data(FitResult(model, MeanField(model), None, None, 0.0))
