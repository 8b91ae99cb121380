"""Regression: by which angle was a digit turned?

The embedded digits are turned by a random angle, and a sparse posterior predicts it. The likelihood is normal with a
scale that is learned; intervals have this noise and the spread of the draws. The temperature of the posterior is
chosen by the NLL of held-out images. Conformal intervals are these, moved by what further held-out images say. What to
look at: do 90 % intervals hold 90 % of the angles?

    python examples/regression.py --out regression.png
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torchvision.transforms.functional import rotate

import pyro_isingvit as iv

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=3000)
parser.add_argument("--train", type=int, default=800)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--temperatures", type=float, nargs="+", default=[0.01, 0.1, 1.0])
parser.add_argument("--out", type=Path, help="picture to write")
options = parser.parse_args()

# Known truth: angles within 45 degrees, in units of 45 degrees.
digits = iv.read("digits").images
angles = 2 * torch.rand(len(digits), generator=torch.Generator().manual_seed(options.seed)) - 1
turned = torch.stack([rotate(image, 45 * float(angle)) for image, angle in zip(digits, angles, strict=True)])
everything = iv.Images(turned, angles, 1)
data = iv.split(everything, train=options.train, validation=300, test=690, seed=options.seed)
calibration, test = data.test[torch.arange(300)], data.test[torch.arange(300, len(data.test))]


def fitted(temperature: float) -> iv.Posterior:
    torch.manual_seed(options.seed)
    network = iv.ViT(iv.ViTConfig(image_size=8, patch_size=2, classes=1))
    model = iv.IsingViT(network, iv.IsingSpikeSlab(network.weight_sites()), likelihood=iv.Regression())
    config = iv.FitConfig(
        steps=options.steps, learning_rate=4e-3, pilot=0.4, temperature=temperature, seed=options.seed, device="cpu"
    )
    return iv.fit(iv.LikelihoodGuided(model), data.train, config=config).posterior


posteriors = {temperature: fitted(temperature) for temperature in options.temperatures}
losses = {temperature: each.target_scores(data.validation)["nll"] for temperature, each in posteriors.items()}
chosen = min(losses, key=losses.__getitem__)
posterior, scores = posteriors[chosen], posteriors[chosen].target_scores(test)
conformal = iv.diagnostics.conformal_intervals(posterior, calibration, coverage=0.9)
of_conformal = conformal.evaluate(test)
error = (0.9 * 0.1 * (1 / len(test) + 1 / len(calibration))) ** 0.5
print(f"NLL of the validation images by temperature: {losses}")
print(f"temperature {chosen:g}, {posterior.densities()['median_density']:.0%} of the weights kept")
print(
    f"RMSE {45 * scores['rmse']:.1f} degrees (without a network: {45 * float(test.labels.std()):.1f}); 90 % "
    f"intervals hold {scores['coverage']:.1%} of the angles, mean width {45 * scores['width']:.0f} degrees; conformal "
    f"ones {of_conformal['coverage']:.1%} (standard error {error:.1%}), {45 * of_conformal['width']:.0f} degrees"
)

if options.out is not None:
    found = posterior.predict_targets(test.images)
    order = found.mean.squeeze(1).argsort()
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    ax.fill_between(range(len(order)), 45 * found.lower[order, 0], 45 * found.upper[order, 0], color="0.85")
    ax.plot(45 * test.labels[order, 0], ".", color="0.3", ms=3, label="true angle")
    ax.plot(45 * found.mean[order, 0], color="C0", label="predicted, with its 90 % interval")
    ax.set(xlabel="test images, by predicted angle", ylabel="angle, degrees")
    ax.legend(frameon=False)
    figure.savefig(options.out, dpi=150)
