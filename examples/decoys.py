"""Which inputs matter? Digits among decoy channels, selected at temperature 1, and predicted from what was selected.

Each image has the digit to be recognised in its first channel, and other digits, which have nothing to do with its
label, in seven more. A network that is trained as usual fits its 300 images with the help of all channels. Here, masks
of the input features (pixels of a patch, by channel) are learned first, by a posterior at temperature 1 in which all
other weights are kept; docs/inclusion.md measures what their inclusion probabilities mean. The network that predicts is
then fitted with these masks held. Norms of the weights of a deterministic network, the usual way to ask which inputs it
uses, are shown beside it.

    python examples/decoys.py
"""

import argparse
from pathlib import Path

import torch

import pyro_isingvit as iv

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=3000)
parser.add_argument("--decoys", type=int, default=7)
parser.add_argument("--out", type=Path, default=Path("runs/decoys"))
options = parser.parse_args()

bed = iv.data.digits_decoys(options.decoys)
truth = bed.features(patch_size=4)
data = iv.split(bed.images, train=300, test=1000, validation=300)
geometry = iv.ViTConfig(image_size=8, patch_size=4, channels=1 + options.decoys, mlp_ratio=8)


def fit(prior, family, temperature, held=None):
    """Fit a new network from the same first weights; ``held`` are inclusion probabilities of masks that are known."""
    torch.manual_seed(0)
    network = iv.ViT(geometry)
    guide = family(iv.IsingViT(network, prior(network.weight_sites())))
    guide.hold_masks(held or {})
    config = iv.FitConfig(steps=options.steps, learning_rate=4e-3, pilot=0.4, temperature=temperature)
    return iv.fit(guide, data.train, data.validation, config).posterior.calibrate(data.validation)


def scores(posterior):
    """Accuracy and NLL of the test images."""
    return iv.diagnostics.metrics(posterior.predict(data.test.images).probs, data.test.labels)


selection = fit(iv.FeatureSpikeSlab, iv.LikelihoodGuided, temperature=1.0)
inside = selection.inclusion_probabilities()
plain = fit(iv.priors.Flat, iv.guides.PointEstimate, temperature=1.0)
norms = plain.mean_weights({})["patch_embed"].norm(dim=0)

print(*iv.diagnostics.inclusion_meaning(selection)["says"])
chosen = iv.diagnostics.selection_table(inside["patch_embed"].flatten(), truth, [0.5]).iloc[0]
print(f"selected {chosen['selected']:.0f}: false {chosen['false_discovery_rate']:.0%}, found {chosen['power']:.0%}")
ranked = iv.diagnostics.selection_table(norms / norms.max(), truth, (norms / norms.max()).sort().values.tolist())
same = ranked.loc[(ranked["power"] - chosen["power"]).abs().idxmin()]
print(f"at the same power, by weight norm of a deterministic network: false {same['false_discovery_rate']:.0%}")

if chosen["selected"]:
    sparse = fit(iv.StructuredSpikeSlab, iv.LikelihoodGuided, temperature=3e-3, held=inside)
    for name, posterior in (("with what was selected", sparse), ("deterministic", plain)):
        print(f"{name}: accuracy {scores(posterior)['accuracy']:.1%}, NLL {scores(posterior)['nll']:.3f}")

options.out.mkdir(parents=True, exist_ok=True)
iv.plots.figure_features(selection).savefig(options.out / "features.png", dpi=150)
print(f"picture: {options.out / 'features.png'}")
