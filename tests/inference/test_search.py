"""The temperature: a path, and what validation images choose."""

from dataclasses import replace
from functools import partial

import pyro
import pytest
import torch

from pyro_isingvit import (
    FitConfig,
    Images,
    InputError,
    LikelihoodGuided,
    Posterior,
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


def chosen_temperature(result):
    return result.trials.loc[result.trials["chosen"], "temperature"].item()


def test_temperature_auto_takes_the_least_validation_nll(stripes):
    result = quick_fit(stripes, validation=stripes, temperature="auto", steps=300)
    trials = result.trials
    assert trials["temperature"].is_monotonic_increasing
    assert len(trials) >= 3
    assert trials.loc[trials["nll"].idxmin(), "chosen"]
    assert trials["chosen"].tolist() == trials["least_nll"].tolist()
    assert result.posterior.model.temperature == chosen_temperature(result)
    assert result.history["temperature"].iloc[-1] == result.posterior.model.temperature
    assert result.history["phase"].unique().tolist() == ["pilot", "ising"]
    pilot = result.history[result.history["phase"] == "pilot"]
    weights = sum(site.numel for site in result.posterior.model.sites)
    assert pilot["temperature"].tolist() == pytest.approx([30 / weights] * len(pilot))
    assert result.history["step"].tolist() == sorted(set(result.history["step"]))
    assert result.history["step"].iloc[-1] == 300
    assert result.posterior.logit_scale == Posterior.of(result.posterior.guide).calibrate(stripes).logit_scale


def test_a_guide_may_hold_a_count(stripes):
    """States along a path are averaged, but for what is no number of the reals."""
    _, guide = pair()
    guide.register_buffer("calls", torch.tensor(3))
    path = fit_path(guide, stripes, stripes, FitConfig(**QUICK | {"steps": 80, "temperature": "auto"}))
    assert path.at(0).guide.calls.item() == 3


def test_the_sparsest_within_one_standard_error(stripes):
    settings = {"validation": stripes, "steps": 300}
    auto, sparsest = (quick_fit(stripes, temperature=t, **settings) for t in ("auto", "sparsest"))
    assert sparsest.posterior.model.temperature == chosen_temperature(sparsest)
    assert sparsest.posterior.model.temperature >= auto.posterior.model.temperature


@pytest.fixture
def rigged(monkeypatch):
    """Validation images that say what they are told of each temperature."""
    judge, told = search_module.candidate, []

    def rig(guide, validation, draws):
        each = judge(guide, validation, draws)
        i = grid(guide.model, len(validation)).index(each.temperature)
        # Differences have a standard error of about .065 a temperature.
        nll = told[i] + 0.5 * i * torch.tensor([1.0, -1.0]).repeat(len(each.nll) // 2)
        # Density says nothing here: it often ties.
        return replace(each, nll=nll, row=each.row | {"nll": float(nll.mean()), "median_density": 1.0})

    def tell(levels):
        told[:] = levels
        return FACTORS[: len(levels)]

    monkeypatch.setattr(search_module, "candidate", rig)
    return tell


@pytest.mark.parametrize(
    ("mark", "levels", "tried", "chosen"),
    [
        ("least_nll", (9, 1.5, 9, 1.0, 9, 1.2, 9, 0.0), [1, 2, 3, 4, 5], 3),
        ("least_nll", (9, 1.5, 9, 1.0, 0.9, 1.2, 9, 0.0), [1, 3, 4, 5], 4),
        ("least_nll", (9, 1.1, 0.8, 1.0, 0.9, 1.2, 9, 0.0), [1, 2, 3, 5], 2),
        ("least_nll", (9, 1.5, 9, 1.3, 9, 1.2, 9, 1.4), [1, 3, 4, 5, 7], 5),
        ("least_nll", (9, 1.5, 9, 1.3, 9, 1.2, 9, 1.1), [1, 3, 5, 6, 7], 7),
        ("least_nll", (1.2, 1.1, 9, 1.3, 9, 1.2, 9, 0.0), [0, 1, 2, 3, 5], 1),
        ("least_nll", (1.0, 1.1, 9, 1.3, 9, 1.2, 9, 0.0), [0, 1, 3, 5], 0),
        ("sparsest", (9, 1.5, 9, 1.0, 9, 1.1, 9, 2.0), [1, 3, 4, 5, 7], 5),
        ("sparsest", (9, 1.5, 9, 1.0, 9, 1.5, 9, 0.0), [1, 2, 3, 4, 5], 3),
        ("sparsest", (1.0, 1.1, 9, 1.15, 9, 1.8, 9, 0.0), [0, 1, 2, 3, 5], 3),
        ("least_nll", (1.0, 0.9), [0, 1], 1),
        ("least_nll", (1.0, 0.9, 0.8), [0, 1, 2], 2),
        ("least_nll", (1.0,), [0], 0),
    ],
)
def test_trials_follow_while_that_pays(stripes, rigged, mark, levels, tried, chosen):
    search = TemperatureSearch(rule=mark, factors=rigged(levels))
    result = quick_fit(stripes, validation=stripes, temperature=search, steps=40)
    temperatures = grid(result.posterior.model, 60)
    assert result.trials["temperature"].tolist() == [temperatures[i] for i in tried]
    assert result.trials["nll"].tolist() == pytest.approx([levels[i] for i in tried])
    assert result.trials["chosen"].tolist() == [i == chosen for i in tried]
    assert result.posterior.model.temperature == temperatures[chosen]
    assert result.history["temperature"].iloc[-1] == result.posterior.model.temperature


def test_each_trial_and_the_ising_phase_start_at_the_end_of_the_pilot(stripes, monkeypatch):
    monkeypatch.setattr(search_module, "LEAST", 1)
    run, seen = Trainer.run, []

    def state(trainer):
        tensors = [*trainer.model.state_dict().values(), *trainer.guide.state_dict().values()]
        moments = [value for each in trainer.optimizer.state.values() for value in each.values()]
        return [tensor.clone() for tensor in (*tensors, *moments)]

    def watched(trainer, steps, phase, after_step=None, name=None):
        before = state(trainer), trainer.guide.seen, trainer.step, trainer.position
        run(trainer, steps, phase, after_step, name)
        after = steps, trainer.position, trainer.optimizer.param_groups[0]["lr"]
        seen.append((phase, before, state(trainer), after))

    monkeypatch.setattr(Trainer, "run", watched)
    result = quick_fit(stripes, validation=stripes, temperature="auto", steps=180, pilot=0.5)
    (_, _, pilot, _), *others = seen
    assert [phase for phase, *_ in others] == ["trial"] * len(result.trials) + ["ising"]
    for phase, (start, stale, *begin), _, (steps, position, rate) in others:
        assert all(torch.equal(x, y) for x, y in zip(start, pilot, strict=True))
        assert (stale, *begin) == (None, 90, 90)
        assert steps == (90 if phase == "ising" else 11)
        assert position == pytest.approx(180)
        assert rate < 0.05 * QUICK["learning_rate"]
    final = [*result.posterior.model.state_dict().values(), *result.posterior.guide.state_dict().values()]
    assert all(torch.equal(x, y) for x, y in zip(final, others[-1][2][: len(final)], strict=True))


@pytest.mark.parametrize("breaks", [0, 2])
def test_a_trial_that_breaks_down_loses_nothing(stripes, rigged, monkeypatch, breaks):
    search = TemperatureSearch(factors=rigged((9, 1.5, 9, 1.3, 9, 1.2, 9, 1.1)))
    run, count = Trainer.run, iter(range(9))

    def fragile(trainer, steps, phase, after_step=None, name=None):
        if phase == "trial" and next(count) == breaks:
            run(trainer, steps // 2, phase, name=name)
            raise TrainingError("loss=nan")
        run(trainer, steps, phase, after_step, name)

    monkeypatch.setattr(Trainer, "run", fragile)
    settings = {"validation": stripes, "temperature": search, "steps": 60, "fine_tune": 0.0}
    if breaks == 0:
        with pytest.raises(TrainingError):
            quick_fit(stripes, **settings)
    else:
        result = quick_fit(stripes, **settings)
        assert result.trials["nll"].tolist() == pytest.approx([1.5, 9, 1.3, 9])
        assert result.posterior.model.temperature == result.trials["temperature"].iloc[2]
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
@pytest.mark.filterwarnings("ignore:.*median network keeps no weight")
def test_what_a_guide_keeps_beside_its_state_starts_afresh(stripes, family, monkeypatch):
    """Curvature that is evaluated now and then, and a network whose sizes are known late."""
    starts, run = [], Trainer.run

    def watched(trainer, steps, phase, after_step=None, name=None):
        if phase in ("trial", "ising"):
            run(trainer, 12, phase, name=f"{name} begins")
            estimator = getattr(trainer.guide, "estimator", None)
            starts.append(None if estimator is None else float(estimator.diagonal.weight))
            steps -= 12
        run(trainer, steps, phase, after_step, name)

    monkeypatch.setattr(Trainer, "run", watched)
    search = TemperatureSearch(share=0.5, factors=(0.5, 5.0))
    result = quick_fit(stripes, family, validation=stripes, temperature=search, steps=60, pilot=0.5)
    assert len(starts) == len(result.trials) + 1 == 3
    assert all(start is None or start > 0 for start in starts)


def test_fine_tuning_follows_the_chosen_temperature(stripes):
    result = quick_fit(stripes, validation=stripes, temperature="auto", steps=300, fine_tune=0.2)
    assert result.history["phase"].unique().tolist() == ["pilot", "ising", "fine-tune"]
    assert result.history["step"].tolist() == sorted(set(result.history["step"]))
    assert result.history["step"].iloc[-1] == 300
    assert result.posterior.model.temperature == chosen_temperature(result)


def test_temperature_auto_listens_to_the_validation_images(stripes):
    """Against labels that are wrong by design, the network that says least is best: the hottest."""
    search = TemperatureSearch(share=0.5)
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
