"""Conformal sets against quantiles and sets by hand, and coverage against its exact distribution."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import torch

from pyro_isingvit import Images, InputError, IsingViT, Posterior, Prior, Regression, ViT
from pyro_isingvit.diagnostics import ConformalRule, Penalty, conformal, conformal_rule
from pyro_isingvit.diagnostics.conformal_rule import PENALTIES, TUNING
from pyro_isingvit.guides import PointEstimate
from pyro_isingvit.testing import TINY
from tests.conftest import pair

FOUR = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.double)


def two_classes(scores) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and labels of images whose labels have these scores 1 - p, and of which the other class has p."""
    scores = torch.as_tensor(scores, dtype=torch.double)
    return torch.stack([1 - scores, scores], 1), torch.zeros(len(scores), dtype=torch.long)


def with_thresholds(values, **options) -> ConformalRule:
    settings = {"method": "aps", "penalty": None, "random": False, "by_class": False, "seed": 0} | options
    thresholds = torch.as_tensor(values, dtype=torch.double)
    return ConformalRule(0.9, thresholds=thresholds, images=torch.full((len(thresholds),), 9), **settings)


@pytest.mark.parametrize(
    ("images", "coverage", "place"),
    [(9, 0.9, 9), (10, 0.9, 10), (19, 0.9, 18), (20, 0.9, 19), (19, 0.95, 19), (99, 0.7, 70), (4, 0.5, 3), (1, 0.5, 1)],
)
def test_the_threshold_is_the_quantile_by_hand(images, coverage, place):
    scores = torch.arange(1, images + 1) / (images + 2)
    rule = conformal_rule(*two_classes(scores[torch.randperm(images)]), coverage)
    assert float(rule.thresholds[0]) == pytest.approx(float(scores[place - 1]), abs=1e-7)
    assert rule.images.tolist() == [images, images]


def test_coverage_is_exact_in_every_order():
    """Of eight scores each seven calibrate for the eighth: it is covered in ceil(8 * .7) = 6 of the 8 cases."""
    scores = torch.rand(8, dtype=torch.double)
    covered = []
    for new in range(8):
        probs, labels = two_classes(scores)
        rest = torch.arange(8) != new
        rule = conformal_rule(probs[rest], labels[rest], 0.7)
        covered.append(bool(rule.sets(probs[[new]])[0, 0]))
    assert sum(covered) == 6
    assert float(rule.expected_coverage[0]) == 6 / 8


def test_coverage_has_a_beta_distribution():
    """The score of a new image is uniform, so that the threshold is its coverage; Kolmogorov-Smirnov, p above .001."""
    coverages = [float(conformal_rule(*two_classes(torch.rand(30)), 0.9).thresholds[0]) for _ in range(1000)]
    law = scipy.stats.beta(28, 3)  # l = ceil(31 * .9) = 28, n + 1 - l = 3
    assert scipy.stats.kstest(coverages, law.cdf).pvalue > 1e-3
    rule = conformal_rule(*two_classes(torch.rand(30)), 0.9)
    assert float(rule.expected_coverage[0]) == pytest.approx(law.mean())
    assert float(rule.coverage_sd[0]) == pytest.approx(law.std())


@pytest.mark.parametrize("options", [{"method": "aps"}, {"method": "raps"}, {"method": "aps", "random": False}])
def test_coverage_of_every_method(options):
    """Over 150 sets of 40 calibration and 40 new images whose probabilities are wrong; within 4 standard errors."""
    covered, expected = [], []
    for seed in range(150):
        logits = 2 * torch.randn(80, 5, dtype=torch.double)
        labels = torch.multinomial((0.5 * logits).softmax(1), 1)[:, 0]
        rule = conformal_rule(logits[:40].softmax(1), labels[:40], 0.8, seed=seed, **options)
        covered.append(float(rule.evaluate(logits[40:].softmax(1), labels[40:])["coverage"][0]))
        expected.append(float(rule.expected_coverage[0]))
    assert np.mean(covered) == pytest.approx(np.mean(expected), abs=4 * np.std(covered) / 150**0.5)


def test_sets_by_hand():
    """Scores of APS that are not random are 0, .5, .8, .95, what is above; of the threshold, one minus its own."""
    for threshold, held in ((-0.1, 0), (0.0, 1), (0.49, 1), (0.51, 2), (0.81, 3), (0.96, 4)):
        assert with_thresholds([threshold] * 4).sets(FOUR).sum() == held
    found = with_thresholds([0.7] * 4, method="threshold").sets(FOUR)
    assert found.tolist() == [[True, True, False, False]]
    shuffled = with_thresholds([0.6] * 4).sets(FOUR[:, [2, 0, 3, 1]])
    assert shuffled.tolist() == [[False, True, False, True]]


def test_random_sets_are_those_of_the_paper():
    """Romano et al. 2020, equations 4 to 7, for probabilities (.5, .3, .15, .05) and a threshold tau.

    L is the least number of classes whose probabilities reach tau, V = (their sum - tau) / the last of them. The L-th
    class is left out with probability V: of tau = .7, L = 2 and V = 1/3.
    """
    many = FOUR.expand(20_000, 4)
    for tau, smallest, left_out in ((0.7, 2, 1 / 3), (0.9, 3, 1 / 3), (0.3, 1, 0.4)):
        sizes = with_thresholds([tau] * 4, random=True).sets(many).sum(1)
        assert set(sizes.tolist()) == {smallest - 1, smallest}
        share = float((sizes == smallest - 1).double().mean())
        assert share == pytest.approx(left_out, abs=4 * (left_out * (1 - left_out) / 20_000) ** 0.5)


def test_penalised_scores_by_hand():
    """Angelopoulos et al. 2021: the rank of a class beyond the free ones, times the strength, is added to its score."""
    scores = [0.0, 0.5 + 0.1, 0.8 + 0.2, 0.95 + 0.3]
    for k, score in enumerate(scores):
        for gap, held in ((-1e-9, k), (1e-9, k + 1)):
            rule = with_thresholds([score + gap] * 4, method="raps", penalty=Penalty(0.1, 1))
            assert rule.sets(FOUR).sum() == held


def test_the_penalty_is_chosen_on_images_of_its_own():
    probs = (2 * torch.randn(500, 20)).softmax(1)
    labels = torch.multinomial(probs, 1)[:, 0]
    rule = conformal_rule(probs, labels, 0.9, "raps")
    assert rule.penalty.strength in PENALTIES
    assert rule.images.unique().item() == 500 - round(TUNING * 500)
    ranks = (probs >= probs.gather(1, labels.unsqueeze(1))).sum(1).double()
    assert abs(rule.penalty.free - float(ranks.quantile(0.9))) <= 3  # that of a random fifth
    given = conformal_rule(probs, labels, 0.9, "raps", penalty=Penalty(0.2, 3))
    assert (given.penalty, int(given.images[0])) == (Penalty(0.2, 3), 500)


def test_each_class_has_a_threshold_by_hand():
    probs = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.8, 0.2], [0.6, 0.4], [0.5, 0.5]], dtype=torch.double)
    labels = torch.tensor([0, 0, 0, 1, 1])
    rule = conformal_rule(probs, labels, 0.5, by_class=True)
    assert rule.thresholds.tolist() == pytest.approx([0.2, 0.6])  # second of .1, .2, .3; second of .5, .6
    assert rule.images.tolist() == [3, 2]
    assert rule.expected_coverage.tolist() == pytest.approx([2 / 4, 2 / 3])
    table = rule.evaluate(torch.tensor([[0.85, 0.15], [0.55, 0.45], [0.55, 0.45]]), torch.tensor([0, 0, 1]))
    assert table["class"].tolist() == ["all", 0, 1]
    assert table["images"].tolist() == [3, 2, 1]
    assert table["coverage"].tolist() == pytest.approx([2 / 3, 1 / 2, 1])
    assert table["size"].tolist() == pytest.approx([1, 1, 1])
    assert table["single"].tolist() == [1, 1, 1]
    assert table["empty"].tolist() == [0, 0, 0]


def test_coverage_by_class_where_the_classes_differ():
    """One class is predicted badly: alike for all the sets miss it, by class they hold it."""
    logits = torch.randn(4000, 3, dtype=torch.double)
    labels = torch.arange(4000) % 3
    logits[torch.arange(4000), labels] += torch.tensor([4.0, 2.0, 0.0], dtype=torch.double)[labels]
    probs, half = logits.softmax(1), slice(0, 2000)
    rest = slice(2000, 4000)
    tables = [
        conformal_rule(probs[half], labels[half], by_class=each).evaluate(probs[rest], labels[rest]).set_index("class")
        for each in (False, True)
    ]
    assert tables[0].loc[2, "coverage"] < 0.8
    sd = (0.9 * 0.1 * (1 / 667 + 1 / 667)) ** 0.5  # of calibration and of test images
    for k in range(3):
        assert tables[1].loc[k, "coverage"] == pytest.approx(0.9, abs=4 * sd)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (8, {}, r"8 images are fewer than the 9 that coverage=0\.9 needs: every class is in every set"),
        (18, {"coverage": 0.95}, "18 images are fewer than the 19"),
        (40, {"by_class": True}, r"fewer images than the 9 .* are in every set: 1 \(0\);"),
    ],
)
def test_too_few_images_are_named(images, options, message):
    probs, labels = two_classes(torch.rand(images))
    with pytest.warns(UserWarning, match=message):
        rule = conformal_rule(probs, labels, **options)
    sets = rule.sets(probs)
    assert sets[:, rule.thresholds.isinf()].all()
    assert float(rule.expected_coverage[1]) == 1
    assert float(rule.coverage_sd[1]) == 0


def test_sets_of_a_posterior(stripes):
    posterior = Posterior.of(pair()[1], names=("a", "b", "c"))
    sets = conformal(posterior, stripes, draws=4, method="aps", seed=3)
    probs = posterior.predict(stripes.images, 4, seed=3).probs
    rule = conformal_rule(probs, stripes.labels, method="aps", seed=3)
    assert torch.equal(sets.rule.thresholds, rule.thresholds)
    assert torch.equal(sets.sets(stripes.images), rule.sets(probs))
    table = sets.evaluate(stripes)
    assert table["class"].tolist() == ["all", "a", "b", "c"]
    assert table["coverage"].tolist() == rule.evaluate(probs, stripes.labels)["coverage"].tolist()
    with pytest.warns(UserWarning, match=r"every set: a \(2\), b \(2\), c \(2\)"):
        conformal(posterior, stripes[torch.arange(6)], by_class=True, draws=2)


def test_random_numbers_of_calibration_and_new_images_differ():
    probs = torch.full((500, 4), 0.25)
    labels = torch.zeros(500, dtype=torch.long)
    first, again = (conformal_rule(probs, labels, method="aps") for _ in range(2))
    assert torch.equal(first.sets(probs), again.sets(probs))
    u = torch.rand(500, 1, generator=torch.Generator().manual_seed(-1), dtype=torch.double)
    assert float(first.thresholds[0]) == pytest.approx(float(0.25 * u.flatten().sort().values[math.ceil(450.9) - 1]))
    covered = first.sets(probs)[:, 0]
    assert not torch.equal(covered, (0.25 * u <= first.thresholds[0])[:, 0])


def test_order_of_the_quantile_is_that_of_exact_arithmetic():
    for images, coverage in itertools.product(range(1, 60), (0.1, 0.7, 0.9, 0.95, 0.99)):
        place = -((images + 1) * Fraction(str(coverage)) // -1)
        rule = with_thresholds([0.5], by_class=False)
        rule = ConformalRule(coverage, "aps", rule.thresholds, torch.tensor([images]), None, False, False, 0)
        assert float(rule.expected_coverage[0]) == pytest.approx(int(place) / (images + 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coverage": 1.0}, r"coverage=1\.0: must lie strictly between 0 and 1"),
        ({"coverage": 90}, "coverage=90: must lie"),
        ({"penalty": (0.1, 2), "method": "raps"}, r"penalty=\(0.1, 2\): give a Penalty"),
        ({"seed": "a"}, "seed='a': must be an integer"),
        ({"method": "lac"}, "method='lac': choose one of"),
        ({"penalty": Penalty(0.1, 1)}, "only 'raps' has one"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        conformal_rule(*two_classes(torch.rand(20)), **options)


def test_other_refusals(stripes):
    probs, labels = two_classes(torch.rand(20))
    with pytest.raises(InputError, match=r"need \(n, classes\) and \(n,\)"):
        conformal_rule(probs, labels[:3])
    with pytest.raises(InputError, match=r"labels within \[2, 2\]"):
        conformal_rule(probs, labels + 2)
    for wrong in (probs.log(), 2 * probs, torch.full((20, 2), math.nan), 1 - 2 * probs):
        with pytest.raises(InputError, match=r"probs\[0\]=.*: must be probabilities that sum to 1; give softmax"):
            conformal_rule(wrong, labels)
        with pytest.raises(InputError, match="must be probabilities"):
            conformal_rule(probs, labels).sets(wrong)
    with pytest.raises(InputError, match=r"labels of type torch.float32: give classes as integers"):
        conformal_rule(probs, labels.float())
    with pytest.raises(InputError, match="labels=list: give a tensor or an array"):
        conformal_rule(probs, [[1], [1, 2]])
    with pytest.raises(InputError, match=r"labels of shape \(3,\): need"):
        conformal_rule(probs, labels).evaluate(probs, labels[:3])
    with pytest.raises(InputError, match=r"labels within \[-1, -1\]"):
        conformal_rule(probs, labels).evaluate(probs, labels - 1)
    with pytest.raises(InputError, match=r"need \(n, 2\), as calibrated"):
        conformal_rule(probs, labels).sets(FOUR)
    with pytest.raises(InputError, match="strength=-1: must be a number from 0"):
        Penalty(-1, 2)
    with pytest.raises(InputError, match=r"free=0\.5: must be a number of classes"):
        Penalty(0.1, 0.5)
    posterior = Posterior.of(pair()[1])
    with pytest.raises(InputError, match=r"calibration.classes=4: the network has 3"):
        conformal(posterior, Images(stripes.images, stripes.labels, 4))
    network = ViT(TINY.model_copy(update={"classes": 1}))
    model = IsingViT(network, Prior(network.weight_sites()), likelihood=Regression())
    with pytest.raises(InputError, match="predict_targets has intervals"):
        conformal(Posterior((PointEstimate(model),)), stripes)
