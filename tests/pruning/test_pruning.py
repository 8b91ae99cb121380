"""From a posterior to a smaller network: what is decided on, ensembles, training on, and the price."""

import math

import numpy as np
import pytest
import torch

import pyro_isingvit as iv
from pyro_isingvit.pruning import costs, decide, shrink
from tests.pruning.networks import CONFIG, IMAGES, LEVEL_DIMS, PLAIN, WITH_STEM, WITH_TOKEN, network_of, posterior_of

# --- decisions --------------------------------------------------------------------------------------------------------


def test_weights_by_threshold_and_by_density():
    result = posterior_of()
    assert all(
        torch.equal(mask, result.guide.median_masks()[name]) for name, mask in decide(result, "weight").masks.items()
    )
    masks = decide(result, "weight", density=0.2).masks
    probs = result.inclusion_probabilities()
    kept = torch.cat([p[masks[name] == 1] for name, p in probs.items()])
    dropped = torch.cat([p[masks[name] == 0] for name, p in probs.items()])
    assert len(kept) == (len(kept) + len(dropped)) // 5
    assert kept.min() >= dropped.max()
    small = iv.prune(result, "weight")
    probs = result.predict_plug_in(IMAGES)  # the median-probability model
    assert (small(IMAGES).softmax(-1) - probs).abs().max() < 1e-5


@pytest.mark.parametrize("level", list(LEVEL_DIMS))
def test_units_by_probability(level):
    """Those that stay are the more probable ones, as many as asked for."""
    from pyro_isingvit.diagnostics.units import unit_inclusion
    from pyro_isingvit.network.units import units_at

    result = posterior_of(iv.StructuredSpikeSlab)
    for unit in [unit.name for unit in units_at(level)]:
        alive = torch.from_numpy(unit_inclusion(result, unit).values)
        assert torch.equal(decide(result, level, threshold=0.4).kept[unit], alive >= 0.4)
        kept = decide(result, level, density=0.5).kept[unit]
        assert len(units_at(level)) > 1 or kept.sum() == max(1, kept.numel() // 2)
        assert kept.all() or alive[kept].min() >= alive[~kept].max() - 1e-12


def encoder_weights(network):
    return sum(p.numel() for name, p in network.named_parameters() if name.startswith("layers.") and p.dim() == 2)


def test_density_is_a_share_of_the_weights_of_all_kinds():
    result = posterior_of()
    with torch.no_grad():
        for logit in result.guide.logit.values():
            logit.add_(8.0)  # all weights are in, so that units that stay stay whole
    whole = encoder_weights(iv.pruning.shrink(result.model.network))
    for level, largest in ((("hidden", "head_dim"), 16), (("hidden", "head"), 128)):
        share = encoder_weights(iv.prune(result, level, density=0.5)) / whole
        # the constant part of queries that go is one unit for each head
        assert 0.5 - largest / whole < share <= 0.5 + 4 * 16 / whole
    each = decide(result, density={"hidden": 0.25, "head": 0.5})
    assert each.kept["hidden"].sum() == 6
    assert each.kept["head"].sum() == 2


def test_units_without_masks_stay():
    class Partly(iv.IndependentSpikeSlab):
        def mask(self, site):
            return super().mask(site) if site.name in ("encoder.up", "encoder.down") else None

        def weight(self, site, mask):
            return super().weight(site, torch.ones(site.shape) if mask is None else mask)

    network = network_of(CONFIG, 9)
    model = iv.IsingViT(network, Partly(network.weight_sites()))
    kept = decide(iv.Posterior((iv.MeanField(model),)), ("hidden", "head_dim"), density=0.25).kept
    assert kept["value"].all()
    assert kept["query_key"].all()
    assert kept["hidden"].sum() == 6
    for level in ("block", "head"):
        assert decide(iv.Posterior((iv.MeanField(model),)), level, density=0.25).kept[level].all()


def test_density_ranks_units_that_are_all_alive():
    """Of units whose probability rounds to 1, those with more to lose stay."""
    result = posterior_of()
    with torch.no_grad():
        for role in ("encoder_up", "encoder_down"):
            result.guide.logit[role].fill_(20.0)
        result.guide.logit["encoder_up"][:, ::2] = 5.0
    kept = decide(result, "hidden", density=0.5).kept["hidden"]
    assert not kept[:, ::2].any()
    assert kept[:, 1::2].all()


@pytest.mark.parametrize("level", list(LEVEL_DIMS))
def test_a_unit_that_goes_leaves_its_mean(level):
    """Where what it reads is at the LayerNorm's centre its mean is all it gives, so that nothing changes."""
    network = network_of(CONFIG, 3)
    model = iv.IsingViT(network, iv.IndependentSpikeSlab(network.weight_sites()))
    guide = iv.MeanField(model, initial_logit=20.0)
    result = iv.Posterior((guide,))
    with torch.no_grad():  # no scale: every LayerNorm gives its bias, whatever the image
        for name in ("encoder.attention_norm", "encoder.mlp_norm", "norm.weight"):
            network.get_parameter(name).zero_()
        images = torch.full_like(IMAGES, CONFIG.pixel_mean) if level == "patch" else IMAGES
        whole = network(images)
        small = iv.prune(result, level, density=0.4)
    assert (small(images) - whole).abs().max() < 1e-4
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in iv.pruning.shrink(network).parameters())


def test_a_spike_with_a_mean_keeps_it():
    class Off(iv.MeanField):
        def weight(self, site, mask):
            slab = self.slab(site)
            if mask is None:
                return slab.to_event(len(site.shape))
            spike = iv.Gaussian(torch.tensor(0.05), torch.tensor(-5.0), site.shape)
            return iv.SpikeAndSlab(mask, slab, spike, len(site.shape))

    network = network_of(CONFIG, 4)
    model = iv.IsingViT(network, iv.IndependentSpikeSlab(network.weight_sites(), spike_scale=0.1))
    guide = Off(model, initial_logit=-3.0)
    with torch.no_grad():
        guide.logit["encoder_up"][:, ::3] = 3.0
    result = iv.Posterior((guide,))
    small = iv.prune(result, "weight")
    assert (small(IMAGES).softmax(-1) - result.predict_plug_in(IMAGES)).abs().max() < 1e-5
    assert (small.patch_embed == torch.tensor(0.05)).all()
    draws = iv.pruning.prune_draws(result, draws=2, level="weight")
    assert draws.config.layers == small.config.layers
    assert draws.config.patch_features == 16


def test_fixed_masks_hold():
    result = posterior_of(seed=5)
    masks = {site.name: torch.ones(site.shape) for site in result.model.sites}
    masks["encoder.up"][:, 4:] = 0
    result.model.fix_masks(masks)
    with torch.no_grad():
        result.guide.logit["encoder_up"].fill_(-9.0)  # by its probability no unit would stay
    weights = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    assert all(decide(result, "weight", density=weights).masks[name].equal(mask) for name, mask in masks.items())
    more = decide(result, "weight", density=1.0).masks
    assert all(more[name].equal(mask) for name, mask in masks.items())  # what is out is out
    for options in ({}, {"density": 1.0}, {"density": 8 / 24}):
        small = iv.prune(result, "hidden", **options)
        assert [layer.hidden for layer in small.config.layers if layer.hidden] == [4, 4]
        assert (small(IMAGES).softmax(-1) - result.predict_plug_in(IMAGES)).abs().max() < 1e-5


@pytest.mark.parametrize("family", [iv.guides.LowRank, iv.guides.BackwardIsing])
def test_correlated_masks_rank_too(family):
    """Of units that are alive in every draw the more probable stay, not those of the first block."""
    network = network_of(CONFIG, 6)
    model = iv.IsingViT(network, iv.IsingSpikeSlab(network.weight_sites(), coupling=0.1))
    guide = family(model)
    assert not guide.independent_masks
    with torch.no_grad():
        for logit in guide.logit.values():
            logit.fill_(6.0)
        guide.logit["encoder_up"][0] = 3.0
    kept = decide(iv.Posterior((guide,)), "hidden", density=0.5).kept["hidden"]
    assert not kept[0].any()
    assert kept[1].all()


# --- an ensemble of draws ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, WITH_TOKEN, PLAIN, WITH_STEM])
def test_an_ensemble_is_its_draws(config):
    network = network_of(config, 7)
    model = iv.IsingViT(network, iv.StructuredSpikeSlab(network.weight_sites(), coupling=0.1))
    guide = iv.MeanField(model, initial_logit=0.5)
    result = iv.Posterior((guide,), logit_scale=0.6)
    ensemble = iv.pruning.prune_draws(result, draws=4, density=1.0, seed=3)
    draws = [0.6 * draw.logits(IMAGES) for draw in result.draws(4, 3)]
    expected = torch.stack(draws)
    assert (ensemble(IMAGES) - expected).abs().max() < 1e-5
    assert max(layer.hidden for layer in ensemble.config.layers) < 12
    smaller = iv.pruning.prune_draws(result, draws=4, density={"hidden": 0.25}, seed=3)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in ensemble.parameters())


# --- training on, and the price ---------------------------------------------------------------------------------------


def test_fine_tuning_trains_the_small_network():
    labels = torch.arange(6) % 3
    images = iv.Images(IMAGES, labels, classes=10)
    small = iv.prune(posterior_of(), density=0.5)
    before = torch.nn.functional.cross_entropy(small(IMAGES), labels)
    history = iv.pruning.fine_tune(
        small, images, config=iv.FitConfig(steps=200, batch_size=6, learning_rate=1e-2), progress=False
    )
    after = torch.nn.functional.cross_entropy(small(IMAGES), labels)
    assert after < 0.5 * before
    assert history["nll"].iloc[-1] == pytest.approx(after.item(), abs=1e-5)
    assert all(p.requires_grad for p in small.parameters())


def test_what_was_cut_stays_cut_and_a_failure_changes_nothing():
    images = iv.Images(IMAGES, torch.arange(6) % 3, classes=10)
    small = iv.prune(posterior_of(), "weight", density=0.4)
    zeros = {name: p == 0 for name, p in small.named_parameters() if p.dim() == 2 and name != "position"}
    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    assert sum(int(zero.sum()) for zero in zeros.values()) > 100
    for steps in (60, 1):  # the last step's harm is seen by nobody but fine_tune
        with pytest.raises(iv.TrainingError):
            iv.pruning.fine_tune(small, images, config=iv.FitConfig(steps=steps, learning_rate=1e30), progress=False)
    assert all(torch.equal(p, before[name]) for name, p in small.named_parameters())
    assert not small.training
    iv.pruning.fine_tune(small, images, config=iv.FitConfig(steps=20), progress=False)
    assert all((small.get_parameter(name)[zero] == 0).all() for name, zero in zeros.items())
    assert not torch.equal(small.out_bias, before["out_bias"])


def test_costs():
    whole, small = network_of(CONFIG, 8), iv.prune(posterior_of(seed=8), density=0.25)
    table = costs({"whole": whole, "small": small}, IMAGES, batches=(1,))
    assert table["whole"].parameters == sum(p.numel() for p in whole.parameters())
    tokens, dim, hidden = 4, 8, 12
    products = [16 * dim, *[3 * dim * dim + 2 * tokens * dim + dim * dim + 2 * dim * hidden] * 2]
    classifier = dim * 5 + 5 * 10
    assert table["whole"].flops == 2 * (tokens * sum(products) + classifier)
    assert table["small"].flops < table["whole"].flops
    assert table["small"].latency[1] > 0
    with torch.no_grad():
        whole.encoder.up.zero_()
    assert costs({"whole": whole}, IMAGES, (1,))["whole"].zeros == pytest.approx(
        whole.encoder.up.numel() / sum(p.numel() for p in whole.parameters())
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: iv.prune(r, "units"), "level='units': choose of"),
        (lambda r: iv.prune(r, ()), r"level=\(\): choose of"),
        (lambda r: iv.prune(r, threshold=1.0), "threshold=1.0"),
        (lambda r: iv.prune(r, density=1.5), "density=1.5"),
        (lambda r: iv.prune(r, density=0.3, threshold=0.4), "give one of them"),
        (lambda r: iv.prune(r, None), "level=None"),
        (lambda r: iv.prune(r, ("hidden", "block"), density=0.3), "hidden is part of block; leave one out"),
        (lambda r: iv.prune(r, density={"units": 0.3}), "level='units'"),
        (lambda r: iv.prune(r, density={"hidden": 0.3, "block": 0.5}), "hidden is part of block; leave one out"),
        (lambda r: iv.prune(r, density={}), r"level=\(\): choose of"),
        (lambda r: iv.prune(r, density={"hidden": None}), "give a share for each level"),
        (lambda r: iv.pruning.prune_draws(r, draws=1), "draws=1"),
        (
            lambda r: shrink(r.model.network, {"encoder.Up": torch.zeros(2)}),
            "weights: 'encoder.Up' of shape",
        ),
        (lambda r: shrink(r.model.network, kept={"units": torch.ones(2)}), "kept: no unit 'units'"),
        (
            lambda r: shrink(r.model.network, kept={"hidden": torch.ones(3, 5)}),
            r"'hidden' of shape \(3, 5\)",
        ),
        (lambda r: iv.pruning.fine_tune(r.model.network, None), "network=ViT: give a CompactViT"),
        (lambda r: iv.export(r.model.network, "nowhere"), "network=ViT: give a CompactViT"),
        (lambda r: iv.pruning.fine_tune(iv.pruning.prune_draws(r, draws=2), None), "an ensemble of 2"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(iv.InputError, match=message):
        call(posterior_of())


def test_nothing_left_and_no_masks():
    result = posterior_of()
    with torch.no_grad():
        result.guide.logit["patch_embed"].fill_(-9.0)
    with pytest.raises(iv.InputError, match="nothing is left of the network: no patch feature"):
        iv.prune(result, "weight")
    network = network_of(CONFIG, 0)
    model = iv.IsingViT(network, iv.priors.Flat(network.weight_sites()))
    plain = iv.Posterior((iv.guides.PointEstimate(model),))
    with pytest.raises(iv.InputError, match="PointEstimate has no masks"):
        iv.prune(plain)
    assert math.isfinite(
        float(np.log(iv.prune(posterior_of(), density=0.3)(IMAGES).softmax(-1).detach().numpy()).sum())
    )
