"""Pictures, and a report whose every number is the one from the Python call."""

import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from pyro_isingvit import (
    FitConfig,
    IndependentSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    ViT,
    ViTConfig,
    fit,
    read,
)
from pyro_isingvit.data import Data
from pyro_isingvit.diagnostics import plots
from pyro_isingvit.diagnostics.calibration import metrics, paired_difference
from pyro_isingvit.diagnostics.checks import leave_one_out, posterior_predictive_check, prior_predictive_check
from pyro_isingvit.diagnostics.findings import CHECK_DRAWS, LOO_DRAWS, PRIOR_DRAWS, examine
from pyro_isingvit.diagnostics.inclusion import inclusion_table, threshold_table
from pyro_isingvit.diagnostics.meaning import inclusion_meaning
from pyro_isingvit.diagnostics.report import verdicts, write_report
from pyro_isingvit.diagnostics.shift import outside_scores, rotate, static, under_shift
from pyro_isingvit.diagnostics.units import alive_units, unit_inclusion
from pyro_isingvit.errors import InputError
from pyro_isingvit.experiments import RunConfig, recipe, report, run
from pyro_isingvit.experiments.reading import evaluate
from pyro_isingvit.models import Interaction
from pyro_isingvit.network.units import UNITS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    everything = read("digits")
    settings = recipe("digits", everything) | {"train": 60, "test": 40, "validation": 400, "draws": 4, "members": 1}
    settings["fit"] = settings["fit"] | {"steps": 60, "temperature": 1e-3, "device": "cpu"}
    settings["network"] = settings["network"] | {"dim": 8, "heads": 2, "mlp_ratio": 2}
    out = tmp_path_factory.mktemp("runs") / "digits"
    run(RunConfig(**settings), out, everything, progress=False)
    report(out, progress=False)
    return out


class Numbers(HTMLParser):
    """Value and text of every ``<data>`` element by name, and what the page asks for from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.texts, self.links, self._open = {}, {}, [], None

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "data":
            self._open = attrs["data-name"]
            assert self._open not in self.values
            self.values[self._open] = float(attrs["value"])
        self.links += [attrs[key] for key in ("src", "href") if key in attrs]

    def handle_data(self, data):
        if self._open:
            self.texts[self._open] = self.texts.get(self._open, "") + data

    def handle_endtag(self, tag):
        if tag == "data":
            self._open = None


def test_every_number_is_the_one_from_the_python_call(folder):
    page = Numbers()
    page.feed((folder / "report.html").read_text())
    again = evaluate(folder)
    result, plain, data = again.result, again.deterministic, again.data
    test, seed = data.test, again.config.fit.seed
    assert result.posterior.logit_scale != 1  # a run is calibrated
    expected = {
        "train": len(data.train),
        "validation": len(data.validation),
        "test": len(test),
        "weights": sum(site.numel for site in result.posterior.model.sites),
        "temperature": result.posterior.model.temperature,
        "logit_scale": result.posterior.logit_scale,
        "logit_scale/deterministic": plain.posterior.logit_scale,
        "steps": 60,
        "seconds": result.seconds,
        **result.posterior.densities(),
    }
    predictions = {
        "ising": result.posterior.predict(test.images, 4, seed=seed),
        "deterministic": plain.posterior.predict(test.images, 1),
    }
    probs = {method: p.probs for method, p in predictions.items()} | {
        "median network": result.posterior.predict_plug_in(test.images)
    }
    density = {"ising": result.posterior.densities()["median_density"], "deterministic": 1.0}
    density["median network"] = density["ising"]
    for method in probs:
        scores = metrics(probs[method], test.labels) | {"density": density[method]}
        expected |= {f"scores/{method}/{key}": value for key, value in scores.items()}
    for row in paired_difference(probs["ising"], probs["deterministic"], test.labels).to_dict("records"):
        expected |= {f"difference/{row['score']}": row["difference"], f"difference/{row['score']}/se": row["se"]}
    for unit in UNITS:
        alive = unit_inclusion(result.posterior, unit)
        expected |= {
            f"units/{unit}/total": alive.size,
            f"units/{unit}/expected": float(alive.sum()),
            f"units/{unit}/median": int(alive_units(result.posterior, unit).sum()),
        }
    meaning = inclusion_meaning(result.posterior).set_index("site").loc["patch_embed"]
    expected |= {f"meaning/patch_embed/{rate}": meaning[rate] for rate in ("claimed", "realised")}
    tables = {
        "inclusion": (inclusion_table(result.posterior), ("weights", "expected", "lower", "upper", "median")),
        "thresholds": (
            threshold_table(result.posterior),
            ("threshold", "density", "claimed_false_discovery_rate", "claimed_false_omission_rate"),
        ),
        "checks": (
            posterior_predictive_check(result.posterior, test, draws=CHECK_DRAWS, seed=seed),
            ("observed", "replicated", "lower", "upper", "p_value"),
        ),
        "prior_checks": (
            prior_predictive_check(result.posterior.model, test, draws=PRIOR_DRAWS, seed=seed),
            ("observed", "replicated", "lower", "upper", "p_value"),
        ),
    }
    for name, (table, columns) in tables.items():
        for i, row in enumerate(table.to_dict("records")):
            expected |= {f"{name}/{i}/{column}": row[column] for column in columns}
        if "fails" in table:
            expected |= {f"{name}/failed": table["fails"].sum(), f"{name}/total": len(table)}
    loo = leave_one_out(result.posterior, data.train, LOO_DRAWS, seed)
    expected |= {"loo/k_hat": loo.k_hat, "loo/elpd": loo.elpd, "loo/se": loo.se, "loo/images": 60}
    expected["loo/bad"] = (loo.k > 0.7).sum()
    for method, fitted, draws in (("ising", result, 4), ("deterministic", plain, 1)):
        for row in under_shift(fitted.posterior, test, draws=draws, seed=seed).to_dict("records"):
            for key in ("accuracy", "nll", "ece", "entropy"):
                expected[f"shift/{method}/{row['shift']}/{row['strength']}/{key}"] = row[key]
        for kind, images in (
            ("turned by 90°", rotate(test.images, 90).clamp(0, 1)),
            ("of static", static(test.images)),
        ):
            table = outside_scores(predictions[method], fitted.posterior.predict(images, draws, seed=seed))
            for row in table.to_dict("records"):
                if (method, row["score"]) != ("deterministic", "mutual_information"):
                    for key in ("auroc", "aupr", "fpr95"):
                        expected[f"outside/{kind}/{method}/{row['score']}/{key}"] = row[key]
    assert page.values.keys() == expected.keys()
    for name, value in expected.items():
        assert page.values[name] == pytest.approx(float(value), rel=1e-5, abs=1e-7), name
        shown = page.texts[name].rstrip("%").replace(",", "")
        if shown != "infinite":
            scale = 100 if page.texts[name].endswith("%") else 1
            assert float(shown) == pytest.approx(scale * float(value), rel=0.01, abs=0.51 if "." not in shown else 0.06)


def test_it_opens_without_a_network(folder):
    page = Numbers()
    page.feed((folder / "report.html").read_text())
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png"}
    assert len(list((folder / "figures").iterdir())) == sum(link.startswith("data:") for link in page.links)


def test_a_report_can_be_written_again(folder):
    before = (folder / "report.html").read_text()
    report(folder, progress=False)
    assert (folder / "report.html").read_text() == before


def test_a_report_of_a_fit_in_python_needs_no_run(stripes, tmp_path):
    """No baseline, a prior that cannot draw from its interaction."""

    class Own(Interaction):
        def energy(self, masks):
            return 0.5 * masks["encoder.up"].mean()

    config = ViTConfig(image_size=4, patch_size=2, classes=3, dim=4, heads=2, mlp_ratio=2)
    network = ViT(config)
    prior = IndependentSpikeSlab(network.weight_sites())
    prior.interaction = Own()
    model = IsingViT(network, prior)
    settings = FitConfig(steps=20, temperature=0.1, device="cpu")
    result = fit(LikelihoodGuided(model), stripes, config=settings, progress=False)
    findings = examine(result, Data(stripes, stripes, stripes), draws=3, progress=False)
    assert findings.difference is None
    assert findings.prior_checks is None
    facts = {
        "seed": 0,
        "config": {"dataset": "stripes", "prior": {}, "fit": {"steps": 20, "batch_size": 50}, "draws": 3},
    }
    page = write_report(findings, tmp_path, facts).read_text()
    assert "cannot draw from its interaction" in page
    assert "deterministic" not in page.replace("deterministic network", "")
    assert all(isinstance(text, str) for _, text in verdicts(findings))


def test_pictures_show_the_numbers(folder):
    again = evaluate(folder)
    result, test = again.result, again.data.test
    table = inclusion_table(result.posterior)
    ax = plots.plot_inclusion(result.posterior)
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(table["expected"].tolist())
    mask = plots.plot_mask(result.posterior, "encoder.up", 1)
    probs = result.posterior.inclusion_probabilities()["encoder.up"][1]
    assert np.asarray(mask.images[0].get_array()) == pytest.approx(probs.numpy())
    heads = plots.plot_heads(result.posterior)
    assert heads.images[0].get_array().shape == (10, 2)
    checks = posterior_predictive_check(result.posterior, test, draws=100)
    assert len(plots.plot_check(checks).get_yticks()) == len(checks)
    prediction = result.posterior.predict(test.images[:4], 5)
    assert len(plots.figure_samples(prediction, test.images[:4], test.labels[:4]).axes) == 8
    own = plots.plot_thresholds(result.posterior)
    assert plots.plot_thresholds(result.posterior, ax=own) is own


@pytest.mark.parametrize("worst", [1.0, 0.997, 0.99, 0.92, 0.3, 0.0])
def test_radar_has_a_scale_that_can_be_read(worst):
    scores = {"accuracy": worst, "precision": 1.0, "recall": 1.0, "f1": 1.0, "false_positive_rate": 0.0}
    ax = plots.plot_radar({"ours": scores})
    low, high = ax.get_ylim()
    assert low <= worst
    assert high == 1
    assert 2 <= len(ax.get_yticks()) <= 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: plots.plot_mask(g, "encoder.sideways"), "no masks of that name"),
        (lambda g: plots.plot_mask(g, "encoder.up"), "layer=None: encoder.up has blocks 0 to 1"),
        (lambda g: plots.plot_mask(g, "classifier.out", 1), "layer=1: classifier.out has no blocks"),
        (lambda g: plots.plot_radar({}, plots.plot_thresholds(g)), "need polar axes"),
    ],
)
def test_refusals(folder, call, message):
    with pytest.raises(InputError, match=message):
        call(evaluate(folder).result.posterior)


def test_the_run_is_described(folder):
    facts = json.loads((folder / "run.json").read_text())
    assert facts["config"]["fit"]["temperature"] == 1e-3
    assert math.isclose(evaluate(folder).result.posterior.model.temperature, 1e-3)
