"""Error rates of selections against simulation with a known truth, and what happens where assumptions fail."""

import math

import pandas as pd
import pytest
import scipy.stats
import torch

from pyro_isingvit import (
    FeatureSpikeSlab,
    FitConfig,
    Images,
    InputError,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    Posterior,
    ViT,
    ViTConfig,
    fit,
)
from pyro_isingvit.diagnostics import inclusion_reliability, select
from pyro_isingvit.diagnostics.error_rates import relevance, stable, tail_rates, while_mean_is_below

REPEATS = 400
"""Simulations behind a mean; three of its standard errors are allowed."""


def false_share(selected, irrelevant):
    return float(irrelevant[selected].double().mean()) if selected.any() else 0.0


def simulated(rule, irrelevant=60, relevant=30, **options):
    """Mean and standard error of the false share, and power, of a rule over simulations."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(irrelevant + relevant) < irrelevant
    shares, power = [], []
    for _ in range(REPEATS):
        selected = rule(truth, generator, **options)
        shares.append(false_share(selected, truth))
        power.append(float(selected[~truth].double().mean()))
    shares = torch.tensor(shares)
    return float(shares.mean()), float(shares.std()) / REPEATS**0.5, sum(power) / REPEATS


def by_shadow(irrelevant, generator, fdr, lean=0.0):
    own = torch.randn(len(irrelevant), generator=generator) + torch.where(irrelevant, lean, 4.0)
    return while_mean_is_below(1 - relevance(own - torch.randn(len(irrelevant), generator=generator)), fdr)[0]


@pytest.mark.parametrize("fdr", [0.1, 0.2])
def test_shadows_control_the_rate(fdr):
    mean, error, power = simulated(by_shadow, fdr=fdr)
    assert mean <= fdr + 3 * error
    assert power > 0.5


def test_shadows_fail_where_irrelevant_features_lean_on_relevant_ones():
    mean, error, _ = simulated(by_shadow, fdr=0.1, lean=1.5)
    assert mean > 0.1 + 10 * error


def by_correlated_shadow(irrelevant, generator, fdr, share):
    """Irrelevant features are independent of the relevant ones, but not of each other; nor are their shadows."""
    noise = [torch.randn(len(irrelevant), generator=generator) for _ in range(2)]
    common = [torch.randn(1, generator=generator) for _ in range(2)]
    own, shadow = (share**0.5 * c + (1 - share) ** 0.5 * n for c, n in zip(common, noise, strict=True))
    return while_mean_is_below(1 - relevance(own + torch.where(irrelevant, 0.0, 4.0) - shadow), fdr)[0]


def test_shadows_exceed_the_rate_where_irrelevant_features_are_correlated():
    mean, error, _ = simulated(by_correlated_shadow, fdr=0.1, share=0.0)
    assert mean <= 0.1 + 3 * error
    mean, error, _ = simulated(by_correlated_shadow, fdr=0.1, share=0.9)
    assert mean > 0.1 + 5 * error


def test_probabilities_by_shadows_are_those_of_a_known_mixture():
    """Within .05 of the local rates of normal statistics where the statistic tells something, and 0 below 0."""
    generator = torch.Generator().manual_seed(0)
    irrelevant, n = 0.8, 20_000
    relevant = torch.rand(n, generator=generator) > irrelevant
    statistics = torch.randn(n, generator=generator) + 4.0 * relevant
    found = relevance(statistics)
    null, other = (scipy.stats.norm.pdf(statistics.numpy(), loc) for loc in (0, 4))
    true = torch.from_numpy((1 - irrelevant) * other / (irrelevant * null + (1 - irrelevant) * other))
    above = statistics > 0
    assert not found[~above].any()
    assert (found - true)[above & (true < 0.05)].abs().mean() < 0.05
    assert (found - true)[above & (true > 0.95)].abs().max() < 0.05
    assert (found - true)[above].abs().mean() < 0.02


def test_probabilities_by_shadows_are_right_on_average():
    """Pooled over many small problems, each bin is right within .08, the outer two within .02; measured: .051, .002."""
    generator, found, truth = torch.Generator().manual_seed(1), [], []
    for _ in range(300):
        relevant = torch.arange(500) < 50
        found.append(relevance(torch.randn(500, generator=generator) + 3.5 * relevant))
        truth.append(relevant)
    table = inclusion_reliability(torch.cat(found), torch.cat(truth))
    assert table["gap"].iloc[[0, -1]].abs().max() < 0.02
    assert table["gap"].abs().max() < 0.08


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
def test_means_over_fits_control_the_rate_however_alike_the_fits_are(shared):
    """A share of the noise of a feature is the same in all fits, as its luck with the labels is; the rest is new."""
    generator, shares, power = torch.Generator().manual_seed(2), [], []
    relevant = torch.arange(400) < 40
    for _ in range(100):
        same, new = torch.randn(1, 400, generator=generator), torch.randn(3, 400, generator=generator)
        probs = relevance(shared**0.5 * same + (1 - shared) ** 0.5 * new + 4 * relevant).mean(0)
        selected, _ = while_mean_is_below(1 - probs, 0.1)
        shares.append(false_share(selected, ~relevant))
        power.append(float(selected[relevant].double().mean()))
    error = float(torch.tensor(shares).std()) / 10
    assert sum(shares) / 100 <= 0.1 + 3 * error
    assert sum(power) / 100 > 0.7


def test_statistics_of_zero_say_nothing():
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0))
    found = relevance(torch.cat([noise, torch.zeros(60)]))
    torch.testing.assert_close(found[:40], relevance(noise))
    assert not found[40:].any()


@pytest.mark.parametrize("fits", [1, 3])
def test_shadows_find_nothing_where_nothing_is_relevant(fits):
    generator = torch.Generator().manual_seed(1)
    some = [relevance(torch.randn(fits, 128, generator=generator)).mean(0) for _ in range(200)]
    assert sum(bool(while_mean_is_below(1 - probs, 0.1)[0].any()) for probs in some) <= 4  # 20 would be allowed


def test_probabilities_by_shadows_by_hand():
    """Six above 0 and one below: a level of the five furthest, all above, and one of the two others."""
    q = torch.linspace(0, 0.5, 100_001, dtype=torch.double)[1:-1]
    level = (1 - q) ** 5  # likelihood of five above
    relevant = (level * (1 - q / (1 - q))).mean() / (level.mean() + 0.5**5)
    found = relevance(torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0, 1.0, -2.0]))
    torch.testing.assert_close(found[:5], relevant.expand(5), atol=1e-4, rtol=0)
    assert 0 < found[5] < found[4]
    assert found[6] == 0
    assert not relevance(torch.zeros(4)).any()


def by_null(irrelevant, generator, fdr, shift=0.0):
    scores = torch.randn(len(irrelevant), generator=generator) + torch.where(irrelevant, 0.0, 4.0)
    null = torch.randn(400, generator=generator) - shift
    return tail_rates(scores, null) <= fdr


def test_a_null_controls_the_rate_and_a_wrong_one_does_not():
    mean, error, power = simulated(by_null, fdr=0.1)
    assert mean <= 0.1 + 3 * error
    assert power > 0.5
    wrong, error, _ = simulated(by_null, fdr=0.1, shift=2.0)
    assert wrong > 0.1 + 10 * error


def test_tail_rates_are_those_of_a_known_mixture():
    generator = torch.Generator().manual_seed(0)
    irrelevant, n = 0.8, 20_000
    relevant = torch.rand(n, generator=generator) > irrelevant
    scores = torch.randn(n, generator=generator) + 3.0 * relevant
    found = tail_rates(scores, torch.randn(n, generator=generator))
    null, other = (scipy.stats.norm.sf(scores.numpy(), loc) for loc in (0, 3))
    true = torch.from_numpy(irrelevant * null / (irrelevant * null + (1 - irrelevant) * other))
    # A tail of some hundred of the null is known to 10 % of itself; pi_0 is too high by what is relevant and low.
    somewhere = (true > 0.05) & (true < 0.75)
    assert (found - true)[somewhere].abs().max() < 0.05


def by_stability(irrelevant, generator, fdr, always=0):
    """Ten fits that each select what is relevant with probability .9, and six irrelevant masks at random."""
    chance = torch.where(irrelevant, 6 / int(irrelevant.sum()), 0.9)
    chance[:always] = 1.0
    kept = torch.rand(10, len(irrelevant), generator=generator) < chance
    return stable(kept.double().mean(0), float(kept.double().sum(1).mean()), fdr)[0]


def test_stability_controls_the_rate_where_masks_are_exchangeable():
    mean, error, power = simulated(by_stability, fdr=0.2, irrelevant=300)
    assert mean <= 0.2 + 3 * error
    assert power > 0.5
    wrong, error, _ = simulated(by_stability, fdr=0.2, irrelevant=6000, always=20)
    assert wrong > 0.2 + 10 * error


def test_the_bound_of_stability_by_hand():
    frequency = torch.tensor([1.0, 0.9, 0.6] + [0.1] * 97, dtype=torch.float64)
    # 3 ** 2 / (2 * .9 - 1) / 100 irrelevant at the most, of two; at .6 it would be .45 of three.
    selected, bound = stable(frequency, 3.0, 0.1)
    assert int(selected.sum()) == 2
    assert bound == pytest.approx(0.09 / 0.8 / 2)
    assert int(stable(frequency, 3.0, 0.16)[0].sum()) == 3
    assert not stable(frequency, 10.0, 0.1)[0].any()


def images_of(channels=2, number=120):
    """Class k has row k of the first channel bright; the others are noise."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(number) % 3
    images = 0.3 * torch.rand(number, channels, 4, 4, generator=generator)
    images[torch.arange(number), 0, labels] += 0.6
    return Images(images, labels, 3)


def refit(images, steps=100):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ViTConfig(
            image_size=4, patch_size=4, channels=images.shape[0], classes=3, dim=8, depth=1, heads=2, mlp_ratio=2
        )
        network = ViT(config)
    guide = LikelihoodGuided(IsingViT(network, FeatureSpikeSlab(network.weight_sites())))
    settings = {"steps": steps, "batch_size": 30, "learning_rate": 1e-2, "pilot": 0.4, "temperature": 1.0}
    return fit(guide, images, config=FitConfig(**settings, device="cpu"), progress=False).posterior


@pytest.fixture(scope="module")
def fitted():
    with torch.random.fork_rng():
        return images_of(), refit(images_of())


def test_the_posterior_method_keeps_the_most_probable(fitted, monkeypatch):
    _, posterior = fitted
    probs = torch.tensor([0.99, 0.9, 0.7, 0.3] + [0.01] * 28).view(1, 32)
    monkeypatch.setattr(Posterior, "inclusion_probabilities", lambda self: {"patch_embed": probs})
    found = select(posterior, fdr=0.14)
    assert found.selected.flatten().nonzero().flatten().tolist() == [0, 1, 2]
    assert found.estimated == pytest.approx((0.01 + 0.1 + 0.3) / 3)
    assert "Assumes that the inclusion probabilities are right" in found.assumes
    assert str(found).startswith("3 of 32 masks of patch_embed selected by posterior; false discovery rate 0.14 ")
    assert not select(posterior, fdr=0.005).selected.any()
    assert isinstance(found.table, pd.DataFrame)
    assert list(found.table) == ["patch", "score", "selected"]
    assert found.table["selected"].sum() == 3


@pytest.mark.parametrize(("sharper", "right"), [(1.0, True), (3.0, False)])
def test_the_posterior_method_is_as_right_as_its_probabilities(fitted, monkeypatch, sharper, right):
    """Masks are relevant with a known probability; probabilities that are too sure exceed the rate."""
    generator, shares = torch.Generator().manual_seed(0), []
    for _ in range(200):
        true = torch.rand(32, generator=generator)
        irrelevant = torch.rand(32, generator=generator) > true
        probs = {"patch_embed": (sharper * true.logit()).sigmoid().view(1, 32)}
        monkeypatch.setattr(Posterior, "inclusion_probabilities", lambda self, probs=probs: probs)
        shares.append(false_share(select(fitted[1], fdr=0.1).selected.flatten(), irrelevant))
    shares = torch.tensor(shares)
    error = float(shares.std()) / 200**0.5
    assert (float(shares.mean()) <= 0.1 + 3 * error) is right


def test_ties_are_selected_together_or_not_at_all(fitted, monkeypatch):
    probs = torch.tensor([0.99] + [0.8] * 31).view(1, 32)
    monkeypatch.setattr(Posterior, "inclusion_probabilities", lambda self: {"patch_embed": probs})
    assert int(select(fitted[1], fdr=0.15).selected.sum()) == 1
    assert int(select(fitted[1], fdr=0.195).selected.sum()) == 32


@pytest.mark.parametrize("by", ["shadow", "null", "stability"])
def test_each_method_finds_the_channel_that_matters(fitted, by):
    images, posterior = fitted
    options = {"fits": 4} if by == "stability" else {}
    found = select(posterior, fdr=0.3, by=by, train=images, refit=refit, **options)
    assert found.by == by
    assert found.selected.shape == (1, 32)
    # Of a single selection the share of false ones can be anything; that scores are higher where they should be, not.
    scores = torch.tensor(found.table["score"]).view(2, 4, 4) * (-1 if by == "null" else 1)
    assert scores[0, :3].mean() > scores[1].mean()
    assert found.estimated <= 0.3
    assert found.selected.any() == (found.estimated > 0)
    again = select(posterior, fdr=0.3, by=by, train=images, refit=refit, **options)
    assert torch.equal(found.selected, again.selected)


def test_shadows_are_whole_images_of_the_same_set(fitted):
    images, posterior = fitted
    seen = []

    def watched(both):
        seen.append(both)
        return refit(both, steps=2)

    select(posterior, fdr=0.3, by="shadow", train=images, refit=watched, seed=5)
    place = {image.numpy().tobytes() for image in images.images}
    for both in seen:
        assert torch.equal(both.images[:, :2], images.images)
        assert not torch.equal(both.images[:, 2:], images.images)
        assert {image.numpy().tobytes() for image in both.images[:, 2:].contiguous()} == place
    assert len({both.fingerprint for both in seen}) == len(seen) == 3


def test_halves_complete_each_other(fitted):
    images, posterior = fitted
    seen = []

    def watched(half):
        seen.append({image.numpy().tobytes() for image in half.images})
        return refit(half, steps=2)

    select(posterior, fdr=0.3, by="stability", train=images, refit=watched, fits=4)
    assert [len(half) for half in seen] == [60] * 4
    assert not seen[0] & seen[1]
    assert not seen[2] & seen[3]
    assert seen[0] not in seen[2:]


def test_a_mixture_on_halves_needs_no_refit(fitted):
    images, posterior = fitted
    mixture = Posterior(posterior.guides * 10)
    twice = images[torch.arange(120).repeat(2)]  # of which the posterior's 120 are half
    found = select(mixture, fdr=0.5, by="stability", train=twice)
    kept = posterior.inclusion_probabilities()["patch_embed"] >= 0.5
    assert torch.equal(found.selected, kept)  # all members agree: their frequency is 1
    assert found.estimated == pytest.approx(float(kept.sum()) / 32)
    assert "as half of the training images; assumes that these were drawn at random" in found.assumes
    assert select(mixture, fdr=0.5, by="stability", train=twice[torch.arange(239)]).by == "stability"
    with pytest.raises(InputError, match=r"member 0 was fitted to 120 images, where half of train is 60; use fit_mix"):
        select(mixture, by="stability", train=images)
    with pytest.raises(InputError, match="train=NoneType: give the training images of the mixture"):
        select(mixture, by="stability")
    with pytest.raises(InputError, match="fits=50: by='stability' takes no number of fits here"):
        select(mixture, by="stability", fits=50)
    with pytest.raises(InputError, match="by='stability' fits again"):
        select(Posterior(posterior.guides * 9), by="stability")


def test_a_refit_has_the_same_masks(fitted):
    images, posterior = fitted

    def coarse(images):
        network = ViT(ViTConfig(image_size=4, patch_size=2, channels=2, classes=3, dim=4, heads=2, mlp_ratio=2))
        return Posterior.of(LikelihoodGuided(IsingViT(network, FeatureSpikeSlab(network.weight_sites()))))

    for by in ("null", "stability"):
        with pytest.raises(InputError, match=r"refit: masks of patch_embed of shape \(1, 8\), not \(1, 32\)"):
            select(posterior, by=by, train=images, refit=coarse)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fdr": 0}, r"fdr=0: a rate lies strictly between 0 and 1, e.g. 0.1"),
        ({"fdr": math.nan}, r"fdr=nan"),
        ({"fdr": "0.1"}, r"fdr='0.1'"),
        ({"by": "null", "train": True, "refit": 3}, r"by='null' fits again: give train"),
        ({"by": "knockoff"}, r"by='knockoff': choose one of \['posterior', 'shadow', 'null', 'stability'\]"),
        ({"site": "head"}, r"site='head': the posterior has masks at \['patch_embed'\]"),
        ({"by": "shadow"}, r"by='shadow' fits again: give train, the training images, and refit"),
        ({"refit": refit}, r"by='posterior' needs no refit and no images; leave out train and refit"),
        ({"fits": 3}, r"fits=3: by='posterior' takes no number of fits here"),
        ({"by": "stability", "refit": refit, "train": True, "fits": 3}, r"fits=3: give an even number, at least 4"),
        ({"by": "null", "refit": refit, "train": True, "fits": 0}, r"fits=0"),
        ({"by": "null", "refit": lambda images: 3, "train": True}, r"refit: returned int; return a Posterior"),
        (
            {"by": "shadow", "refit": lambda images: refit(images_of(), 2), "train": True},
            r"build the network and prior of",
        ),
    ],
)
def test_wrong_arguments_are_named(fitted, options, message):
    images, posterior = fitted
    if options.get("train"):
        options = options | {"train": images}
    with pytest.raises(InputError, match=message):
        select(posterior, **options)


def test_shadows_need_masks_of_features(tiny_network, stripes):
    guide = LikelihoodGuided(IsingViT(tiny_network, IsingSpikeSlab(tiny_network.weight_sites())))
    with pytest.raises(InputError, match=r"patch_embed' with masks of shape .*: shadows need one mask for each input"):
        select(Posterior.of(guide), by="shadow", train=stripes, refit=refit)


def test_log_odds_rank_what_probabilities_do_not(fitted):
    posterior = fitted[1]
    guide = posterior.guide
    site = next(site for site in guide.model.sites if site.name == "patch_embed")
    expected = guide.evidence(site) + guide.prior_fields()["patch_embed"]
    torch.testing.assert_close(guide.inclusion_log_odds()["patch_embed"], expected.double())
    guide.hold_masks({"patch_embed": torch.full((1, 32), 0.25)})
    torch.testing.assert_close(guide.inclusion_log_odds()["patch_embed"].exp(), torch.full((1, 32), 1 / 3).double())
