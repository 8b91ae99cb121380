"""A posterior on disk: what it is of, and what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_isingvit import (
    Coupling,
    CouplingGraph,
    FitResult,
    Gaussian,
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
    adapt,
)
from pyro_isingvit.files import file_digest, read_json, read_tensors, write_json, write_tensors
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
from tests.conftest import TINY, pair
from tests.test_ownership import made, predicted

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
        ({"geometry": TINY.model_copy(update={"patch_size": (1, 4)})}, r"network.patch_size\[0\] is 1 and was 2"),
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
        write_json(folder / "posterior.json", facts | changes)

    for changes, message in (
        ({"format": 3}, "format=3; this version reads 7"),
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


MEMBER = {"temperature": 0.1, "num_data": 60, "held": [], "log_densities": {}}


@pytest.mark.parametrize(
    "changes",
    [
        {"members": 3},
        {"members": []},
        {"members": [{}]},
        {"members": [MEMBER | {"temperature": "hot"}]},
        {"members": [MEMBER | {"temperature": 0.0}]},
        {"members": [MEMBER | {"log_densities": None}]},
        {"tensors": "0" * 64},
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
    write_json(path, json.loads(path.read_text()) | changes)
    if changes == {"logit_scale": "1"}:  # a number all the same
        assert Posterior.load(tmp_path / "saved").logit_scale == 1
        return
    with pytest.raises(InputError) as caught:
        Posterior.load(tmp_path / "saved")
    assert "\n" not in str(caught.value)


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


class Odd(IsingSpikeSlab):
    """A prior of a user's own, whose width is no argument: the description alone does not show it."""

    width = 1.0

    def slab(self, site):
        return Gaussian(self.zero, self.zero + math.log(self.width), site.shape)


def test_a_prior_of_ones_own_is_known_by_its_log_densities(tmp_path, monkeypatch):
    made(Odd).save(tmp_path / "saved")
    assert Posterior.load(tmp_path / "saved", made(Odd).guide).logit_scale == 1
    monkeypatch.setattr(Odd, "width", 1.1)
    with pytest.raises(InputError, match=r"not of the guide given: the log density of \S+ of prior is"):
        Posterior.load(tmp_path / "saved", made(Odd).guide)


@pytest.mark.parametrize("damage", ["nan", "float64", "other", "missing"])
def test_tensors_are_finite_and_of_their_type(damage, tmp_path):
    made().save(tmp_path)
    path = tmp_path / "posterior.safetensors"
    tensors, _ = read_tensors(path)
    name = next(name for name in tensors if name.startswith("0/guide/loc"))
    if damage == "missing":
        del tensors[name]
    elif damage == "other":
        tensors[name] = tensors[name] + 1
    else:
        tensors[name] = tensors[name] * float("nan") if damage == "nan" else tensors[name].double()
    write_tensors(path, tensors)
    with pytest.raises(InputError, match=r"not the tensors of posterior\.json beside it"):
        Posterior.load(tmp_path)
    if damage != "other":
        facts = read_json(tmp_path / "posterior.json")
        write_json(tmp_path / "posterior.json", facts | {"tensors": file_digest(path)})
        expected = "Missing key" if damage == "missing" else "has to be finite and of type torch.float32"
        with pytest.raises(InputError, match=expected):
            Posterior.load(tmp_path)


def test_a_network_that_computes_something_else_is_not_loaded(tmp_path, monkeypatch):
    """Its class and settings are the same, as where the code of a network was changed since."""
    guide, forward = pair()[1], ViT.forward
    Posterior.of(guide).save(tmp_path)
    assert Posterior.load(tmp_path, guide)
    monkeypatch.setattr(ViT, "forward", lambda network, images, **rest: forward(network, 1 - images, **rest))
    with pytest.raises(InputError, match=r"the squares of the outputs is .* and was"):
        Posterior.load(tmp_path, guide)


def test_another_standardisation_is_not_loaded(tmp_path):
    def made(mean):
        plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        network = adapt(plain, torch.rand(1, 1, 4, 4), mean=mean)
        return LikelihoodGuided(IsingViT(network, IndependentSpikeSlab(network.weight_sites())))

    Posterior.of(made((0.5,))).save(tmp_path)
    with pytest.raises(InputError, match=r"network.mean\[0\] is 0.25 and was 0.5"):
        Posterior.load(tmp_path, made((0.25,)))
