"""Scores against scikit-learn and sums by hand; shifts and images from elsewhere; attention."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from pyro_isingvit import (
    InputError,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    MeanField,
    Posterior,
    Prediction,
    Prior,
    ViT,
)
from pyro_isingvit.diagnostics.attention import attention_maps
from pyro_isingvit.diagnostics.calibration import (
    BINS,
    metrics,
    paired_difference,
    reliability_table,
    risk_coverage,
    selective_accuracy,
)
from pyro_isingvit.diagnostics.shift import SHIFTS, blur, noise, outside_scores, rotate, separation, static, under_shift
from pyro_isingvit.testing import TINY


def predicted(n=500, classes=4):
    torch.manual_seed(3)
    return (3 * torch.rand(n, classes, dtype=torch.double)).softmax(-1), torch.randint(classes, (n,))


def test_metrics():
    probs, labels = predicted()
    scores, guess = metrics(probs, labels), probs.argmax(-1)
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(labels, guess))
    assert scores["nll"] == pytest.approx(sk.log_loss(labels, probs))
    assert scores["brier"] == pytest.approx(np.square(probs.numpy() - np.eye(4)[labels]).sum(1).mean())
    precision, recall, f1, _ = sk.precision_recall_fscore_support(labels, guess, average="macro")
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert scores[name] == pytest.approx(expected, rel=1e-6)
    confusion = sk.confusion_matrix(labels, guess)
    wrong = confusion.sum(0) - confusion.diagonal()
    assert scores["false_positive_rate"] == pytest.approx((wrong / (500 - confusion.sum(1))).mean(), rel=1e-5)
    confidence, right = probs.max(-1).values.numpy(), (guess == labels).numpy()
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = {b: abs(right[bins == b].mean() - confidence[bins == b].mean()) for b in set(bins)}
    expected = sum((bins == b).mean() * gap for b, gap in gaps.items())
    assert scores["ece"] == pytest.approx(expected, abs=1e-6)
    assert scores["mce"] == pytest.approx(max(gaps.values()), abs=1e-6)
    parts = np.array_split(np.argsort(confidence), BINS)
    adaptive = sum(len(part) / 500 * abs(right[part].mean() - confidence[part].mean()) for part in parts)
    assert scores["adaptive_ece"] == pytest.approx(adaptive, abs=0.01)  # bins differ by an image at their ends


def test_reliability_of_calibrated_predictions():
    probs, _ = predicted(20_000)
    labels = torch.multinomial(probs, 1)[:, 0]
    table = reliability_table(probs, labels, bins=10)
    assert table["images"].sum() == 20_000
    inside = (table["lower"] <= table["confidence"]) & (table["confidence"] <= table["upper"])
    assert inside.sum() >= len(table) - 1  # 95 % intervals
    equal = reliability_table(probs, labels, bins=10, equal_mass=True)
    assert set(equal["images"]) == {2000}


def test_paired_difference_is_that_of_the_scores():
    probs, labels = predicted()
    other = torch.rand(500, 4, dtype=torch.double).softmax(-1)
    table = paired_difference(probs, other, labels).set_index("score")
    ours, theirs = metrics(probs, labels), metrics(other, labels)
    for score in ("accuracy", "nll", "brier"):
        assert table.loc[score, "difference"] == pytest.approx(ours[score] - theirs[score], abs=1e-6)
    hits = (probs.argmax(-1) == labels).double() - (other.argmax(-1) == labels).double()
    assert table.loc["accuracy", "se"] == pytest.approx(float(hits.std()) / math.sqrt(500))


def test_selective_accuracy():
    table = selective_accuracy(torch.tensor([0.3, 0.1, 0.2, 0.9]), torch.tensor([True, True, False, False]))
    assert table["coverage"].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert table["accuracy"].tolist() == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])


def test_area_under_the_risk_coverage_curve():
    """By hand; and where images tie, the mean over all orders of these."""
    right = torch.tensor([True, True, False, False])
    found = risk_coverage(torch.tensor([0.3, 0.1, 0.2, 0.9]), right)
    aurc, best = (0 + 1 / 2 + 1 / 3 + 1 / 2) / 4, (0 + 0 + 1 / 3 + 1 / 2) / 4
    assert found == pytest.approx({"aurc": aurc, "excess_aurc": aurc - best})
    assert risk_coverage(torch.arange(4), right)["excess_aurc"] == pytest.approx(0)
    orders = [
        np.mean(np.cumsum([False, *order, False]) / np.arange(1, 6)) for order in itertools.permutations([1, 1, 0])
    ]
    tied = risk_coverage(torch.tensor([0.1, 0.2, 0.2, 0.2, 0.3]), torch.tensor([True, False, True, False, True]))
    assert tied["aurc"] == pytest.approx(np.mean(orders))


def test_metrics_order_images_by_confidence():
    probs, labels = predicted()
    right = probs.argmax(-1) == labels
    risks = 1 - np.cumsum(right.numpy()[np.argsort(-probs.max(-1).values.numpy())]) / np.arange(1, 501)
    assert metrics(probs, labels)["aurc"] == pytest.approx(risks.mean())


def prediction(entropy):
    probs = torch.stack([1 - entropy / 2, entropy / 2], -1)
    return Prediction(probs, probs, probs, entropy, torch.zeros_like(entropy), torch.zeros_like(entropy))


def test_outside_scores_against_scikit_learn():
    inside, outside = torch.rand(80) * 0.6, 0.3 + torch.rand(50) * 0.6
    table = outside_scores(prediction(inside), prediction(outside)).set_index("score")
    truth, values = np.repeat([0, 1], [80, 50]), torch.cat([inside, outside]).numpy()
    assert table.loc["entropy", "auroc"] == pytest.approx(sk.roc_auc_score(truth, values), abs=1e-6)
    assert table.loc["entropy", "aupr"] == pytest.approx(sk.average_precision_score(truth, values), abs=1e-6)
    assert table.loc["mutual_information", "auroc"] == pytest.approx(0.5)
    assert table.loc["mutual_information", "fpr95"] == 1
    false, true, _ = sk.roc_curve(truth, values, drop_intermediate=False)
    assert table.loc["entropy", "fpr95"] == pytest.approx(false[np.argmax(true >= 0.95)], abs=1e-6)


def test_false_positives_where_scores_tie():
    """Nineteen of twenty outside images reach .4, and so do 3 of 10 inside ones."""
    outside = torch.tensor([0.9] * 12 + [0.4] * 7 + [0.1])
    inside = torch.tensor([0.95, 0.4, 0.4, *[0.2] * 7])
    assert separation(inside, outside)["fpr95"] == pytest.approx(0.3)


def test_shifts_do_what_they_say():
    images = torch.zeros(2, 1, 9, 9)
    images[:, :, 1, 4] = 1
    quarter = rotate(images, 90)
    assert quarter[0, 0, 4, 1] == pytest.approx(1, abs=1e-4)
    assert rotate(images, 0) == pytest.approx(images, abs=1e-5)
    grey = torch.full((50, 1, 9, 9), 0.5)
    assert noise(grey, 0.1).std() == pytest.approx(0.1, rel=0.05)
    dot = torch.zeros(1, 1, 9, 9)
    dot[0, 0, 4, 4] = 1
    assert blur(dot, 0.1).sum() == pytest.approx(1, rel=0.01)
    assert blur(dot, 0.1).max() < 0.5
    assert static(grey).std() == pytest.approx(12**-0.5, rel=0.05)
    for shift in SHIFTS.values():
        for strength in range(1, 6):
            assert shift(images, strength).shape == images.shape


def posterior_of(config=TINY, **options):
    network = ViT(config)
    model = IsingViT(network, IsingSpikeSlab(network.weight_sites(), coupling=0.5))
    return Posterior((LikelihoodGuided(model, **options),))


def test_under_shift_has_a_row_for_each_strength(stripes):
    result = posterior_of(initial_scale=0.2)
    table = under_shift(result, stripes, {"noise": SHIFTS["noise"]}, draws=3)
    assert table["strength"].tolist() == list(range(6))
    plain = metrics(result.predict(stripes.images, 3).probs, stripes.labels)
    assert table["nll"].iloc[0] == pytest.approx(plain["nll"])
    shifted = metrics(result.predict(SHIFTS["noise"](stripes.images, 3), 3).probs, stripes.labels)
    assert table["nll"].iloc[3] == pytest.approx(shifted["nll"])
    with pytest.raises(InputError, match="keep the shape"):
        under_shift(result, stripes, {"crop": lambda images, strength: images[..., 1:, 1:]}, draws=1)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_attention_of_a_sure_posterior_is_that_of_the_network(pooling, stripes):
    result = posterior_of(TINY.model_copy(update={"pooling": pooling}), initial_logit=8.0, initial_scale=1e-6)
    found = attention_maps(result, stripes.images[:5], draws=3)
    blocks = []
    with torch.no_grad():
        result.model.network(stripes.images[:5], blocks)
    maps = torch.stack(blocks, 1)
    assert found.mean == pytest.approx(maps, abs=1e-2)  # logit 8 drops a weight now and then
    tokens = maps.shape[-1]
    flow = torch.eye(tokens)
    for block in range(2):
        flow = (0.5 * torch.eye(tokens) + 0.5 * maps[:, block].mean(1)) @ flow
    share = flow.mean(1) if pooling == "mean" else flow[:, 0, 1:]
    assert found.rollout_mean.flatten(1) == pytest.approx(share / share.sum(-1, keepdim=True), abs=1e-2)
    assert found.rollout_mean.sum((1, 2)) == pytest.approx(torch.ones(5))
    assert found.head_inclusion == pytest.approx(torch.ones(2, 2))


def test_attention_spreads_with_the_posterior(stripes):
    found = attention_maps(posterior_of(initial_logit=0.0, initial_scale=0.5), stripes.images[:2], draws=30)
    assert found.sd.max() > 0.01
    assert found.rollout_sd.min() >= 0
    with pytest.raises(InputError, match="draws=0"):
        attention_maps(posterior_of(), stripes.images[:2], draws=0)


def test_a_dead_network_looks_nowhere_in_particular(stripes):
    found = attention_maps(posterior_of(initial_logit=-8.0), stripes.images[:2], draws=2)
    assert found.rollout_mean == pytest.approx(torch.full_like(found.rollout_mean, 0.25), abs=0.01)


def test_attention_without_masks(stripes):
    network = ViT(TINY)
    model = IsingViT(network, Prior(network.weight_sites()))
    result = Posterior((MeanField(model),))
    assert attention_maps(result, stripes.images[:2], draws=2).head_inclusion.tolist() == [[1, 1], [1, 1]]
