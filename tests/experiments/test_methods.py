"""The baselines of a study do what their papers say."""

import math

import pytest
import scipy.integrate
import scipy.stats
import torch

from pyro_isingvit import (
    Images,
    InputError,
    IsingViT,
    Posterior,
    TraceGraph_ELBO,
    ViT,
    ViTConfig,
)
from pyro_isingvit.data import Data
from pyro_isingvit.experiments import RunConfig
from pyro_isingvit.experiments.methods import Method, magnitude_masks, outcomes
from pyro_isingvit.guides import PointEstimate, SparseVariationalDropout
from pyro_isingvit.guides.sparse_variational_dropout import divergence
from pyro_isingvit.models.priors import Flat, LogUniform


def config_of(**fit) -> RunConfig:
    settings = {"steps": 200, "batch_size": 20, "learning_rate": 1e-2, "device": "cpu"} | fit
    network = {"image_size": 4, "patch_size": 2, "classes": 3, "dim": 16, "heads": 2, "mlp_ratio": 2}
    return RunConfig(train=60, network=network, fit=settings, draws=5)


@pytest.fixture
def data(stripes):
    wrong = torch.where(torch.arange(60) % 5 == 0, 2 - stripes.labels, stripes.labels)
    return Data(stripes, Images(stripes.images, wrong, 3), stripes)


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("ising", [f"ising{of}{how}" for of in ("", ", median network") for how in ("", ", temperature-scaled")]),
        (
            "ising-mixture",
            [f"ising-mixture of 2{of}{how}" for of in ("", ", median network") for how in ("", ", temperature-scaled")],
        ),
        ("deterministic", ["deterministic", "deterministic, temperature-scaled"]),
        ("dropout", ["dropout 0.1", "dropout 0.1, temperature-scaled"]),
        ("dropconnect", ["dropconnect 0.1", "dropconnect 0.1, temperature-scaled"]),
        ("sparse-vd", ["sparse-vd", "sparse-vd, temperature-scaled"]),
        ("ensemble", ["ensemble of 2", "ensemble of 2, temperature-scaled"]),
        ("magnitude-pruning", ["magnitude-pruning", "magnitude-pruning"]),
        ("ivon", ["ivon", "ivon, temperature-scaled"]),
        ("laplace", ["laplace", "laplace, temperature-scaled"]),
        ("swag", ["swag", "swag, temperature-scaled"]),
    ],
)
def test_every_method_learns_and_says_what_it_kept(data, name, methods):
    own = {"ising-mixture": {"members": 2}, "ensemble": {"members": 2}, "magnitude-pruning": {"densities": (0.3, 0.6)}}
    method = Method(name=name, **own.get(name, {}))
    average = name in ("ising", "ising-mixture", "sparse-vd")
    cold = {"temperature": 1e-4} if average else {}  # too sure of images that are not all right
    each = list(outcomes(config_of(**cold), method, data, progress=False))
    assert [str(outcome.predictor) for outcome in each] == methods
    for outcome in each:
        torch.testing.assert_close(outcome.probs.sum(-1), torch.ones(60))
        assert (outcome.probs.argmax(-1) == data.test.labels).float().mean() > 0.8
        assert outcome.seconds > 0
    if name == "magnitude-pruning":
        assert [outcome.density for outcome in each] == pytest.approx([0.3, 0.6], abs=1e-3)
    if name != "magnitude-pruning":
        for plain, scaled in zip(each[::2], each[1::2], strict=True):
            assert not torch.equal(plain.probs, scaled.probs)
            assert torch.equal(plain.probs.argmax(-1), scaled.probs.argmax(-1)) or average
            assert scaled.validation_nll < plain.validation_nll


def test_a_path_is_one_fit_of_many_densities(data):
    config = config_of(steps=400, pilot=0.2).model_copy(update={"draws": 20})  # as many as chose the marks
    each = list(outcomes(config, Method(name="ising-path"), data, progress=False))
    assert [str(o.predictor) for o in each[:2]] == ["ising-path", "ising-path, median network"]
    each = each[::2]
    assert len(each) == 8
    temperatures, densities = ([getattr(o, field) for o in each] for field in ("temperature", "expected_density"))
    assert temperatures == sorted(temperatures)
    assert densities[-1] < densities[0]
    marks = [o.mark for o in each]
    assert sum("least_nll" in mark for mark in marks) == sum("sparsest" in mark for mark in marks) == 1
    least = next(o for o in each if "least_nll" in o.mark)
    assert least.validation_nll == pytest.approx(min(o.validation_nll for o in each), rel=1e-5)


def test_methods_are_the_same_again(data):
    first, again = (next(outcomes(config_of(), Method(name="dropout"), data, progress=False)).probs for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"name": "dropout", "rate": 0}, "rate=0"),
        ({"name": "sing"}, "name='sing'"),
        ({"name": "ensemble", "members": 1}, "members=1"),
        ({"name": "magnitude-pruning", "densities": [0.5, 1.5]}, "densities.1=1.5"),
        ({"name": "deterministic", "rate": 0.5}, r"deterministic has no rate; only \['dropout', 'dropconnect'\]"),
    ],
)
def test_wrong_methods_are_refused(bad, message):
    with pytest.raises(InputError, match=message):
        Method(**bad)


def test_a_pruned_network_predicts_without_what_was_cut(tiny_network, stripes):
    model = IsingViT(tiny_network, Flat(tiny_network.weight_sites()))
    guide = PointEstimate(model)
    masks = magnitude_masks(Posterior((guide,)), 0.3)
    model.fix_masks(masks)
    weights = {site.name: guide.loc[site.key] * masks[site.name] for site in model.sites}
    expected = model.logits(stripes.images, weights).softmax(-1)
    torch.testing.assert_close(Posterior((guide,)).predict_plug_in(stripes.images), expected)
    model.fix_masks(None)
    assert not torch.allclose(Posterior((guide,)).predict_plug_in(stripes.images), expected)


def exact_divergence(log_alpha: float) -> float:
    """KL of Normal(1, alpha) from the log-uniform prior, up to the constant that is 0 where alpha is infinite."""
    scale = math.exp(log_alpha / 2)

    def log_magnitude(z: float) -> float:
        return math.log(abs(1 + scale * z)) * scipy.stats.norm.pdf(z)

    expected = sum(
        scipy.integrate.quad(log_magnitude, *ends, limit=200)[0] for ends in ((-12, -1 / scale), (-1 / scale, 12))
    )
    of_noise = -(math.log(2) + 0.5772156649) / 2  # E log |z| of a standard normal, as alpha goes to infinity
    return expected - log_alpha / 2 - of_noise


@pytest.mark.parametrize("log_alpha", [-8.0, -4.0, -1.0, 0.0, 2.0, 4.0])
def test_divergence_from_the_log_uniform_prior_is_the_integral(log_alpha):
    loc = torch.tensor(0.3)
    approximate = float(divergence(loc, torch.tensor(log_alpha / 2) + loc.log()))
    assert approximate == pytest.approx(exact_divergence(log_alpha), abs=0.02)


def test_sparse_variational_dropout_has_the_gradient_of_the_divergence(tiny_network, stripes):
    """Prior and guide together, likelihood switched off by a huge temperature."""
    model = IsingViT(tiny_network, LogUniform(tiny_network.weight_sites()), num_data=60, temperature=1e12)
    guide = SparseVariationalDropout(model, initial_scale=0.3)
    TraceGraph_ELBO()(model, guide)(stripes.images[:4], stripes.labels[:4]).backward()
    for site in model.sites:
        loc, log_scale = (parts[site.key].detach().requires_grad_() for parts in (guide.loc, guide.log_scale))
        divergence(loc, log_scale).sum().backward()
        torch.testing.assert_close(guide.loc[site.key].grad, loc.grad, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(guide.log_scale[site.key].grad, log_scale.grad, atol=1e-4, rtol=1e-3)


def test_noise_is_dropped_at_prediction(tiny_network):
    model = IsingViT(tiny_network, LogUniform(tiny_network.weight_sites()))
    guide = SparseVariationalDropout(model).eval()
    site = model.sites[0]
    with torch.no_grad():
        guide.log_scale[site.key][0] = guide.loc[site.key][0].abs().log() + 1.51  # log alpha = 3.02
        guide.log_scale[site.key][1:] = guide.loc[site.key][1:].abs().log() + 1.49
    inside = guide.inclusion_probabilities()[site.name]
    assert not inside[0].any()
    assert inside[1:].all()
    draw = guide.weight(site, None).sample()
    assert draw[0].abs().max() < 1e-6
    assert draw[1:].abs().min() > 0
    with pytest.raises(InputError, match="prior=Flat: SparseVariationalDropout is made for LogUniform"):
        SparseVariationalDropout(IsingViT(tiny_network, Flat(tiny_network.weight_sites())))


def test_dropconnect_leaves_out_a_share_and_keeps_the_mean(tiny_network):
    model = IsingViT(tiny_network, Flat(tiny_network.weight_sites()))
    guide, site = PointEstimate(model, dropconnect=0.25), model.sites[0]
    draws = torch.stack([guide.weight(site, None).sample() for _ in range(4000)])
    loc = guide.loc[site.key].detach()
    torch.testing.assert_close((draws == 0).float().mean(0), torch.full_like(loc, 0.25), atol=0.04, rtol=0)
    kept = draws[draws != 0] / loc.expand_as(draws)[draws != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.75))
    assert torch.equal(guide.eval().weight(site, None).sample(), loc)
    with pytest.raises(InputError, match="dropconnect=1"):
        PointEstimate(model, dropconnect=1)


def test_dropout_acts_in_training_alone():
    plain = ViT(ViTConfig(image_size=4, patch_size=2, dim=8, heads=2, mlp_ratio=2))
    noisy = ViT(ViTConfig(image_size=4, patch_size=2, dim=8, heads=2, mlp_ratio=2, dropout=0.5))
    noisy.load_state_dict(plain.state_dict())
    images = torch.rand(3, 1, 4, 4)
    assert not torch.equal(noisy(images), noisy(images))
    torch.testing.assert_close(noisy.eval()(images), plain(images))


def test_magnitude_pruning_keeps_the_largest(tiny_network):
    model = IsingViT(tiny_network, Flat(tiny_network.weight_sites()))
    guide = PointEstimate(model)
    masks = magnitude_masks(Posterior((guide,)), 0.25)
    weights = guide.mean_weights({})
    kept = torch.cat([weights[name][mask > 0].abs() for name, mask in masks.items()])
    cut = torch.cat([weights[name][mask == 0].abs() for name, mask in masks.items()])
    assert kept.min() >= cut.max()
    assert len(kept) == round(0.25 * (len(kept) + len(cut)))
