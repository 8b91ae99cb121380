"""The scikit-learn estimator: its own checks of estimators, forms of images and labels, searches and pipelines."""

import io
import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler
from sklearn.utils.estimator_checks import check_classifiers_train, parametrize_with_checks

from pyro_isingvit import InputError, IsingClassifier, Posterior
from pyro_isingvit.diagnostics import inclusion_table

TINY = {"patch_size": 2, "dim": 8, "depth": 1, "heads": 1, "mlp_ratio": 2, "draws": 3, "device": "cpu"}

QUICK = TINY | {"steps": 5, "batch_size": 20, "learning_rate": 3e-2, "temperature": 1e-2, "random_state": 0}

ROWS = QUICK | {"image_shape": (1, -1), "patch_size": 1, "validation_fraction": 0}
"""For the checks, whose tables have any number of features: each row is an image of one line, a pixel a token."""

EXPECTED = {
    "check_classifiers_train": "two steps do not learn; test_it_learns_what_scikit_learn_asks_for runs it with sixty",
}


@parametrize_with_checks(
    [IsingClassifier(**ROWS | {"steps": 2, "draws": 2})], expected_failed_checks=lambda estimator: EXPECTED
)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_it_learns_what_scikit_learn_asks_for():
    """An accuracy above .83 on blobs, and probabilities that agree with the answers."""
    check_classifiers_train("IsingClassifier", IsingClassifier(**ROWS | {"steps": 60}))


@pytest.fixture
def striped(stripes):
    return stripes.images.permute(0, 2, 3, 1).numpy(), np.array(["low", "mid", "top"])[stripes.labels.numpy()]


def fitted(X, y, **settings):  # noqa: N803
    return IsingClassifier(**QUICK | settings).fit(X, y)


def test_images_of_every_form_are_the_same(striped):
    images, labels = striped
    forms = {"channels": images, "grey": images[..., 0], "flat": images.reshape(60, -1)}
    probs = {name: fitted(X, labels).predict_proba(X) for name, X in forms.items()}
    assert np.array_equal(probs["channels"], probs["grey"])
    assert np.array_equal(probs["channels"], probs["flat"])
    found = fitted(images, labels)
    assert np.array_equal(found.predict_proba(forms["flat"].tolist()), probs["flat"])
    assert (found.image_shape_, found.n_features_in_) == ((4, 4, 1), 16)


def test_channels_and_rows_have_their_places():
    X = np.arange(4 * 2 * 4 * 3).reshape(4, 2, 4, 3) / 95  # noqa: N806
    one = fitted(X, [0, 1, 0, 1], steps=1, validation_fraction=0)
    two = fitted(X.reshape(4, -1), [0, 1, 0, 1], steps=1, validation_fraction=0, image_shape=(2, -1, 3))
    assert one.image_shape_ == two.image_shape_ == (2, 4, 3)
    expected = torch.from_numpy(X).float().permute(0, 3, 1, 2)
    for estimator in (one, two):
        torch.testing.assert_close(estimator.to_images(X, [0, 1, 0, 1]).images, expected)
    assert np.array_equal(one.predict_proba(X), two.predict_proba(X))


def test_values_are_scaled_by_those_of_the_fit(striped):
    images, labels = striped
    images = (255 * images).round().astype(np.uint8)
    found = fitted(images, labels)
    assert found.pixel_range_ == (images.min(), images.max())
    again = fitted(images / 10 - 7, labels)
    assert again.predict_proba(images / 10 - 7) == pytest.approx(found.predict_proba(images), abs=1e-5)
    beyond = np.where(images == images.max(), 500.0, images)  # clipped
    assert np.array_equal(found.predict_proba(beyond), found.predict_proba(images))
    same = np.ones((60, 4, 4))
    assert np.isfinite(fitted(same, labels, steps=2).predict_proba(same)).all()


def test_it_predicts_labels_as_its_posterior_does(striped):
    images, labels = striped
    found = fitted(images, labels, steps=60, temperature=1e-3)
    assert found.classes_.tolist() == ["low", "mid", "top"]
    assert found.score(images, labels) == accuracy_score(labels, found.predict(images)) > 0.8
    inside = found.to_images(images, labels)
    assert (inside.names, inside.labels.tolist()) == (("low", "mid", "top"), [0, 1, 2] * 20)
    prediction = found.posterior_.predict(inside.images, 3)
    assert found.predict(images).tolist() == prediction.classes
    assert np.array_equal(found.predict_proba(images), prediction.probs.numpy())
    assert "patch_embed" in set(inclusion_table(found.posterior_)["site"])
    ints = fitted(images, [{"low": -1, "mid": 7, "top": 30}[label] for label in labels], steps=60, temperature=1e-3)
    assert ints.classes_.tolist() == [-1, 7, 30]
    assert np.array_equal(ints.predict(images) == 7, found.predict(images) == "mid")


def test_held_out_images_choose_temperature_and_scale(striped, monkeypatch):
    images, labels = striped
    held, calibrate = [], Posterior.calibrate

    def seen(self, held_out, *arguments):
        held.append(held_out.labels.bincount().tolist())
        return calibrate(self, held_out, *arguments)

    monkeypatch.setattr(Posterior, "calibrate", seen)
    searched = fitted(images, labels, temperature="auto", steps=20)
    assert searched.result_.trials["chosen"].sum() == 1
    assert held[-1] == [4, 4, 4]  # a fifth of each class
    number = fitted(images, labels, validation_fraction=0.5, steps=40)
    assert held[-1] == [10, 10, 10]
    assert number.posterior_.logit_scale != 1
    assert number.result_.posterior is number.posterior_
    calls = len(held)
    assert fitted(images, labels, validation_fraction=0).posterior_.logit_scale == 1
    assert len(held) == calls


def test_members(striped):
    images, labels = striped
    found = fitted(images, labels, members=2)
    assert len(found.posterior_.members) == 2
    assert np.array_equal(fitted(images, labels, members=2).predict_proba(images), found.predict_proba(images))
    other = fitted(images, labels, members=2, random_state=1)
    assert not np.array_equal(other.predict_proba(images), found.predict_proba(images))


def test_a_clone_a_pickle_and_a_file_are_the_same(striped, tmp_path):
    images, labels = striped
    found = fitted(images, labels, augment="digits")
    probs = found.predict_proba(images)
    assert clone(found).get_params() == found.get_params()
    assert not hasattr(clone(found), "posterior_")
    assert np.array_equal(clone(found).fit(images, labels).predict_proba(images), probs)
    assert np.array_equal(pickle.load(io.BytesIO(pickle.dumps(found))).predict_proba(images), probs)
    joblib.dump(found, tmp_path / "fit.joblib")
    assert np.array_equal(joblib.load(tmp_path / "fit.joblib").predict_proba(images), probs)


def test_a_search_over_the_prior_of_digits():
    X, y = load_digits(n_class=3, return_X_y=True)  # noqa: N806
    grid = {"inclusion": np.array([0.1, 0.9]), "coupling": [0.0, 1.0]}
    settings = QUICK | {"patch_size": np.int64(4), "steps": np.int64(15), "pilot": 0.1, "temperature": 0.1}
    search = GridSearchCV(IsingClassifier(**settings), grid, cv=2, error_score="raise", scoring="neg_log_loss").fit(
        X[:60], y[:60]
    )
    losses = search.cv_results_["mean_test_score"]
    assert len(set(losses)) == 4  # each has its effect
    assert search.best_score_ == max(losses)
    prior = search.best_estimator_.posterior_.model.prior
    assert float(prior.coupling) == search.best_params_["coupling"]
    assert float(prior.inclusion_of(next(iter(prior.sites.values())))) == search.best_params_["inclusion"]


def test_a_pipeline():
    X, y = load_digits(n_class=3, return_X_y=True)  # noqa: N806
    settings = QUICK | {"patch_size": 4, "steps": 60, "temperature": 1e-3}
    square = FunctionTransformer(lambda flat: flat.reshape(-1, 8, 8))
    pipeline = make_pipeline(MinMaxScaler(), square, IsingClassifier(**settings)).fit(X[:90], y[:90])
    assert pipeline.score(X[90:300], y[90:300]) > 0.6  # chance is a third
    pipeline.set_params(isingclassifier__steps=1)
    assert pipeline[-1].steps == 1


@pytest.mark.parametrize(
    ("X", "settings", "message"),
    [
        (np.ones((6, 10)), {}, r"X of 10 features: no square grey images; give image_shape=\(height, width\)"),
        (np.ones((6, 12)), {"image_shape": (5, -1)}, r"image_shape=\(5, -1\): does not hold the 12 features"),
        (np.ones((6, 12)), {"image_shape": (12,)}, r"image_shape=\(12,\): give \(height, width\), or"),
        (np.ones((6, 12)), {"image_shape": 3.5}, r"image_shape=3\.5: does not hold"),
        (np.ones((6, 4, 4)), {"image_shape": (2, 8)}, r"X has images of shape \(4, 4, 1\); leave image_shape out"),
        (np.ones((6, 4, 4)), {"validation_fraction": 1.0}, r"validation_fraction=1\.0: must lie within \[0, 1\)"),
        (np.ones((6, 4, 4)), {"validation_fraction": "a"}, r"validation_fraction='a': must lie within \[0, 1\)"),
        (np.ones((6, 4, 4)), {"draws": 0}, "draws=0: must be an integer"),
        (np.ones((6, 4, 4)), {"validation_fraction": 0.9}, "cannot hold out at least one of each and leave one"),
        (np.ones((6, 4, 4)), {"validation_fraction": 0, "temperature": "auto"}, "the search needs images to choose on"),
        (np.ones((6, 4, 4)), {"inclusion": 2.0, "validation_fraction": 0}, r"inclusion=2\.0"),
        (np.ones((6, 4, 4)), {"steps": 0, "validation_fraction": 0}, "steps=0"),
        (np.ones((6, 4, 4)), {"patch_size": 3, "validation_fraction": 0}, "patch_size=3 does not divide"),
        (np.ones((6, 4, 4)), {"members": 0, "validation_fraction": 0}, "members=0: must be an integer"),
    ],
)
def test_refusals(X, settings, message):  # noqa: N803
    with pytest.raises(InputError, match=message):
        fitted(X, np.arange(6) % 3, **settings)


def test_images_of_another_shape_are_refused(striped):
    images, labels = striped
    found = fitted(images, labels, steps=1)
    with pytest.raises(InputError, match=r"X of images of shape \(2, 8, 1\): .* was fitted to \(4, 4, 1\)"):
        found.predict(images.reshape(60, 2, 8))
    with pytest.raises(InputError, match=r"y: np.str_\('up'\) is none of the labels of fit, \['low', 'mid', 'top'\]"):
        found.to_images(images[:2], ["low", "up"])
    with pytest.raises(ValueError, match="X has 8 features, but IsingClassifier is expecting 16"):
        found.predict(images[:, :2])


def test_the_package_does_not_import_scikit_learn():
    code = (
        "import sys, pyro_isingvit; sys.exit(any(name.split('.')[0] in ('sklearn', 'joblib') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
