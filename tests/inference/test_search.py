"""The temperature: a path, and what validation images choose."""

from dataclasses import replace
from functools import partial

import pandas as pd
import pyro
import pytest
import torch

from pyro_isingvit import (
    FitConfig,
    Images,
    InputError,
    LikelihoodGuided,
    TrainingError,
    fit_path,
)
from pyro_isingvit.guides import ScoreFunction
from pyro_isingvit.inference import path as path_module
from pyro_isingvit.inference import search as search_module
from pyro_isingvit.inference.search import TemperatureSearch
from pyro_isingvit.inference.trainer import Trainer
from tests.conftest import QUICK, pair, quick_fit

FACTORS = TemperatureSearch().factors


def grid(model, num_data):
    return TemperatureSearch().temperatures(model, num_data)


def test_temperature_auto_takes_the_least_validation_nll(stripes):
    result = quick_fit(stripes, validation=stripes, temperature="auto", steps=300)
    path = result.path
    assert path["temperature"].is_monotonic_increasing
    assert len(path) >= 3
    assert path.loc[path["nll"].idxmin(), "least_nll"]
    assert path["least_nll"].sum() == 1
    finished = result.finished
    assert path.loc[path["least_nll"], "temperature"].item() in finished["temperature"].tolist()
    assert finished["temperature"].is_monotonic_increasing
    assert finished["chosen"].tolist() == finished["least_nll"].tolist()
    assert result.posterior.model.temperature == finished.loc[finished["chosen"], "temperature"].item()
    assert result.history["temperature"].iloc[-1] == result.posterior.model.temperature
    assert result.history["phase"].unique().tolist() == ["pilot", "ising"]
    pilot = result.history[result.history["phase"] == "pilot"]
    weights = sum(site.numel for site in result.posterior.model.sites)
    assert pilot["temperature"].tolist() == pytest.approx([30 / weights] * len(pilot))
    assert result.history["step"].tolist() == sorted(set(result.history["step"]))
    assert result.history["step"].iloc[-1] == 300
    nll = -result.posterior.predict(stripes.images, 20).probs.gather(1, stripes.labels[:, None]).log().mean()
    assert float(nll) == pytest.approx(finished.loc[finished["chosen"], "nll"].item(), abs=1e-5)


def test_a_guide_may_hold_a_count(stripes):
    """States along a path are averaged, but for what is no number of the reals."""
    _, guide = pair()
    guide.register_buffer("calls", torch.tensor(3))
    path = fit_path(guide, stripes, stripes, FitConfig(**QUICK | {"steps": 80, "temperature": "auto"}))
    assert path.at(0).guide.calls.item() == 3


def test_the_sparsest_within_one_standard_error(stripes):
    settings = {"validation": stripes, "steps": 300}
    auto, sparsest = (quick_fit(stripes, temperature=t, **settings) for t in ("auto", "sparsest"))
    pd.testing.assert_frame_equal(auto.path, sparsest.path)
    finished = sparsest.finished
    assert sparsest.path.loc[sparsest.path["least_nll"], "temperature"].item() in finished["temperature"].tolist()
    assert sparsest.posterior.model.temperature == finished.loc[finished["chosen"], "temperature"].item()
    assert sparsest.posterior.model.temperature >= auto.posterior.model.temperature


@pytest.fixture
def rigged(monkeypatch):
    """Validation images that say what they are told of each temperature, on a path and at the end of trainings."""
    judge, run = search_module.candidate, Trainer.run
    told, phases = {}, [""]

    def noting(trainer, steps, phase, after_step=None):
        phases[0] = phase
        run(trainer, steps, phase, after_step)

    def rig(guide, validation, draws):
        each = judge(guide, validation, draws)
        i = grid(guide.model, len(validation)).index(each.temperature)
        if phases[0] == "path":
            nll = torch.full_like(each.nll, 1 + 0.01 * abs(i - told["best"]))
        else:  # differences have a standard error of about .065 a temperature
            nll = told["levels"][i] + 0.5 * i * torch.tensor([1.0, -1.0]).repeat(len(each.nll) // 2)
        # Density says nothing here: it often ties.
        return replace(each, nll=nll, row=each.row | {"nll": float(nll.mean()), "median_density": 1.0})

    def tell(levels, best=0):
        told.update(levels=levels, best=best)
        return FACTORS[: len(levels)]

    monkeypatch.setattr(search_module, "candidate", rig)
    monkeypatch.setattr(Trainer, "run", noting)
    return tell


@pytest.mark.parametrize(
    ("mark", "levels", "best", "trained", "chosen"),
    [
        ("least_nll", (3.0, 2.0, 1.0, 2.0, 0.0), 0, [0, 1, 2, 3], 2),
        ("sparsest", (3.0, 2.0, 1.0, 2.0, 0.0), 0, [0, 1, 2, 3], 2),
        ("least_nll", (1.0, 0.99, 1.01, 0.0), 0, [0, 1, 2], 1),
        ("least_nll", (1.0, 0.9), 0, [0, 1], 1),
        ("sparsest", (1.0, 1.02, 1.04, 2.0, 0.0), 0, [0, 1, 2, 3], 2),
        ("sparsest", (1.0, 1.2, 0.0), 0, [0, 1], 0),
        ("sparsest", (1.0, 0.98, 0.96, 3.0, 0.0), 0, [0, 1, 2, 3], 2),
        ("least_nll", (0.0, 1.1, 0.9, 1.0, 2.0), 3, [1, 2, 3, 4], 2),
        ("least_nll", (1.2, 1.1, 1.0), 2, [1, 2], 2),
        ("least_nll", (0.0, 1.0, 0.9), 1, [1, 2], 2),
        ("sparsest", (3.0, 0.97, 1.0, 1.02, 2.0), 2, [0, 1, 2, 3, 4], 3),
        ("sparsest", (3.0, 0.8, 1.0, 1.02, 2.0), 2, [0, 1, 2, 3, 4], 1),
    ],
)
def test_trainings_follow_while_that_pays(stripes, rigged, mark, levels, best, trained, chosen):
    search = TemperatureSearch(rule=mark, factors=rigged(levels, best))
    result = quick_fit(stripes, validation=stripes, temperature=search, steps=40)
    temperatures = grid(result.posterior.model, 60)
    assert result.finished["temperature"].tolist() == [temperatures[i] for i in trained]
    assert result.finished["nll"].tolist() == pytest.approx([levels[i] for i in trained])
    assert result.finished["chosen"].tolist() == [i == chosen for i in trained]
    assert result.posterior.model.temperature == temperatures[chosen]
    assert result.history["temperature"].iloc[-1] == result.posterior.model.temperature


def test_each_training_starts_at_the_end_of_the_pilot(stripes, rigged, monkeypatch):
    search = TemperatureSearch(factors=rigged((3.0, 2.0, 1.0, 2.0)))
    run, seen = Trainer.run, []

    def state(trainer):
        tensors = [*trainer.model.state_dict().values(), *trainer.guide.state_dict().values()]
        moments = [value for each in trainer.optimizer.state.values() for value in each.values()]
        return [tensor.clone() for tensor in (*tensors, *moments)]

    def watched(trainer, steps, phase, after_step=None):
        before = state(trainer), trainer.guide.seen, trainer.step, trainer.position
        run(trainer, steps, phase, after_step)
        after = state(trainer), trainer.step, trainer.position, trainer.optimizer.param_groups[0]["lr"]
        seen.append((phase, before, after))

    monkeypatch.setattr(Trainer, "run", watched)
    result = quick_fit(stripes, validation=stripes, temperature=search, steps=100, pilot=0.5)
    (_, _, (pilot, *_)), *others = seen
    trainings = [(before, after) for phase, before, after in others if phase == "ising"]
    assert len(trainings) == 4
    for (start, stale, *begin), (_, step, position, rate) in trainings:
        assert all(torch.equal(x, y) for x, y in zip(start, pilot, strict=True))
        assert (stale, *begin) == (None, 50, 50)
        assert (step, position) == (100, pytest.approx(100))
        assert rate < 1e-3 * QUICK["learning_rate"]
    final = [*result.posterior.model.state_dict().values(), *result.posterior.guide.state_dict().values()]
    chosen = trainings[2][1][0][: len(final)]
    assert all(torch.equal(x, y) for x, y in zip(final, chosen, strict=True))


@pytest.mark.parametrize("breaks", [0, 2])
def test_a_training_that_breaks_down_loses_nothing(stripes, rigged, monkeypatch, breaks):
    search = TemperatureSearch(factors=rigged((3.0, 2.0, 1.0, 0.0)))
    run, count = Trainer.run, iter(range(9))

    def fragile(trainer, steps, phase, after_step=None):
        if phase == "ising" and next(count) == breaks:
            run(trainer, steps // 2, phase)
            raise TrainingError("loss=nan")
        run(trainer, steps, phase, after_step)

    monkeypatch.setattr(Trainer, "run", fragile)
    settings = {"validation": stripes, "temperature": search, "steps": 60, "fine_tune": 0.0}
    if breaks == 0:
        with pytest.raises(TrainingError):
            quick_fit(stripes, **settings)
    else:
        result = quick_fit(stripes, **settings)
        assert result.finished["nll"].tolist() == pytest.approx([3.0, 2.0])
        assert result.posterior.model.temperature == result.path["temperature"].iloc[1]
        assert result.history["step"].iloc[-1] == 60


def test_a_breakdown_on_the_path_ends_the_path(stripes, monkeypatch):
    run, count = Trainer.run, iter(range(99))

    def fragile(trainer, steps, phase, after_step=None):
        run(trainer, steps, phase, after_step)
        if phase == "path" and next(count) == 2:
            raise TrainingError("loss=nan")

    monkeypatch.setattr(Trainer, "run", fragile)
    result = quick_fit(stripes, validation=stripes, temperature="auto", steps=60)
    assert len(result.path) == 2
    assert result.history["step"].iloc[-1] == 60


def test_a_posterior_of_nan_is_a_breakdown(stripes):
    _, guide = pair()
    with torch.no_grad():
        guide.loc["classifier_out"].fill_(float("nan"))
    with pyro.validation_enabled(False), pytest.raises(TrainingError, match="no finite NLL of the held-out images"):
        path_module.candidate(guide, stripes, 20)


@pytest.mark.parametrize(
    "family",
    [partial(LikelihoodGuided, estimator="hessian_diagonal"), partial(ScoreFunction, baseline="neural")],
)
def test_what_a_guide_keeps_beside_its_state_starts_afresh(stripes, family, monkeypatch):
    """Curvature that is evaluated now and then, and a network whose sizes are known late."""
    starts, run = [], Trainer.run

    def watched(trainer, steps, phase, after_step=None):
        if phase == "ising":
            run(trainer, 12, phase)
            estimator = getattr(trainer.guide, "estimator", None)
            starts.append(None if estimator is None else float(estimator.diagonal.weight))
            steps -= 12
        run(trainer, steps, phase, after_step)

    monkeypatch.setattr(Trainer, "run", watched)
    result = quick_fit(stripes, family, validation=stripes, temperature="auto", steps=80, pilot=0.5)
    assert len(starts) == len(result.finished)
    assert all(start is None or start > 0 for start in starts)


def test_fine_tuning_follows_the_chosen_temperature(stripes):
    result = quick_fit(stripes, validation=stripes, temperature="auto", steps=300, fine_tune=0.2)
    assert result.history["phase"].unique().tolist() == ["pilot", "ising", "fine-tune"]
    assert result.history["step"].tolist() == sorted(set(result.history["step"]))
    assert result.history["step"].iloc[-1] == 300
    assert result.posterior.model.temperature == result.finished.loc[result.finished["chosen"], "temperature"].item()


def test_temperature_auto_listens_to_the_validation_images(stripes):
    """Against labels that are wrong by design, the network that says least is best: the hottest."""
    search = TemperatureSearch(patience=1e9)  # try them all
    wrong = Images(stripes.images, (stripes.labels + 1) % 3, 3)
    right = quick_fit(stripes, validation=stripes, temperature=search, steps=600, pilot=0.2)
    misled = quick_fit(stripes, validation=wrong, temperature=search, steps=600, pilot=0.2)
    assert misled.posterior.model.temperature > right.posterior.model.temperature


def test_a_path_is_the_curve_and_every_point_of_it(stripes):
    noisy = Images(stripes.images, torch.where(torch.arange(60) % 7 == 0, 2 - stripes.labels, stripes.labels), 3)
    settings = QUICK | {"temperature": "auto", "steps": 800, "pilot": 0.2}
    path = fit_path(pair()[1], noisy, noisy, FitConfig(**settings), progress=False)
    table = path.table
    assert len(table) == len(path.stops) == len(FACTORS)
    assert table["temperature"].is_monotonic_increasing
    assert table["expected_density"].iloc[-1] < 0.6 * table["expected_density"].iloc[0]
    assert path.history["step"].iloc[-1] == 800
    for mark in ("sparsest", "least_nll"):
        assert table[mark].sum() == 1
    least = int(table["least_nll"].argmax())
    assert table["nll"].argmin() == least
    gap = path.stops[2].nll - path.stops[least].nll
    assert table["se"].iloc[2] == pytest.approx(float(gap.std()) / 60**0.5, abs=1e-6)
    within = table[table["nll"] <= table["nll"].min() + table["se"]]
    assert table.loc[table["sparsest"], "median_density"].item() == within["median_density"].min()
    for row in (0, 6, 3):
        posterior = path.at(row)
        assert posterior.model.temperature == table["temperature"].iloc[row]
        assert posterior.densities()["median_density"] == table["median_density"].iloc[row]
        assert posterior.logit_scale == table["logit_scale"].iloc[row]
        nll = -posterior.predict(noisy.images, 20).probs.gather(1, noisy.labels[:, None]).log().mean()
        assert float(nll) == pytest.approx(table["nll"].iloc[row], abs=1e-5)
    assert path.pick("sparsest").model.temperature == table.loc[table["sparsest"], "temperature"].item()
    with pytest.raises(InputError, match="row=8: the path has rows 0 to 7"):
        path.at(8)


def test_a_path_needs_a_step_for_each_temperature(stripes):
    settings = QUICK | {"temperature": "auto", "steps": 20, "pilot": 0.9}
    with pytest.raises(InputError, match=r"steps=20, pilot=0.9 leave 2 for 8 temperatures"):
        fit_path(pair()[1], stripes, stripes, FitConfig(**settings), progress=False)


def test_fine_tuning_keeps_its_steps(stripes):
    result = quick_fit(stripes, validation=stripes, temperature="auto", steps=40, pilot=0.5, fine_tune=0.4)
    last = result.history.groupby("phase", sort=False)["step"].max().to_dict()
    assert last == {"pilot": 20, "ising": 24, "fine-tune": 40}


@pytest.mark.parametrize("change", [{"temperature": 0.1}, {"target_density": 0.3}, {"fine_tune": 0.2}])
def test_a_path_refuses_what_would_fix_a_point_of_it(stripes, change):
    name = next(iter(change))
    settings = QUICK | {"temperature": "auto"} | change
    with pytest.raises(InputError, match=f"{name}=.*: a path goes through all temperatures"):
        fit_path(pair()[1], stripes, stripes, FitConfig(**settings), progress=False)
