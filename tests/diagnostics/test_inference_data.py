"""What ArviZ gets, and that ArviZ can use it."""

import json
import warnings

import numpy as np
import pytest
import torch

from pyro_isingvit import (
    FitConfig,
    InputError,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    MeanField,
    Posterior,
    Prior,
    ViT,
    fit,
)
from pyro_isingvit.diagnostics.arviz_adapter import arviz, psislw, read_netcdf, write_netcdf
from pyro_isingvit.diagnostics.inference_data import to_inference_data
from pyro_isingvit.testing import TINY

NEW = hasattr(arviz(), "plot_ppc_dist")
"""ArviZ 1.x."""


def fitted(stripes, coupling=0.5):
    network = ViT(TINY)
    model = IsingViT(network, IsingSpikeSlab(network.weight_sites(), coupling=coupling))
    config = FitConfig(steps=60, batch_size=20, learning_rate=1e-2, temperature=0.1, device="cpu")
    return fit(LikelihoodGuided(model), stripes, config=config, progress=False)


def test_groups(stripes):
    result = fitted(stripes)
    data = to_inference_data(
        result.posterior,
        stripes,
        draws=200,
        log=result,
        weights=["classifier.out"],
        predictions=stripes.images[:7],
        prior=50,
        seed=1,
    )
    masks = data.posterior["encoder.up.mask"]
    assert masks.dims == ("chain", "draw", "layer", "hidden", "dim")
    assert masks.dtype == bool
    probs = result.posterior.guide.inclusion_probabilities()["encoder.up"].numpy()
    # a mean of 200 draws: five standard errors
    assert np.abs(masks.mean(("chain", "draw")).values - probs).max() < 5 * 0.5 / 200**0.5
    assert data.posterior["classifier.out.weight"].dims == ("chain", "draw", "class", "classifier_hidden")
    out = data.posterior["classifier.out.mask"].values
    assert (data.posterior["classifier.out.weight"].values[~out] == 0).all()
    density = data.posterior["density"]
    assert density.sel(part="encoder.up[1]").values == pytest.approx(masks.sel(layer=1).mean(("hidden", "dim")).values)
    assert (data.observed_data["label"].values == stripes.labels.numpy()).all()
    assert data.predictions["label"].sizes["new_image"] == 7
    assert data.prior["encoder.up.mask"].sizes["draw"] == 50
    assert data.prior_predictive["label"].shape == (1, 50, 60)
    assert data.sample_stats["log_ratio"].shape == (1, 200)
    history = result.history
    elbo = -history["loss"] * 60 / 0.1
    assert data.sample_stats["elbo"].values == pytest.approx(elbo.to_numpy())
    assert (data.sample_stats["step"].values == history["step"].to_numpy()).all()


def test_likelihood_and_replications_are_those_of_the_draws(stripes):
    result = fitted(stripes)
    data = to_inference_data(result.posterior, stripes, draws=150, seed=2)
    each = torch.stack([draw.logits(stripes.images).log_softmax(-1) for draw in result.posterior.draws(150, 2)])
    expected = each.gather(-1, stripes.labels.expand(150, 60).unsqueeze(-1)).squeeze(-1)
    assert np.abs(data.log_likelihood["label"].values[0] - expected.numpy()).max() < 1e-5
    replicated = data.posterior_predictive["label"].values[0]
    frequencies = np.stack([(replicated == k).mean() for k in range(3)])
    probs = each.exp().mean((0, 1)).numpy()
    assert np.abs(frequencies - probs).max() < 5 * 0.5 / (150 * 60) ** 0.5


def test_the_log_ratio_is_that_of_a_prior_and_a_guide_in_closed_form(tiny_network):
    """Weights without masks: a difference of normal densities."""
    model = IsingViT(tiny_network, Prior(tiny_network.weight_sites()))
    guide = MeanField(model, initial_scale=0.3)
    for draw in Posterior((guide,)).draws(3, 0):
        expected = 0.0
        for site in model.sites:
            weight = draw.weights[site.name]
            p = torch.distributions.Normal(0.0, site.fan_in**-0.5).log_prob(weight).sum()
            q = torch.distributions.Normal(guide.loc[site.key], 0.3).log_prob(weight).sum()
            expected += float((p - q).detach())
        assert draw.log_ratio == pytest.approx(expected, rel=1e-4)
        assert draw.masks == {}


def test_attributes(stripes):
    result = fitted(stripes)
    data = to_inference_data(result.posterior, draws=2, log=result)
    assert "not a Markov chain" in data.attrs["draws_are"]
    assert json.loads(data.attrs["versions"]).keys() >= {"torch", "pyro-ppl", "arviz"}
    assert json.loads(data.attrs["fit"])["steps"] == 60
    assert data.posterior.attrs["temperature"] == 0.1


def test_netcdf_and_back(stripes, tmp_path):
    data = to_inference_data(fitted(stripes).posterior, stripes, draws=20, prior=5)
    write_netcdf(data, tmp_path / "posterior.nc")
    again = read_netcdf(tmp_path / "posterior.nc")
    for group in ("posterior", "log_likelihood", "posterior_predictive", "observed_data", "prior", "sample_stats"):
        before, after = (getattr(d, group) for d in (data, again))
        assert set(before.data_vars) == set(after.data_vars)
        for name in before.data_vars:
            assert after[name].dtype == before[name].dtype or after[name].dtype == object
            assert (after[name].values == before[name].values).all()
    assert again.posterior.attrs["draws_are"] == data.attrs["draws_are"]
    with pytest.raises(InputError, match="exists: choose another"):
        write_netcdf(data, tmp_path / "posterior.nc")
    with pytest.raises(InputError, match="no such file"):
        read_netcdf(tmp_path / "nothing.nc")


def test_arviz_uses_it(stripes):
    az = arviz()
    fits = {
        f"coupling {c}": to_inference_data(fitted(stripes, c).posterior, stripes, draws=200, prior=5)
        for c in (0.0, 0.5)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ warns of high k, here rightly
        loo = az.loo(fits["coupling 0.5"], pointwise=True)
        table = az.compare(fits)
    log_likelihood = fits["coupling 0.5"].log_likelihood["label"].values[0].T
    smoothed, _ = psislw(-log_likelihood)
    expected = np.logaddexp.reduce(smoothed + log_likelihood, axis=-1).sum()
    assert float(loo.elpd if NEW else loo.elpd_loo) == pytest.approx(expected, rel=1e-4)
    assert set(table.index) == set(fits)


def test_arviz_draws_it(stripes):
    import matplotlib

    matplotlib.use("Agg")
    az = arviz()
    data = to_inference_data(fitted(stripes).posterior, stripes, draws=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if NEW:
            assert az.plot_ppc_dist(data, kind="ecdf", num_samples=10) is not None
            forest = az.plot_forest(data, var_names=["density"])
        else:
            assert az.plot_ppc(data, kind="cumulative", num_pp_samples=10, random_seed=0) is not None
            forest = az.plot_forest(data, var_names=["density"])
    assert forest is not None
    import matplotlib.pyplot as plt

    plt.close("all")


def test_psis_of_a_known_tail():
    """Weights that are Pareto of index a have tail shape k = 1 / a."""
    rng = np.random.default_rng(0)
    for index in (2.0, 1.0):
        _, k = psislw(np.log(rng.pareto(index, 20_000) + 1))
        assert float(k) == pytest.approx(1 / index, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws=0"),
        ({"prior": -1}, "prior=-1"),
        ({"weights": ["head.in"]}, r"no site \['head.in'\]"),
    ],
)
def test_refusals(tiny_model, options, message):
    result = Posterior((LikelihoodGuided(tiny_model),))
    with pytest.raises(InputError, match=message):
        to_inference_data(result, **options)


def test_refuses_a_guide_without_masks(tiny_network):
    model = IsingViT(tiny_network, Prior(tiny_network.weight_sites()))
    with pytest.raises(InputError, match="has no masks"):
        to_inference_data(Posterior((MeanField(model),)))


def test_equal_weights_have_no_tail_to_fit():
    smoothed, k = psislw(np.stack([np.zeros(100), np.linspace(0, 3, 100)]))
    assert smoothed[0] == pytest.approx(np.full(100, -np.log(100)))
    assert k[0] == np.inf
    assert np.isfinite(k[1])
