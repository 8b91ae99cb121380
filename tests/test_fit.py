"""The training loop: phases, temperature, density, reproducibility, saving."""

import importlib
import json
import math
from dataclasses import replace
from functools import partial

import pandas as pd
import pyro
import pytest
import torch

from pyro_isingvit import (
    Augment,
    FitConfig,
    FitResult,
    Flat,
    Images,
    InputError,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    MeanField,
    PointEstimate,
    Prior,
    ScoreFunction,
    StructuredSpikeSlab,
    TrainingError,
    ViT,
    fit,
    fit_path,
)
from pyro_isingvit.fit import Trainer
from pyro_isingvit.temperature import FACTORS, grid
from tests.conftest import TINY

temperature = importlib.import_module("pyro_isingvit.temperature")

QUICK = {"steps": 60, "batch_size": 20, "learning_rate": 2e-2, "temperature": 1e-2, "device": "cpu"}


def pair(family=LikelihoodGuided, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ViT(TINY)
    model = IsingViT(network, IsingSpikeSlab(network.weight_sites(), coupling=0.5))
    return model, family(model, **options)


def quick_fit(stripes, family=LikelihoodGuided, validation=None, **settings):
    return fit(*pair(family), stripes, validation, FitConfig(**QUICK | settings), progress=False)


@pytest.mark.parametrize("family", [LikelihoodGuided, MeanField])
def test_it_learns_and_prunes(stripes, family):
    result = quick_fit(stripes, family, steps=500, temperature=3e-2)
    probs = result.predict(stripes.images, draws=20).probs
    assert (probs.argmax(-1) == stripes.labels).float().mean() > 0.95
    assert result.densities()["median_density"] < 0.8
    assert result.history["loss"].iloc[-1] < result.history["loss"].iloc[0]


def test_phases_follow_each_other(stripes):
    result = quick_fit(stripes, pilot=0.5, fine_tune=0.25)
    steps = result.history.groupby("phase", sort=False)["step"].max().to_dict()
    assert steps == {"pilot": 30, "ising": 45, "fine-tune": 60}
    pilot = result.history[result.history["phase"] == "pilot"]
    assert pilot["median_density"].eq(1).all()
    for name, mask in result.model.fixed_masks.items():
        assert torch.equal(mask, result.guide.median_masks()[name])


def test_masks_are_all_on_in_the_pilot(stripes):
    model, guide = pair()
    seen = []
    guide.weight, original = (
        lambda site, mask: (guide.training and seen.append(bool((mask == 1).all()))) or original(site, mask),
        guide.weight,
    )
    fit(model, guide, stripes, config=FitConfig(**QUICK | {"steps": 5, "pilot": 1.0}), progress=False)
    assert seen
    assert all(seen)


@pytest.mark.parametrize("density", [0.2, 0.6])
def test_target_density_is_held(stripes, density):
    result = quick_fit(stripes, steps=400, target_density=density)
    assert result.densities()["expected_density"] == pytest.approx(density, abs=0.02)


def test_a_target_density_is_that_of_weights_and_ends_with_the_fit(stripes):
    network = ViT(TINY)
    model = IsingViT(network, StructuredSpikeSlab(network.weight_sites(), coupling=0.3))
    guide = LikelihoodGuided(model)
    config = FitConfig(**QUICK | {"steps": 300, "target_density": 0.4})
    result = fit(model, guide, stripes, config=config, progress=False)
    assert result.densities()["expected_density"] == pytest.approx(0.4, abs=0.01)
    assert guide.target_density is None


def test_it_trains_what_was_left_in_evaluation_mode(stripes):
    model, guide = pair()
    guide.eval()
    result = fit(model, guide, stripes, config=FitConfig(**QUICK | {"steps": 200, "temperature": 1.0}), progress=False)
    assert result.densities()["median_density"] < 0.5


def test_fixed_masks_move_with_the_model(stripes):
    model = quick_fit(stripes, fine_tune=0.2).model
    assert all(mask.dtype == torch.float64 for mask in model.double().fixed_masks.values())


def test_same_seed_same_result_and_no_trace_on_the_global_generator(stripes):
    state = torch.get_rng_state()
    augmented = {"augment": Augment(degrees=5), "seed": 3}
    first, second = (quick_fit(stripes, **augmented) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    other = quick_fit(stripes, **augmented | {"seed": 4})
    for name, value in first.guide.state_dict().items():
        assert torch.equal(value, second.guide.state_dict()[name]), name
    assert not torch.equal(first.guide.loc["head_out"], other.guide.loc["head_out"])
    assert torch.equal(first.predict(stripes.images).probs, second.predict(stripes.images).probs)
    columns = [c for c in first.history if c != "seconds"]
    pd.testing.assert_frame_equal(first.history[columns], second.history[columns])


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
    assert result.temperature == finished.loc[finished["chosen"], "temperature"].item()
    assert result.history["temperature"].iloc[-1] == result.temperature
    assert result.history["phase"].unique().tolist() == ["pilot", "ising"]
    assert result.history["step"].tolist() == sorted(set(result.history["step"]))
    assert result.history["step"].iloc[-1] == 300
    nll = -result.predict(stripes.images, 20).probs.gather(1, stripes.labels[:, None]).log().mean()
    assert float(nll) == pytest.approx(finished.loc[finished["chosen"], "nll"].item(), abs=1e-5)


def test_the_sparsest_within_one_standard_error(stripes):
    settings = {"validation": stripes, "steps": 300}
    auto, sparsest = (quick_fit(stripes, temperature=t, **settings) for t in ("auto", "sparsest"))
    pd.testing.assert_frame_equal(auto.path, sparsest.path)
    finished = sparsest.finished
    assert sparsest.path.loc[sparsest.path["least_nll"], "temperature"].item() in finished["temperature"].tolist()
    assert sparsest.temperature == finished.loc[finished["chosen"], "temperature"].item()
    assert sparsest.temperature >= auto.temperature


@pytest.fixture
def rigged(monkeypatch):
    """Validation images that say what they are told of each temperature, on a path and at the end of trainings."""
    judge, run = temperature._judge, Trainer.run
    told, phases = {}, [""]

    def noting(trainer, steps, phase, after_step=None):
        phases[0] = phase
        run(trainer, steps, phase, after_step)

    def rig(model, guide, validation):
        each = judge(model, guide, validation)
        i = grid(model, len(validation)).index(each.temperature)
        if phases[0] == "path":
            nll = torch.full_like(each.nll, 1 + 0.01 * abs(i - told["best"]))
        else:  # differences have a standard error of about .065 a temperature
            nll = told["levels"][i] + 0.5 * i * torch.tensor([1.0, -1.0]).repeat(len(each.nll) // 2)
        # Density says nothing here: it often ties.
        return replace(each, nll=nll, row=each.row | {"nll": float(nll.mean()), "median_density": 1.0})

    def tell(levels, best=0):
        told.update(levels=levels, best=best)
        for module in (temperature, importlib.import_module("pyro_isingvit.fit")):
            monkeypatch.setattr(module, "FACTORS", FACTORS[: len(levels)])

    monkeypatch.setattr(temperature, "_judge", rig)
    monkeypatch.setattr(Trainer, "run", noting)
    return tell


@pytest.mark.parametrize(
    ("mark", "levels", "best", "trained", "chosen"),
    [
        ("auto", (3.0, 2.0, 1.0, 2.0, 0.0), 0, [0, 1, 2, 3], 2),
        ("sparsest", (3.0, 2.0, 1.0, 2.0, 0.0), 0, [0, 1, 2, 3], 2),
        ("auto", (1.0, 0.99, 1.01, 0.0), 0, [0, 1, 2], 1),
        ("auto", (1.0, 0.9), 0, [0, 1], 1),
        ("sparsest", (1.0, 1.02, 1.04, 2.0, 0.0), 0, [0, 1, 2, 3], 2),
        ("sparsest", (1.0, 1.2, 0.0), 0, [0, 1], 0),
        ("sparsest", (1.0, 0.98, 0.96, 3.0, 0.0), 0, [0, 1, 2, 3], 2),
        ("auto", (0.0, 1.1, 0.9, 1.0, 2.0), 3, [1, 2, 3, 4], 2),
        ("auto", (1.2, 1.1, 1.0), 2, [1, 2], 2),
        ("auto", (0.0, 1.0, 0.9), 1, [1, 2], 2),
        ("sparsest", (3.0, 0.97, 1.0, 1.02, 2.0), 2, [0, 1, 2, 3, 4], 3),
        ("sparsest", (3.0, 0.8, 1.0, 1.02, 2.0), 2, [0, 1, 2, 3, 4], 1),
    ],
)
def test_trainings_follow_while_that_pays(stripes, rigged, mark, levels, best, trained, chosen):
    rigged(levels, best)
    result = quick_fit(stripes, validation=stripes, temperature=mark, steps=40)
    temperatures = grid(result.model, 60)
    assert result.finished["temperature"].tolist() == [temperatures[i] for i in trained]
    assert result.finished["nll"].tolist() == pytest.approx([levels[i] for i in trained])
    assert result.finished["chosen"].tolist() == [i == chosen for i in trained]
    assert result.temperature == temperatures[chosen]
    assert result.history["temperature"].iloc[-1] == result.temperature


def test_each_training_starts_at_the_end_of_the_pilot(stripes, rigged, monkeypatch):
    rigged((3.0, 2.0, 1.0, 2.0))
    run, seen = Trainer.run, []

    def state(trainer):
        tensors = [*trainer.model.state_dict().values(), *trainer.guide.state_dict().values()]
        moments = [value for each in trainer.optimizer.state.values() for value in each.values()]
        return [tensor.clone() for tensor in (*tensors, *moments)]

    def watched(trainer, steps, phase, after_step=None):
        before = state(trainer), trainer.model.seen, trainer.step, trainer.position
        run(trainer, steps, phase, after_step)
        after = state(trainer), trainer.step, trainer.position, trainer.optimizer.param_groups[0]["lr"]
        seen.append((phase, before, after))

    monkeypatch.setattr(Trainer, "run", watched)
    result = quick_fit(stripes, validation=stripes, temperature="auto", steps=100, pilot=0.5)
    (_, _, (pilot, *_)), *others = seen
    trainings = [(before, after) for phase, before, after in others if phase == "ising"]
    assert len(trainings) == 4
    for (start, stale, *begin), (_, step, position, rate) in trainings:
        assert all(torch.equal(x, y) for x, y in zip(start, pilot, strict=True))
        assert (stale, *begin) == (None, 50, 50)
        assert (step, position) == (100, pytest.approx(100))
        assert rate < 1e-3 * QUICK["learning_rate"]
    final = [*result.model.state_dict().values(), *result.guide.state_dict().values()]
    chosen = trainings[2][1][0][: len(final)]
    assert all(torch.equal(x, y) for x, y in zip(final, chosen, strict=True))


@pytest.mark.parametrize("breaks", [0, 2])
def test_a_training_that_breaks_down_loses_nothing(stripes, rigged, monkeypatch, breaks):
    rigged((3.0, 2.0, 1.0, 0.0))
    run, count = Trainer.run, iter(range(9))

    def fragile(trainer, steps, phase, after_step=None):
        if phase == "ising" and next(count) == breaks:
            run(trainer, steps // 2, phase)
            raise TrainingError("loss=nan")
        run(trainer, steps, phase, after_step)

    monkeypatch.setattr(Trainer, "run", fragile)
    settings = {"validation": stripes, "temperature": "auto", "steps": 60, "fine_tune": 0.0}
    if breaks == 0:
        with pytest.raises(TrainingError):
            quick_fit(stripes, **settings)
    else:
        result = quick_fit(stripes, **settings)
        assert result.finished["nll"].tolist() == pytest.approx([3.0, 2.0])
        assert result.temperature == result.path["temperature"].iloc[1]
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
    model, guide = pair()
    with torch.no_grad():
        guide.loc["head_out"].fill_(float("nan"))
    with pyro.validation_enabled(False), pytest.raises(TrainingError, match="NLL=nan of the validation images"):
        temperature._judge(model, guide, stripes)


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
            starts.append(None if estimator is None else float(estimator.squares_weight))
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
    assert result.temperature == result.finished.loc[result.finished["chosen"], "temperature"].item()


def test_temperature_auto_listens_to_the_validation_images(stripes, monkeypatch):
    """Against labels that are wrong by design, the network that says least is best: the hottest."""
    monkeypatch.setattr(importlib.import_module("pyro_isingvit.fit"), "PATIENCE", math.inf)  # try them all
    wrong = Images(stripes.images, (stripes.labels + 1) % 3, 3)
    right = quick_fit(stripes, validation=stripes, temperature="auto", steps=600, pilot=0.2)
    misled = quick_fit(stripes, validation=wrong, temperature="auto", steps=600, pilot=0.2)
    assert misled.temperature > right.temperature


def test_a_path_is_the_curve_and_every_point_of_it(stripes):
    noisy = Images(stripes.images, torch.where(torch.arange(60) % 7 == 0, 2 - stripes.labels, stripes.labels), 3)
    settings = QUICK | {"temperature": "auto", "steps": 800, "pilot": 0.2}
    path = fit_path(*pair(), noisy, noisy, FitConfig(**settings), progress=False)
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
        result = path.at(row)
        assert result.temperature == table["temperature"].iloc[row]
        assert result.densities()["median_density"] == table["median_density"].iloc[row]
        nll = -result.predict(noisy.images, 20).probs.gather(1, noisy.labels[:, None]).log().mean()
        assert float(nll) == pytest.approx(table["nll"].iloc[row], abs=1e-5)
    assert path.pick("sparsest").temperature == table.loc[table["sparsest"], "temperature"].item()
    with pytest.raises(InputError, match="row=8: the path has rows 0 to 7"):
        path.at(8)


def test_a_path_needs_a_step_for_each_temperature(stripes):
    settings = QUICK | {"temperature": "auto", "steps": 20, "pilot": 0.9}
    with pytest.raises(InputError, match=r"steps=20, pilot=0.9 leave 2 for 8 temperatures"):
        fit_path(*pair(), stripes, stripes, FitConfig(**settings), progress=False)


def test_fine_tuning_keeps_its_steps(stripes):
    result = quick_fit(stripes, validation=stripes, temperature="auto", steps=40, pilot=0.5, fine_tune=0.4)
    last = result.history.groupby("phase", sort=False)["step"].max().to_dict()
    assert last == {"pilot": 20, "ising": 24, "fine-tune": 40}


@pytest.mark.parametrize("change", [{"temperature": 0.1}, {"target_density": 0.3}, {"fine_tune": 0.2}])
def test_a_path_refuses_what_would_fix_a_point_of_it(stripes, change):
    name = next(iter(change))
    settings = QUICK | {"temperature": "auto"} | change
    with pytest.raises(InputError, match=f"{name}=.*: a path goes through all temperatures"):
        fit_path(*pair(), stripes, stripes, FitConfig(**settings), progress=False)


@pytest.mark.parametrize("estimator", ["squared_gradient", "levenberg_marquardt", "paired_draws"])
def test_bfloat16_trains_to_much_the_same(stripes, estimator):
    """Same steps, same random numbers: densities and losses of both precisions agree, and differ at all."""
    results = [
        quick_fit(stripes, partial(LikelihoodGuided, estimator=estimator), precision=precision, steps=200)
        for precision in ("float32", "bfloat16")
    ]
    for result in results:
        assert result.model.precision == torch.float32
        assert all(p.dtype == torch.float32 for p in result.model.parameters())
    full, half = (result.history.iloc[-1] for result in results)
    assert half["loss"] != full["loss"]
    assert half["loss"] == pytest.approx(full["loss"], abs=0.1)
    assert half["expected_density"] == pytest.approx(full["expected_density"], abs=0.1)


def test_augmentations_go_by_name():
    assert FitConfig(augment="handwriting").augment == Augment()
    assert FitConfig(augment="none").augment is None
    with pytest.raises(InputError, match=r"augment='handwritting': choose one of \['none'"):
        FitConfig(augment="handwritting")


def test_a_fixed_scale_stays(stripes):
    result = quick_fit(stripes, partial(LikelihoodGuided, fixed_scale=0.018))
    for log_scale in result.guide.log_scale.values():
        torch.testing.assert_close(log_scale.exp(), torch.full_like(log_scale, 0.018))


def test_point_estimate_is_plain_training(stripes):
    """`Flat` with `PointEstimate` takes the very steps that a torch loop takes."""
    network = ViT(TINY)
    reference = ViT(TINY)
    reference.load_state_dict(network.state_dict())
    model = IsingViT(network, Flat(network.weight_sites()))
    config = FitConfig(**QUICK | {"steps": 5, "batch_size": 60, "clip": 1e6, "temperature": 1.0})
    result = fit(model, PointEstimate(model), stripes, config=config, progress=False)
    optimizer = torch.optim.Adam(reference.parameters(), config.learning_rate)
    for step in range(5):
        optimizer.param_groups[0]["lr"] = config.learning_rate * config.rate_at(step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(reference(stripes.images), stripes.labels).backward()
        optimizer.step()
    expected = reference(stripes.images).softmax(-1).detach()
    torch.testing.assert_close(result.predict_plug_in(stripes.images), expected, atol=1e-4, rtol=1e-3)
    assert result.densities() == {}


def test_learning_rate_rises_and_falls():
    config = FitConfig(steps=100, warmup=0.2)
    rates = [config.rate_at(step) for step in range(101)]
    assert rates.index(max(rates)) == 20
    assert rates[20] == 1
    assert rates[60] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert all(0 < rate <= 1 for rate in rates[:100])
    assert FitConfig(steps=1).rate_at(0) > 0


@pytest.mark.parametrize("fine_tune", [0.0, 0.3])
def test_save_and_load(stripes, tmp_path, fine_tune):
    result = quick_fit(stripes, validation=stripes, temperature="auto", fine_tune=fine_tune)
    result.save(tmp_path / "fit")
    again = FitResult.load(tmp_path / "fit", *pair(seed=9))
    assert torch.equal(again.predict(stripes.images).probs, result.predict(stripes.images).probs)
    assert again.temperature == result.temperature
    assert (again.model.fixed_masks is None) == (fine_tune == 0)
    pd.testing.assert_frame_equal(again.history, result.history)
    pd.testing.assert_frame_equal(again.path, result.path)
    pd.testing.assert_frame_equal(again.finished, result.finished)
    assert not list((tmp_path / "fit").glob("*.p*"))
    with pytest.raises(InputError, match="holds a posterior already"):
        result.save(tmp_path / "fit")


def test_load_refuses_what_does_not_fit(stripes, tmp_path):
    with pytest.raises(InputError, match=r"no fit\.json there"):
        FitResult.load(tmp_path, *pair())
    quick_fit(stripes, steps=4).save(tmp_path / "fit")
    other = ViT(TINY.model_copy(update={"dim": 8}))
    model = IsingViT(other, IsingSpikeSlab(other.weight_sites(), coupling=0.5))
    with pytest.raises(InputError, match="does not fit the model and guide given") as caught:
        FitResult.load(tmp_path / "fit", model, LikelihoodGuided(model))
    assert "\n" not in str(caught.value)
    (tmp_path / "fit" / "posterior.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be read"):
        FitResult.load(tmp_path / "fit", *pair())
    (tmp_path / "fit" / "fit.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(InputError, match="format=99; this version reads 2"):
        FitResult.load(tmp_path / "fit", *pair())


def test_a_diverging_fit_is_named(stripes):
    model, guide = pair()
    with torch.no_grad():
        model.network.position.fill_(torch.nan)
    with (
        pytest.warns(UserWarning, match="NaN"),
        pytest.raises(TrainingError, match=r"loss=nan at step .*lower learning_rate="),
    ):
        fit(model, guide, stripes, config=FitConfig(**QUICK), progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_density": 0}, r"target_density=0: Input should be greater than 0"),
        ({"target_density": 2}, r"target_density=2: Input should be less than 1"),
        ({"steps": 0}, "steps=0"),
        ({"pilot": 0.8, "fine_tune": 0.5}, r"pilot=0.8 and fine_tune=0.5 are more than 1"),
        ({"temperature": -1.0}, "temperature.*=-1.0"),
        ({"temperature": "hot"}, "temperature.*='hot'"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"stpes": 3}, "stpes=3"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        FitConfig(**settings)
    assert "\n" not in str(caught.value)


def test_arguments_that_do_not_fit_together_are_refused(stripes):
    model, guide = pair()
    config = FitConfig(**QUICK)
    with pytest.raises(InputError, match="pass validation"):
        fit(model, guide, stripes, config=config.model_copy(update={"temperature": "auto"}))
    with pytest.raises(InputError, match="made for another model"):
        fit(pair()[0], guide, stripes, config=config)
    with pytest.raises(InputError, match="MeanField cannot hold a density"):
        fit(model, MeanField(model), stripes, config=FitConfig(**QUICK | {"target_density": 0.5}))
    with pytest.raises(InputError, match=r"train.classes=5: the network has 3"):
        fit(model, guide, Images(stripes.images, stripes.labels, 5), config=config)
    plain = IsingViT(ViT(TINY), Prior(ViT(TINY).weight_sites()))
    with pytest.raises(InputError, match=r"decided in the Ising phase, and there is none"):
        fit(plain, MeanField(plain), stripes, stripes, config.model_copy(update={"temperature": "auto"}))
    with pytest.raises(InputError, match="device='tpu'"):
        fit(model, guide, stripes, config=FitConfig(**QUICK | {"device": "tpu"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "rate=0.0"),
        ({"estimator": "hessian"}, "estimator='hessian': choose one of"),
        ({"refresh_every": 0}, "refresh_every=0"),
        ({"target_density": 1.2}, "target_density=1.2"),
        ({"initial_scale": 0.0}, "initial_scale=0.0"),
    ],
)
def test_impossible_guides_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        pair(**options)
