"""Inclusion by weight, unit, block and role against enumeration; false discovery rates against known masks."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_isingvit import (
    FitConfig,
    Images,
    IndependentSpikeSlab,
    InputError,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    MeanField,
    Posterior,
    Prior,
    StructuredSpikeSlab,
    ViT,
    WeightSite,
    fit,
)
from pyro_isingvit.diagnostics.inclusion import (
    inclusion_dataset,
    inclusion_table,
    stability,
    threshold_table,
)
from pyro_isingvit.diagnostics.units import alive_units, unit_inclusion
from pyro_isingvit.guides import BackwardIsing, LowRank
from pyro_isingvit.network.units import UNITS
from pyro_isingvit.testing import ENUMERABLE, all_masks


@pytest.fixture
def guide(tiny_model):
    guide = LikelihoodGuided(tiny_model, initial_scale=0.3)
    spread(guide)
    return guide


def of(guide):
    return Posterior((guide,))


def spread(guide):
    with torch.no_grad():
        for logit in guide.logit.values():
            logit.normal_()


def test_table_has_a_row_for_each_site_and_block(guide):
    table = inclusion_table(of(guide))
    assert table["site"].iloc[0] == "patch_embed"
    assert table["site"].iloc[-1] == "classifier.out"
    assert table["layer"].dropna().tolist() == [0] * 6 + [1] * 6
    row = table[(table["site"] == "encoder.up") & (table["layer"] == 1)].iloc[0]
    logit = guide.logit["encoder_up"][1]
    assert row["weights"] == logit.numel()
    assert row["expected"] == pytest.approx(logit.sigmoid().mean().item())
    assert row["median"] == pytest.approx((logit >= 0).float().mean().item())
    assert table["weights"].sum() == sum(site.numel for site in guide.model.sites)


def test_intervals_cover_the_share_kept(guide):
    """The share is a mean of independent Bernoullis: normal by the central limit theorem, with known variance."""
    table = inclusion_table(of(guide), interval=0.9, draws=2000).set_index(["site", "layer"])
    probs = guide.inclusion_probabilities()["encoder.up"][0]
    sd = (probs * (1 - probs)).sum().sqrt().item() / probs.numel()
    row = table.loc[("encoder.up", 0)]
    one = 1 / probs.numel()  # the share moves in such steps
    assert row["upper"] - row["lower"] == pytest.approx(2 * 1.645 * sd, abs=2 * one)
    assert row["lower"] < row["expected"] < row["upper"]


def test_inclusion_is_labelled(guide):
    weights = inclusion_dataset(of(guide))
    probs = guide.inclusion_probabilities()
    assert weights["encoder.up"].dims == ("layer", "hidden", "dim")
    assert np.array_equal(weights["encoder.up"].values, probs["encoder.up"].numpy())
    layers = inclusion_dataset(of(guide), by="layer")
    assert layers["encoder.out"].dims == ("layer",)
    assert float(layers["encoder.out"][1]) == pytest.approx(probs["encoder.out"][1].mean().item())
    assert float(inclusion_dataset(of(guide), by="role")["classifier.out"]) == pytest.approx(
        probs["classifier.out"].mean().item()
    )


def test_shared_masks_have_the_dimensions_that_differ(tiny_network):
    model = IsingViT(tiny_network, StructuredSpikeSlab(tiny_network.weight_sites(), coupling=0.1))
    guide = MeanField(model)
    spread(guide)
    assert inclusion_dataset(of(guide))["encoder.query"].dims == ("layer", "head")
    alive = unit_inclusion(of(guide), "head")
    into, out = (inclusion_dataset(of(guide))[role].values for role in ("encoder.value", "encoder.out"))
    assert np.allclose(alive.values, into * out)  # one mask in, one out


@pytest.mark.parametrize("unit", list(UNITS))
def test_unit_inclusion_is_the_frequency_over_draws(guide, unit):
    if unit == "block":  # else both are alive in every draw
        with torch.no_grad():
            for logit in guide.logit.values():
                logit.sub_(3.5)
    exact = unit_inclusion(of(guide), unit)
    drawn = torch.stack([alive_units(of(guide), unit, masks) for masks in of(guide).mask_draws(2000)]).double().mean(0)
    assert exact.dims == UNITS[unit].dims
    assert np.abs(exact.values - drawn.numpy()).max() < 5 * 0.5 / math.sqrt(2000)


def test_a_block_whose_units_share_masks(tiny_network):
    heads = dict.fromkeys(("encoder.value", "encoder.out"), ("layer", "head"))
    both, one = heads, {"encoder.value": heads["encoder.value"]}
    for levels in (both, one):  # exact where value and out share theirs alike, else a frequency over draws
        prior = StructuredSpikeSlab(tiny_network.weight_sites(), levels=levels, coupling=0.1)
        guide = MeanField(IsingViT(tiny_network, prior))
        spread(guide)
        with torch.no_grad():
            for logit in guide.logit.values():
                logit.sub_(3.0)
        drawn = torch.stack([alive_units(of(guide), "block", masks) for masks in of(guide).mask_draws(2000, 1)])
        gap = np.abs(unit_inclusion(of(guide), "block", draws=2000).values - drawn.double().mean(0).numpy()).max()
        assert gap < 5 * 0.5 / math.sqrt(2000) * (1 if levels is both else math.sqrt(2))


def test_unit_inclusion_by_enumeration():
    """All 1,024 states of the masks of a network of ten weights."""
    network = ViT(ENUMERABLE)
    model = IsingViT(network, IsingSpikeSlab(network.weight_sites(), coupling=0.3))
    for guide in (MeanField(model), BackwardIsing(model, initial_strength=0.8)):
        spread(guide)
        expected = sum(
            guide.mask_log_prob(masks).exp().item() * alive_units(of(guide), "hidden", masks).double()
            for masks in all_masks(guide)
        )
        # exact where masks are independent; else a frequency over 4,000 draws
        error = 1e-5 if guide.independent_masks else 5 * 0.5 / math.sqrt(4000)
        assert np.abs(unit_inclusion(of(guide), "hidden", draws=4000).values - expected.numpy()).max() < error


def test_who_has_independent_masks(tiny_model):
    assert MeanField(tiny_model).independent_masks
    assert not LowRank(tiny_model).independent_masks
    assert not BackwardIsing(tiny_model).independent_masks


def test_a_unit_is_alive_if_something_enters_and_leaves_it(guide):
    with torch.no_grad():
        for logit in guide.logit.values():
            logit.fill_(-1.0)
        guide.logit["encoder_up"][0, 3, 1] = guide.logit["encoder_down"][0, 2, 3] = 1.0
        guide.logit["encoder_up"][1, 5] = 1.0  # nothing leaves this one
        guide.logit["encoder_value"][1, 0, 1, 2] = guide.logit["encoder_out"][1, 3, 0, 0] = 1.0
    assert alive_units(of(guide), "hidden").nonzero().tolist() == [[0, 3]]
    assert alive_units(of(guide), "head").nonzero().tolist() == [[1, 0]]
    assert not alive_units(of(guide), "value").any()  # what enters and what leaves are different ones


def test_thresholds(guide):
    probs = torch.cat([p.flatten() for p in guide.inclusion_probabilities().values()]).double()
    table = threshold_table(of(guide), [0.0, 0.5, 0.8, 1.0]).set_index("threshold")
    kept = probs >= 0.8
    assert table.loc[0.8, "density"] == pytest.approx(kept.double().mean().item())
    assert table.loc[0.8, "claimed_false_discovery_rate"] == pytest.approx((1 - probs[kept]).mean().item())
    assert table.loc[0.8, "claimed_false_omission_rate"] == pytest.approx(probs[~kept].mean().item())
    assert table.loc[0.0, "density"] == 1
    assert table.loc[0.0, "claimed_false_omission_rate"] == table.loc[1.0, "claimed_false_discovery_rate"] == 0


def test_stability_of_equal_and_of_unrelated_fits(tiny_model):
    guides = [MeanField(tiny_model) for _ in range(3)]
    for guide in guides:
        torch.manual_seed(1)
        spread(guide)
    table = stability([of(guide) for guide in guides]).set_index("site")
    assert table.loc["all", "rank_correlation"] == pytest.approx(1)
    assert table.loc["all", "r_hat"] == pytest.approx(1)
    assert table.loc["all", "split"] == 0
    for guide in guides:
        spread(guide)
    table = stability([of(guide) for guide in guides]).set_index("site")
    assert abs(table.loc["all", "rank_correlation"]) < 5 / math.sqrt(286)  # of 286 independent weights
    assert table.loc["all", "split"] == pytest.approx(0.75, abs=5 * 0.43 / math.sqrt(286))  # not all alike: 1 - 2 / 8
    # normal logits: E[p (1 - p)] and Var[p] by quadrature give the ratio of their means, the median lies below
    assert 1.05 < table.loc["all", "r_hat"] < 1.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda guide: unit_inclusion(of(guide), "token"), "unit='token': choose one of"),
        (lambda guide: inclusion_table(of(guide), interval=1.0), "interval=1.0"),
        (lambda guide: inclusion_table(of(guide), draws=0), "draws=0"),
        (lambda guide: threshold_table(of(guide), [2.0]), "thresholds=2.0"),
        (lambda guide: stability([of(guide)]), "posteriors: 1 given"),
    ],
)
def test_refusals(guide, call, message):
    with pytest.raises(InputError, match=message):
        call(guide)


@pytest.mark.parametrize(
    "read", [inclusion_dataset, inclusion_table, threshold_table, lambda one: stability([one, one])]
)
def test_a_guide_without_masks_is_refused(tiny_network, read):
    model = IsingViT(tiny_network, Prior(tiny_network.weight_sites()))
    with pytest.raises(InputError, match="MeanField, has no masks"):
        read(of(MeanField(model)))


class Logistic(nn.Module):
    """Logistic regression of two classes on a hundred pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 100))

    def weight_sites(self) -> list[WeightSite]:
        return [WeightSite("weight", (1, 100), ("class", "pixel"), ("pixel",), ("class",))]

    def forward(self, images: Tensor) -> Tensor:
        score = F.linear(2 * images.flatten(1) - 1, self.weight)
        return torch.cat([torch.zeros_like(score), score], -1)


def test_expected_false_discovery_rate_is_the_true_one():
    """Six sparse regressions drawn from the model itself, so that a calibrated posterior is right on average."""
    kept = wrong = expected = variance = 0.0
    for seed in range(6):
        torch.manual_seed(seed)
        network = Logistic()
        truth = torch.bernoulli(torch.full((1, 100), 0.3))
        images = torch.rand(400, 1, 10, 10)
        with torch.no_grad():
            scores = F.linear(2 * images.flatten(1) - 1, truth * torch.randn(1, 100))
        data = Images(images, torch.bernoulli(scores.sigmoid())[:, 0].long(), 2)
        prior = IndependentSpikeSlab(network.weight_sites(), inclusion=0.3, slab_scale=10.0)
        model = IsingViT(network, prior)
        config = FitConfig(steps=600, learning_rate=2e-2, pilot=0.3, temperature=1.0, device="cpu")
        result = fit(LikelihoodGuided(model), data, config=config, progress=False)
        probs = result.posterior.inclusion_probabilities()["weight"]
        among = probs >= 0.5
        table = threshold_table(result.posterior, [0.5])
        kept += among.sum().item()
        wrong += (1 - truth)[among].sum().item()
        expected += table["claimed_false_discovery_rate"].item() * among.sum().item()
        variance += (probs * (1 - probs))[among].sum().item()
    assert kept > 90
    assert 0.05 < expected / kept < 0.2
    # two standard deviations of the number of wrong ones, were they independent
    assert abs(wrong - expected) < 2 * math.sqrt(variance)


def test_units_of_a_network_with_some_of_the_sites(tiny_network):
    """Heads and blocks are told by the sites that lead into them and out; what is not there is named."""
    names = ("encoder.value", "encoder.out", "encoder.up", "encoder.down")
    sites = [site for site in tiny_network.weight_sites() if site.name in names]
    posterior = of(LikelihoodGuided(IsingViT(tiny_network, IndependentSpikeSlab(sites))))
    assert unit_inclusion(posterior, "head").shape == (2, 2)
    assert alive_units(posterior, "block").tolist() == [True, True]
    for call in (unit_inclusion, alive_units):
        with pytest.raises(InputError, match=r"unit='query_key': choose one of \['hidden', 'value', 'head', 'block'\]"):
            call(posterior, "query_key")
