"""Conformal intervals against closed forms."""

import math

import pytest
import scipy.stats
import torch

from pyro_isingvit import Images, InputError, IsingSpikeSlab, IsingViT, LikelihoodGuided, Posterior, Regression, ViT
from pyro_isingvit.diagnostics import conformal_intervals
from tests.conftest import TINY

SCALE, COVERAGE, IMAGES = 0.7, 0.8, 400


@pytest.fixture
def posterior():
    """Weights next to certain, and normal noise of scale `SCALE`."""
    network = ViT(TINY.model_copy(update={"classes": 1}))
    model = IsingViT(network, IsingSpikeSlab(network.weight_sites()), likelihood=Regression(initial_scale=SCALE))
    return Posterior.of(LikelihoodGuided(model, initial_scale=1e-6, initial_logit=30.0))


def noisy(posterior, images, scale):
    pixels = torch.rand(images, 1, 4, 4)
    return Images(pixels, posterior.predict_targets(pixels, 2).mean + scale * torch.randn(images, 1), 1)


@pytest.mark.parametrize("scale", [0.35, 1.4])
def test_coverage_is_nominal_where_the_posterior_has_the_wrong_noise(posterior, scale):
    found = conformal_intervals(posterior, noisy(posterior, IMAGES, scale), COVERAGE, draws=10)
    assert float(found.margin) * (scale - SCALE) > 0  # wider if there is more noise, and narrower if less
    lower, upper = found.intervals(torch.rand(50, 1, 4, 4))
    coverage = 2 * scipy.stats.norm.cdf(float((upper - lower).mean()) / 2 / scale) - 1
    # three standard deviations of Beta(l, n + 1 - l), and some for the replicates behind the quantiles
    assert coverage == pytest.approx(COVERAGE, abs=3 * math.sqrt(COVERAGE * (1 - COVERAGE) / IMAGES) + 0.01)
    scores = found.evaluate(noisy(posterior, IMAGES, scale))
    assert scores["coverage"] == pytest.approx(COVERAGE, abs=6 * math.sqrt(COVERAGE * (1 - COVERAGE) / IMAGES))
    assert scores["width"] == pytest.approx(float((upper - lower).mean()), rel=0.05)


def test_the_margin_is_the_quantile_by_hand(posterior):
    nine = noisy(posterior, 9, 1.0)
    found = conformal_intervals(posterior, nine, COVERAGE, draws=10)
    bounds = posterior.predict_targets(nine.images, 10, COVERAGE)
    outside = torch.maximum(bounds.lower - nine.labels, nine.labels - bounds.upper)
    assert float(found.margin) == pytest.approx(float(outside.flatten().sort().values[7]))  # the eighth of nine


def test_what_cannot_be_is_said(posterior, stripes):
    with pytest.warns(UserWarning, match=r"3 images are too few for coverage=0.8: intervals are unbounded; .* least 4"):
        assert math.isinf(float(conformal_intervals(posterior, noisy(posterior, 3, 1.0), COVERAGE, draws=2).margin))
    with pytest.raises(InputError, match=r"calibration.labels: classes; give numbers, as floats"):
        conformal_intervals(posterior, stripes)
    two = Images(torch.rand(5, 1, 4, 4), torch.rand(5, 2), 2)
    with pytest.raises(InputError, match=r"calibration.labels of shape \(5, 2\): need \(5, 1\)"):
        conformal_intervals(posterior, two)
    network = ViT(TINY)
    classes = Posterior.of(LikelihoodGuided(IsingViT(network, IsingSpikeSlab(network.weight_sites()))))
    with pytest.raises(
        InputError, match="conformal_intervals: of numbers, and labels are classes; use conformal for classes"
    ):
        conformal_intervals(classes, two)
