"""What a fit's inclusion probabilities are said to mean follows from what was measured."""

from functools import partial

import pytest
import torch

from pyro_isingvit import (
    FeatureSpikeSlab,
    FitConfig,
    InputError,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    MeanField,
    Posterior,
    Prior,
    StructuredSpikeSlab,
    ViT,
    ViTConfig,
    fit,
)
from pyro_isingvit.diagnostics import inclusion_meaning, inclusion_table, measured_reliability, plots
from pyro_isingvit.diagnostics.meaning import LARGEST_GAP
from tests.conftest import QUICK, TINY


def posterior(prior=FeatureSpikeSlab, temperature=1.0, family=LikelihoodGuided, held=None, **options):
    network = ViT(TINY)
    model = IsingViT(network, prior(network.weight_sites()), temperature=temperature)
    guide = family(model, **options)
    if held is not None:
        guide.hold_masks(held)
    return Posterior.of(guide)


def test_what_was_measured_has_every_kind_of_masks():
    table = measured_reliability()
    assert set(table["masks"]) == {"weights", "features", "features alone"}
    for column in ("claimed", "realised", "power", "largest_gap"):
        assert table[column].between(0, 1).all()
    assert (table["fits"] >= 2).all()


def test_only_masks_of_features_alone_at_temperature_one_are_called_probabilities():
    right = inclusion_meaning(posterior(FeatureSpikeSlab, 1.0))
    assert right["site"].tolist() == ["patch_embed"]
    assert right["reads_as"].tolist() == ["probability"]
    measured = measured_reliability().query("masks == 'features alone' and mask_temperature == 1").iloc[0]
    assert measured["largest_gap"] <= LARGEST_GAP
    assert right["realised"].item() == measured["realised"]
    assert right["says"].item().startswith("Probabilities: of what is selected")
    for prior, temperature in ((IsingSpikeSlab, 1.0), (IsingSpikeSlab, 1e-3)):
        row = inclusion_meaning(posterior(prior, temperature)).set_index("site").loc["patch_embed"]
        assert row["reads_as"] == "score"
        assert row["says"].startswith("Scores, not error rates. In the benchmark")


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        ({"temperature": 2.0}, True),
        ({"temperature": 0.01}, False),
        ({"temperature": 1e-3, "mask_temperature": 1.0}, False),
        ({"family": MeanField}, True),
        ({"estimator": "none"}, True),
        ({"fixed_scale": 1e-3}, True),
        ({"unit_scales": True}, True),
        ({"prior": partial(FeatureSpikeSlab, inclusion=0.9)}, True),
        ({"prior": partial(FeatureSpikeSlab, levels={"patch_embed": ("dim",)})}, False),
    ],
)
def test_what_was_not_measured_is_not_called_a_probability(options, quoted):
    """And what was measured far from a setting is not quoted for it."""
    row = inclusion_meaning(posterior(**{"prior": FeatureSpikeSlab, "temperature": 1.0} | options)).iloc[0]
    assert row["reads_as"] == "score"
    assert row["says"].startswith("Scores, not error rates")
    assert (row["realised"] == row["realised"]) == quoted


def test_convolutions_read_no_pixels():
    network = ViT(ViTConfig(image_size=8, patch_size=4, stem="convolutions", dim=4, heads=2, mlp_ratio=2))
    guide = LikelihoodGuided(IsingViT(network, FeatureSpikeSlab(network.weight_sites())))
    assert inclusion_meaning(Posterior.of(guide))["reads_as"].tolist() == ["score"]


def test_the_nearest_measurement_is_quoted():
    table = measured_reliability().query("masks == 'weights'")
    for _, measured in table.iterrows():
        temperature, at = measured["temperature"] * 1.1, measured["mask_temperature"]
        own = None if at == measured["temperature"] else {"patch_embed": at}
        row = inclusion_meaning(posterior(IsingSpikeSlab, temperature, mask_temperature=own)).iloc[0]
        assert (row["claimed"], row["realised"]) == (measured["claimed"], measured["realised"])
        assert f"{measured['realised']:.1%} of what was selected" in row["says"]


def test_sites_without_a_truth_and_held_sites_are_never_called_probabilities():
    held = {"patch_embed": torch.tensor([[1.0, 0.0, 1.0, 1.0]])}
    table = inclusion_meaning(posterior(StructuredSpikeSlab, 1.0, held=held)).set_index("site")
    assert table["reads_as"]["patch_embed"] == "held"
    assert (table["reads_as"].drop("patch_embed") == "score").all()
    assert "another posterior" in table.loc["patch_embed", "says"]
    assert "no known truth" in table.loc["encoder.up", "says"]
    assert table["masks"].to_dict()["encoder.up"] == "units"
    assert table["realised"].isna().all()


def test_the_table_of_inclusion_says_how_to_read_it():
    assert set(inclusion_table(posterior(FeatureSpikeSlab, 1.0))["reads_as"]) == {"probability"}
    assert set(inclusion_table(posterior(IsingSpikeSlab, 1.0))["reads_as"]) == {"score"}


def test_guides_without_masks_are_refused():
    network = ViT(TINY)
    plain = Posterior.of(MeanField(IsingViT(network, Prior(network.weight_sites()))))
    for call in (inclusion_meaning, plots.figure_features):
        with pytest.raises(InputError, match="posterior: "):
            call(plain)


def test_the_picture_shows_every_feature_where_it_is(stripes):
    """Columns of the site run through channels, rows and columns of a patch."""
    config = ViTConfig(image_size=4, patch_size=2, classes=3, channels=3, dim=4, heads=2, mlp_ratio=2)
    network = ViT(config)
    guide = LikelihoodGuided(IsingViT(network, FeatureSpikeSlab(network.weight_sites())))
    probs = torch.linspace(0.05, 0.95, 12).view(1, 12)
    guide.hold_masks({"patch_embed": probs})
    figure = plots.figure_features(Posterior.of(guide))
    pictures = [ax for ax in figure.axes if ax.get_title().startswith("channel")]
    assert len(pictures) == 3
    for channel, ax in enumerate(pictures):
        shown = torch.tensor(ax.images[0].get_array())
        torch.testing.assert_close(shown, probs.view(3, 2, 2)[channel], atol=1e-5, rtol=0)
        assert ax.get_title() == f"channel {channel + 1}: {float(shown.sum()):.1f}"


def test_reading_off_at_temperature_one_leaves_the_fit_as_it_was(stripes):
    network = ViT(TINY)
    guide = LikelihoodGuided(IsingViT(network, IsingSpikeSlab(network.weight_sites())))
    fitted = fit(guide, stripes, None, FitConfig(**QUICK), progress=False).posterior
    before = fitted.inclusion_probabilities()
    fitted.inclusion_probabilities(1.0)
    assert all(torch.equal(probs, before[name]) for name, probs in fitted.inclusion_probabilities().items())
