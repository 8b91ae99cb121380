"""Mixtures: each member is a fit of its own, the temperature is found once, and all of it survives."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from pyro_isingvit import (
    FitConfig,
    FitResult,
    InputError,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    MeanField,
    Posterior,
    TemperatureSearch,
    TrainingError,
    ViT,
    export,
    fit,
    fit_mixture,
    prune,
)
from pyro_isingvit.diagnostics import stability
from pyro_isingvit.diagnostics.inference_data import to_inference_data
from pyro_isingvit.inference.result import member_seed
from pyro_isingvit.pruning import prune_draws
from tests.conftest import QUICK, TINY, pair, striped

SEARCH = {"steps": 40, "pilot": 0.5, "temperature": TemperatureSearch(factors=(0.05, 0.5, 5.0), draws=3)}


def build(family=LikelihoodGuided):
    network = ViT(TINY)
    return family(IsingViT(network, IsingSpikeSlab(network.weight_sites(), coupling=0.5)))


def mixture(stripes, members=3, jobs=1, validation=None, **settings):
    config = FitConfig(**QUICK | {"steps": 20} | settings)
    return fit_mixture(build, members, stripes, validation, config, progress=False, jobs=jobs)


@pytest.fixture(scope="module")
def three():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = striped(("a", "b", "c"))
    return mixture(images)


def states(posterior):
    return [guide.state_dict() | guide.model.state_dict() for guide in posterior.guides]


def same(first, second):
    return all(torch.equal(one, second[name]) for name, one in first.items())


@pytest.mark.parametrize("jobs", [1, 3])
def test_each_member_is_the_fit_of_its_seed(jobs, stripes):
    """Also in a process of its own: to the last bit, as each has one thread."""
    result = mixture(stripes, jobs=jobs)
    for k, state in enumerate(states(result.posterior)):
        config = FitConfig(**QUICK | {"steps": 20, "seed": member_seed(0, k)})
        torch.manual_seed(config.seed)
        alone = fit(build(), stripes, config=config, progress=False)
        assert same(state, states(alone.posterior)[0])
        own = result.member(k)
        assert own.history.drop(columns="seconds").equals(alone.history.drop(columns="seconds"))
        assert same(states(own.posterior)[0], state)
    assert not same(states(result.posterior)[0], states(result.posterior)[1])
    assert result.posterior.logit_scale == 1
    assert result.config == alone.config | {"seed": 0}


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_temperature_is_found_once(jobs, stripes):
    """The first member is the fit with a search; the others take as many steps as without one."""
    result = mixture(stripes, jobs=jobs, validation=stripes, **SEARCH)
    config = FitConfig(**QUICK | SEARCH)
    torch.manual_seed(0)
    alone = fit(build(), stripes, stripes, config, progress=False)
    assert same(states(result.posterior)[0], states(alone.posterior)[0])
    assert result.trials.equals(alone.trials)
    assert {guide.model.temperature for guide in result.posterior.guides} == {alone.posterior.model.temperature}
    assert set(result.history["temperature"]) == set(alone.history["temperature"])  # of the pilot phase as well
    steps = result.history.groupby("member")["step"].max()
    assert list(steps) == [40, 40, 40]
    assert result.posterior.logit_scale == result.posterior.calibrate(stripes).logit_scale != 1


def test_predictions_are_means_over_members_and_information_is_split(three, stripes):
    posterior = three.posterior
    whole = posterior.predict(stripes.images, 12, seed=3)
    every = torch.stack([draw.logits(stripes.images).softmax(-1) for draw in posterior.draws(12, 3)])
    torch.testing.assert_close(whole.probs, every.mean(0))
    means = torch.stack([every[k::3].mean(0) for k in range(3)])
    entropies = torch.special.entr(means).sum(-1)
    torch.testing.assert_close(whole.between, (whole.entropy - entropies.mean(0)).clamp_min(0))
    assert (whole.between <= whole.mutual_information + 1e-6).all()
    assert whole.between.max() > 1e-3
    assert (posterior.members[1].predict(stripes.images, 12).between == 0).all()
    assert whole.names == ("a", "b", "c")


def test_averages_have_as_many_draws_of_each_member(three, stripes):
    """Four draws of three members are six, as `predict` says; `draws` makes as many as it is asked for."""
    posterior, images = three.posterior, stripes.images[:5]
    assert torch.equal(posterior.predict(images, draws=4).probs, posterior.predict(images, draws=6).probs)
    assert len(list(posterior.draws(4))) == 4


def test_what_is_kept_is_counted_for_all_members(three):
    each = [member.densities() for member in three.posterior.members]
    for name, share in three.posterior.densities().items():
        assert share == pytest.approx(sum(one[name] for one in each))
    agreement = stability(three.posterior.members).set_index("site")
    assert agreement.loc["all", "rank_correlation"] < 0.99


def test_it_is_saved_and_loaded(three, stripes, tmp_path):
    three.save(tmp_path / "three")
    again = FitResult.load(tmp_path / "three")
    assert all(map(same, states(three.posterior), states(again.posterior)))
    # pandas before 3 reads a float to its last bit but one
    pd.testing.assert_frame_equal(again.member(2).history, three.member(2).history, rtol=1e-12)
    probs = [
        Posterior.load(tmp_path / "three").predict(stripes.images, 6).probs,
        three.posterior.predict(stripes.images, 6).probs,
    ]
    assert torch.equal(*probs)


def test_it_is_cut_to_an_ensemble(three, stripes, tmp_path):
    small = prune(three.posterior)
    assert small.config.members == 3
    probs = small(stripes.images).softmax(-1)
    for own, member in zip(probs, three.posterior.members, strict=True):
        torch.testing.assert_close(own, prune(member)(stripes.images).softmax(-1), rtol=1e-4, atol=1e-5)
    export(small, tmp_path / "small")
    drawn = prune_draws(three.posterior, 4, level="weight")(stripes.images).softmax(-1)
    assert drawn.shape == (4, 60, 3)


def test_members_are_chains_for_arviz(three, stripes):
    data = to_inference_data(three.posterior, stripes, draws=4, log=three)
    assert dict(data["posterior"].sizes)["chain"] == 3
    assert data["log_likelihood"]["label"].shape == (3, 4, 60)
    second = list(three.posterior.members[1].draws(4, 1))
    mask = data["posterior"]["encoder.up.mask"].values[1, 2]
    assert (mask == second[2].masks["encoder.up"].bool().numpy()).all()
    assert data["sample_stats"]["elbo"].dims == ("chain", "step")
    assert data["observed_data"]["label"].shape == (60,)


def test_members_can_have_shares_of_the_images(stripes):
    config = FitConfig(**QUICK | {"steps": 4})
    result = fit_mixture(build, 2, stripes, config=config, progress=False, share=0.5, jobs=1)
    assert {guide.model.num_data for guide in result.posterior.guides} == {30}


def test_progress_counts_the_steps_of_all_members(stripes, capsys):
    config = FitConfig(**QUICK | {"steps": 4})
    fit_mixture(build, 2, stripes, config=config, jobs=2)
    assert "2 of LikelihoodGuided" in capsys.readouterr().out


def test_bad_arguments(stripes, tmp_path):
    one = pair()[1]
    kinds = iter([LikelihoodGuided, MeanField])
    for options, message in (
        ({"members": 0}, "members=0: must be an integer from 1"),
        ({"share": 0.0}, r"share=0\.0: must be a positive number"),
        ({"share": 1.5}, r"share=1\.5: each member draws"),
        ({"share": "half"}, "share='half': must be a positive number"),
        ({"build": None}, "build=NoneType: give a function"),
        ({"jobs": 0}, "jobs=0: must be an integer from 1"),
        ({"resume": True}, "resume=True with checkpoint=None"),
        ({"build": lambda: one}, "build: it returned a guide or model that it had returned before"),
        ({"build": lambda: build(next(kinds))}, "of different kinds: guide.class is 'MeanField'"),
        ({"build": lambda: None}, "guide=NoneType"),
        ({"config": FitConfig(**SEARCH)}, "temperature: a search, such as 'auto', is decided on held-out images"),
    ):
        arguments = {"build": build, "members": 2, "train": stripes, "progress": False, "jobs": 1} | options
        with pytest.raises(InputError, match=message):
            fit_mixture(**arguments)


def test_what_goes_wrong_in_a_process_is_told(stripes):
    with pytest.raises(TrainingError, match=r"member \d: .*lower learning_rate="):
        mixture(stripes, members=2, jobs=2, learning_rate=1e30)


SCRIPT = """
import sys, torch
from pyro_isingvit import *
from tests.conftest import QUICK, TINY

class Mine(LikelihoodGuided):
    pass

labels = torch.arange(60) % 3
torch.manual_seed(0)
images = torch.rand(60, 1, 4, 4)
images[torch.arange(60), 0, labels] = 1.0
def build():
    network = ViT(TINY)
    return Mine(IsingViT(network, IsingSpikeSlab(network.weight_sites(), coupling=0.5)))
config = FitConfig(**QUICK | {"steps": int(sys.argv[1])})
saving = {"checkpoint": "saved", "resume": "resume" in sys.argv, "interval": 0.1} if len(sys.argv) > 2 else {}
result = fit_mixture(build, 2, Images(images, labels, 3), config=config, progress=False, jobs=2, **saving)
torch.save([guide.state_dict() for guide in result.posterior.guides], "done.pt")
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)

    def start(*arguments):
        environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "script.py", *arguments]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    return start


def test_a_script_with_classes_of_its_own_needs_nothing_more(script, tmp_path):
    process = script("5")
    assert process.communicate()[1] == ""
    assert process.returncode == 0
    assert len(torch.load(tmp_path / "done.pt")) == 2


def test_an_interrupted_mixture_goes_on_to_the_same_bits(script, tmp_path):
    """First told to stop, then killed with no time to tell its processes."""
    assert script("300", "save").communicate()[1] == ""
    (tmp_path / "done.pt").rename(tmp_path / "whole.pt")
    saved = (tmp_path / "saved").rename(tmp_path / "of_whole").with_name("saved")

    def newest():
        return {path.parent.name: path.stem for path in sorted(saved.glob("*/*.safetensors"))}

    for number, argument in ((signal.SIGTERM, "save"), (signal.SIGKILL, "resume")):
        before, process = newest(), script("300", argument)
        while sum(stem != before.get(member) for member, stem in newest().items()) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        said = process.communicate()[1]
        assert not (tmp_path / "done.pt").exists()
        assert ("go on from the checkpoints in saved" in said) == (number == signal.SIGTERM)
    assert script("300", "resume").communicate()[1] == ""
    for whole, again in zip(torch.load(tmp_path / "whole.pt"), torch.load(tmp_path / "done.pt"), strict=True):
        assert same(whole, again)
