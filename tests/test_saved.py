"""A posterior owns its tensors, and says on disk what it is of."""

import json
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_isingvit import (
    Coupling,
    CouplingGraph,
    FitConfig,
    FitResult,
    IndependentSpikeSlab,
    InputError,
    Interaction,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    MeanField,
    Posterior,
    Prior,
    StructuredSpikeSlab,
    ViT,
    fit,
    fit_path,
)
from pyro_isingvit.diagnostics import attention_maps
from pyro_isingvit.draws import prior_draws
from pyro_isingvit.guides import (
    Auto,
    BackwardIsing,
    LowRank,
    PointEstimate,
    Relaxed,
    ScoreFunction,
    SparseVariationalDropout,
)
from pyro_isingvit.models import BackwardIsingSpikeSlab
from pyro_isingvit.models.priors import Flat, HierarchicalSpikeSlab, LatticeSpikeSlab, LogUniform, RegularisedHorseshoe
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


SHIPPED = {
    "flat": (Flat, PointEstimate, {}),
    "gaussian": (Prior, MeanField, {}),
    "auto": (Prior, Auto, {}),
    "horseshoe": (RegularisedHorseshoe, MeanField, {"global_scale": 0.2}),
    "log-uniform": (LogUniform, SparseVariationalDropout, {}),
    "independent": (IndependentSpikeSlab, LikelihoodGuided, {"inclusion": {"encoder.up": [0.1, 0.3]}}),
    "spike": (IndependentSpikeSlab, MeanField, {"spike_scale": 0.2, "learn_slab_scale": True}),
    "hierarchical": (HierarchicalSpikeSlab, MeanField, {"by": "role"}),
    "lattice": (LatticeSpikeSlab, MeanField, {"coupling": 0.1}),
    "ising": (IsingSpikeSlab, LikelihoodGuided, {"coupling": 0.3, "weighting": "magnitude"}),
    "learned coupling": (IsingSpikeSlab, MeanField, {"coupling": 0.3, "learn_coupling": True}),
    "backward prior": (BackwardIsingSpikeSlab, MeanField, {"coupling": 0.3}),
    "structured": (StructuredSpikeSlab, LikelihoodGuided, {"coupling": 0.2}),
    "backward guide": (IsingSpikeSlab, BackwardIsing, {"coupling": 0.2}),
    "low rank": (IsingSpikeSlab, LowRank, {"coupling": 0.2}),
    "relaxed": (IsingSpikeSlab, Relaxed, {"coupling": 0.2}),
    "score function": (IsingSpikeSlab, ScoreFunction, {"coupling": 0.2}),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_load_alone_gives_back_what_was_saved(name, stripes, tmp_path):
    prior, guide, options = SHIPPED[name]
    posterior = replace(made(prior, guide, **options), logit_scale=0.7)
    with torch.no_grad():
        for parameter in posterior.guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for parameter in posterior.model.parameters():
            parameter.add_(0.01)
    posterior.save(tmp_path / "saved")
    again = Posterior.load(tmp_path / "saved")
    assert torch.equal(predicted(again, stripes.images), predicted(posterior, stripes.images))
    assert again.logit_scale == 0.7
    assert (again.model.temperature, again.model.num_data) == (0.1, 60)
    assert type(again.model.prior) is prior
    assert type(again.guide) is guide
    assert again.guide.settings() == posterior.guide.settings()
    assert again.model.prior.settings() == posterior.model.prior.settings()


@pytest.mark.parametrize("estimator", ["levenberg_marquardt", "hessian_diagonal", "paired_draws", "disarm", "none"])
def test_estimators_are_saved_too(estimator, stripes, tmp_path):
    posterior = made(guide=lambda model: LikelihoodGuided(model, estimator=estimator, rate=0.1))
    posterior.save(tmp_path / "saved")
    again = Posterior.load(tmp_path / "saved")
    assert type(again.guide.estimator) is type(posterior.guide.estimator)
    assert again.guide.rate == 0.1


class Mine(IsingSpikeSlab):
    """A prior of a user's own."""


def test_classes_of_ones_own_are_named_and_passed_in(stripes, tmp_path):
    posterior = made(Mine, coupling=0.2)
    posterior.save(tmp_path / "saved")
    with pytest.raises(InputError, match=r"prior=tests\.test_\w+\.Mine, which this package cannot .* guide="):
        Posterior.load(tmp_path / "saved")
    again = Posterior.load(tmp_path / "saved", made(Mine, coupling=0.2).guide)
    assert torch.equal(predicted(again, stripes.images), predicted(posterior, stripes.images))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"geometry": TINY.model_copy(update={"pixel_mean": 0.1})}, "network.pixel_mean is 0.1 and was 0.5"),
        ({"geometry": TINY.model_copy(update={"patch_size": (1, 4)})}, r"network.patch_size is \[1, 4\] and was"),
        ({"prior": IndependentSpikeSlab}, "prior.class is 'IndependentSpikeSlab' and was 'IsingSpikeSlab'"),
        ({"spike_scale": 0.5}, "prior.spike_scale is 0.5 and was 0.0"),
        ({"guide": MeanField}, "guide.class is 'MeanField' and was 'LikelihoodGuided'"),
    ],
)
def test_a_guide_that_is_not_what_was_saved_is_refused(given, message, tmp_path):
    made().save(tmp_path / "saved")
    with pytest.raises(InputError, match=message):
        Posterior.load(tmp_path / "saved", made(**given).guide)


def test_loading_leaves_the_guide_given_as_it_was(tmp_path):
    made().save(tmp_path / "saved")
    guide = made().guide
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    Posterior.load(tmp_path / "saved", guide)
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())


def test_damaged_and_earlier_files_are_refused_by_name(tmp_path):
    folder = tmp_path / "saved"
    made().save(folder)
    with pytest.raises(InputError, match="holds a posterior already"):
        made().save(folder)
    facts = json.loads((folder / "posterior.json").read_text())

    def change(**changes):
        (folder / "posterior.json").write_text(json.dumps({**facts, **changes}))

    for changes, message in (
        ({"format": 3}, "format=3; this version reads 4"),
        ({"prior": {"class": "IsingSpikeSlab", "settings": {"inclusion": 2}}}, "does not describe a posterior"),
        ({"network": {"class": "ViT", "settings": {"dim": 5}}}, "does not describe a posterior"),
        ({"guide": {"class": "os.system", "settings": {}}}, "guide=os.system, which this package cannot rebuild"),
    ):
        change(**changes)
        with pytest.raises(InputError, match=message):
            Posterior.load(folder)
    (folder / "posterior.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        Posterior.load(folder)
    change()
    (folder / "posterior.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be read"):
        Posterior.load(folder)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "fit.json").write_text(json.dumps({"format": 3}))
    with pytest.raises(InputError, match=r"no posterior\.json there"):
        Posterior.load(tmp_path / "old")


def test_a_posterior_without_the_log_of_its_fit(tmp_path):
    made().save(tmp_path / "saved")
    with pytest.raises(InputError, match=r"no fit\.json there; read it with Posterior\.load"):
        FitResult.load(tmp_path / "saved")
    with pytest.raises(InputError, match=r"guides=\(\)"):
        Posterior(())


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


def test_members_of_different_kinds_are_not_saved_as_one_kind(tmp_path):
    members = made(IndependentSpikeSlab, MeanField).guides + made(IndependentSpikeSlab, Relaxed).guides
    with pytest.raises(InputError, match=r"not of one kind \(guide\.class is 'Relaxed' and was 'MeanField'\)"):
        Posterior(members).save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    alike = Posterior(made().guides + made().guides)
    alike.save(tmp_path / "saved")
    again = Posterior.load(tmp_path / "saved")
    assert len(again.guides) == 2
    for name, probs in alike.inclusion_probabilities().items():
        assert torch.equal(probs, again.inclusion_probabilities()[name])


def test_an_interaction_that_was_taken_away_stays_away(stripes, tmp_path):
    posterior = made(coupling=0.5)
    posterior.model.prior.interaction = None
    posterior.save(tmp_path / "saved")
    assert Posterior.load(tmp_path / "saved").model.prior.interaction is None
    posterior.model.prior.interaction = Quiet()
    posterior.save(tmp_path / "other")
    with pytest.raises(InputError, match=r"interaction=tests\.\w+.*\.Quiet, which this package cannot rebuild"):
        Posterior.load(tmp_path / "other")


class Quiet(Interaction):
    """An interaction of a user's own."""

    def energy(self, masks):
        return 0.0 * masks["encoder.up"].sum()


def test_settings_of_couplings_and_numpy_numbers_are_kept(tmp_path):
    sites = ViT(TINY).weight_sites()
    every_second = Coupling("encoder.up", "encoder.down", ("layer", "hidden"), 0.5, slice(None, None, 2), slice(0, 1))
    posterior = made(couplings=CouplingGraph(sites, [every_second]), slab_scale=np.float32(1.5))
    posterior.save(tmp_path / "saved")
    again = Posterior.load(tmp_path / "saved").model.prior
    assert again.couplings.couplings[0].first_layers == slice(None, None, 2)
    assert again.slab_scale == 1.5


@pytest.mark.parametrize(
    "changes",
    [
        {"members": 3},
        {"members": []},
        {"members": [{}]},
        {"members": [{"temperature": "hot", "num_data": 60}]},
        {"members": [{"temperature": 0.0, "num_data": 60}]},
        {"logit_scale": "1"},
        {"logit_scale": None},
        {"sites": [{"name": "x"}]},
        {"interaction": {"class": "IsingInteraction", "settings": {}}, "prior": {"class": "Flat", "settings": {}}},
        {"network": {"class": "ViT", "settings": {"dim": 10**9, "heads": 1}}},
    ],
)
def test_whatever_is_wrong_with_a_description_is_one_line(changes, tmp_path):
    made().save(tmp_path / "saved")
    path = tmp_path / "saved" / "posterior.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    if changes == {"logit_scale": "1"}:  # a number all the same
        assert Posterior.load(tmp_path / "saved").logit_scale == 1
        return
    with pytest.raises(InputError) as caught:
        Posterior.load(tmp_path / "saved")
    assert "\n" not in str(caught.value)


def test_masks_and_weights_of_the_prior_are_drawn_apart():
    """A spike as wide as the slab, so that nothing but a shared random stream could link masks and weights."""
    network = ViT(TINY.model_copy(update={"dim": 64}))
    prior = IndependentSpikeSlab(network.weight_sites(), inclusion=0.5, spike_scale=0.999)
    draw = next(prior_draws(IsingViT(network, prior), 1, 0))
    both = torch.stack([draw.masks["encoder.up"].flatten(), draw.weights["encoder.up"].flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 5 / both.shape[1] ** 0.5


class Strong(Interaction):
    def __init__(self, strength):
        super().__init__()
        self.strength = strength

    def energy(self, masks):
        return self.strength * masks["encoder.up"].mean()


def test_settings_of_an_interaction_are_compared(stripes, tmp_path):
    def of(strength):
        posterior = made(IndependentSpikeSlab, MeanField)
        posterior.model.prior.interaction = Strong(strength)
        return posterior

    posterior = of(3.0)
    posterior.save(tmp_path / "saved")
    with pytest.raises(InputError, match=r"interaction\.strength is 9\.0 and was 3\.0"):
        Posterior.load(tmp_path / "saved", of(9.0).guide)
    again = Posterior.load(tmp_path / "saved", of(3.0).guide)
    assert torch.equal(predicted(again, stripes.images), predicted(posterior, stripes.images))
