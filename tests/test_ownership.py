"""A posterior owns its tensors: whatever happens beside it, it says what it said."""

import sys
import threading

import pytest
import torch

from pyro_isingvit import (
    FitConfig,
    IndependentSpikeSlab,
    InputError,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    MeanField,
    Posterior,
    ViT,
    fit,
    fit_path,
)
from pyro_isingvit.diagnostics import attention_maps
from pyro_isingvit.draws import prior_draws
from pyro_isingvit.guides import BackwardIsing
from tests.conftest import QUICK, TINY, pair


def made(prior=IsingSpikeSlab, guide=LikelihoodGuided, geometry=TINY, **options) -> Posterior:
    network = ViT(geometry)
    return Posterior.of(
        guide(IsingViT(network, prior(network.weight_sites(), **options), num_data=60, temperature=0.1))
    )


def predicted(posterior, images):
    return posterior.predict(images, draws=5).probs


def test_results_that_share_a_network_a_model_or_a_path_keep_what_they_said(stripes):
    """In any order: a second prior on the same network, a second guide on the same model, points of one path."""
    model, guide = pair()
    config = FitConfig(**QUICK)
    first = fit(guide, stripes, config=config, progress=False).posterior
    said = {first: predicted(first, stripes.images)}
    other = IsingViT(model.network, IndependentSpikeSlab(model.network.weight_sites()))
    second = fit(MeanField(other), stripes, config=config, progress=False).posterior
    said[second] = predicted(second, stripes.images)
    tuned = config.model_copy(update={"temperature": 0.5, "fine_tune": 0.5})
    third = fit(MeanField(model), stripes, config=tuned, progress=False).posterior
    said[third] = predicted(third, stripes.images)
    path = fit_path(guide, stripes, stripes, FitConfig(**QUICK | {"temperature": "auto", "steps": 80}), progress=False)
    points = [path.at(row) for row in (5, 0, 3)]
    said |= {point: predicted(point, stripes.images) for point in points}
    for posterior in [*points, third, first, second]:
        assert torch.equal(predicted(posterior, stripes.images), said[posterior])
    assert not torch.equal(said[points[0]], said[points[1]])
    assert (first.model.temperature, third.model.temperature) == (QUICK["temperature"], 0.5)
    assert first.model.fixed_masks is None
    assert third.model.fixed_masks is not None


def test_threads_that_share_a_posterior_get_what_one_alone_does(stripes):
    """All that reads it, side by side, with threads that take turns as often as they can."""
    posterior = made(guide=BackwardIsing, coupling=0.2)
    calls = {
        "predict": lambda: predicted(posterior, stripes.images),
        "plug-in": lambda: posterior.predict_plug_in(stripes.images),
        "network": lambda: posterior.network()(stripes.images),
        "inclusion": lambda: posterior.inclusion_probabilities()["encoder.up"],
        "masks": lambda: torch.stack([masks["encoder.up"] for masks in posterior.mask_draws(3)]),
        "attention": lambda: attention_maps(posterior, stripes.images[:5], draws=3).mean,
        "prior": lambda: torch.stack([draw.weights["encoder.up"] for draw in prior_draws(posterior.model, 2, 0)]),
    }
    truth, wrong = {name: call() for name, call in calls.items()}, []
    interval = sys.getswitchinterval()

    def serve(name):
        for _ in range(4):
            try:
                if not torch.equal(calls[name](), truth[name]):
                    wrong.append(name)
            except Exception as error:
                wrong.append(f"{name}: {error}")

    try:
        sys.setswitchinterval(1e-5)
        threads = [threading.Thread(target=serve, args=(name,)) for name in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_draws_leave_the_generator_and_gradients_to_who_asks_for_them(stripes):
    posterior, state = made(), torch.get_rng_state()
    for draw in posterior.draws(2):
        assert torch.is_grad_enabled()
        assert torch.equal(torch.get_rng_state(), state)
        assert not draw.logits(stripes.images).requires_grad


def test_a_mixture_alternates_and_averages(stripes):
    one, two = made(), made()
    both = Posterior((*one.guides, *two.guides))
    each = [list(posterior.draws(4)) for posterior in (both, one, two)]
    for t, draw in enumerate(each[0]):
        assert torch.equal(draw.weights["encoder.up"], each[1 + t % 2][t].weights["encoder.up"])
    with torch.no_grad():
        two.guide.logit["encoder_up"].fill_(0.0)
    expected = (one.inclusion_probabilities()["encoder.up"] + 0.5) / 2
    torch.testing.assert_close(both.inclusion_probabilities()["encoder.up"], expected)
    plug_in = (one.predict_plug_in(stripes.images) + two.predict_plug_in(stripes.images)) / 2
    torch.testing.assert_close(both.predict_plug_in(stripes.images), plug_in)
    with pytest.raises(InputError, match="a mixture of 2 guides"):
        both.network()


def test_the_network_is_the_median_probability_model(stripes):
    posterior = made()
    with torch.no_grad():
        posterior.guide.logit["encoder_up"].normal_()
    network = posterior.network()
    with torch.no_grad():
        probs = network(stripes.images).softmax(-1)
    torch.testing.assert_close(probs, posterior.predict_plug_in(stripes.images))
    assert (network.encoder.up == 0).any()
    assert not (posterior.model.network.encoder.up == 0).any()


def test_weights_without_masks_count_as_kept():
    class Partly(IndependentSpikeSlab):
        def mask(self, site):
            return None if site.name == "patch_embed" else super().mask(site)

        def weight(self, site, mask):
            return super().weight(site, torch.ones(site.shape) if mask is None else mask)

    posterior = made(Partly, MeanField)
    with torch.no_grad():
        for logit in posterior.guide.logit.values():
            logit.fill_(-20.0)
    sizes = {site.name: site.numel for site in posterior.model.sites}
    share = sizes["patch_embed"] / sum(sizes.values())
    assert posterior.densities() == pytest.approx({"expected_density": share, "median_density": share}, abs=1e-6)


def test_draws_from_the_prior_have_no_log_ratio():
    with pytest.raises(InputError, match="log_ratio: a draw from the prior has none"):
        _ = next(prior_draws(made().model, 1, 0)).log_ratio


def test_masks_and_weights_of_the_prior_are_drawn_apart():
    """A spike as wide as the slab, so that nothing but a shared random stream could link masks and weights."""
    network = ViT(TINY.model_copy(update={"dim": 64}))
    prior = IndependentSpikeSlab(network.weight_sites(), inclusion=0.5, spike_scale=0.999)
    draw = next(prior_draws(IsingViT(network, prior), 1, 0))
    both = torch.stack([draw.masks["encoder.up"].flatten(), draw.weights["encoder.up"].flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 5 / both.shape[1] ** 0.5
