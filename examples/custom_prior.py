"""A prior of one's own: pixels that lie far from the centre are believed to matter less.

Labels depend on the two middle columns of small images; the rest is noise. Under a prior with one inclusion
probability for all pixels the patch embedding keeps what the likelihood asks for; the prior below says
beforehand that the rim is unlikely, so that fewer noise pixels stay in.

    python examples/custom_prior.py
"""

import argparse

import torch
from torch import Tensor

import pyro_isingvit as iv

SIDE = 6


class CentredPixels(iv.IsingSpikeSlab):
    """`IsingSpikeSlab` with an inclusion probability for each pixel of the patch. One override."""

    def inclusion_of(self, site: iv.WeightSite) -> float | Tensor:
        if site.name != "patch_embed":
            return super().inclusion_of(site)
        column = torch.arange(SIDE).repeat(SIDE)  # of each pixel of the one patch
        far = (column - (SIDE - 1) / 2).abs() / (SIDE / 2)
        return 0.6 * torch.exp(-12 * far**2)


def images(n: int, generator: torch.Generator) -> iv.Images:
    """Noise whose two middle columns are bright for class 1."""
    pixels = torch.rand(n, 1, SIDE, SIDE, generator=generator)
    labels = torch.arange(n) % 2
    pixels[..., SIDE // 2 - 1 : SIDE // 2 + 1] *= 0.7
    pixels[labels == 1, :, :, SIDE // 2 - 1 : SIDE // 2 + 1] += 0.3
    return iv.Images(pixels, labels, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    steps = parser.parse_args().steps
    generator = torch.Generator().manual_seed(0)
    train, test = images(300, generator), images(1000, generator)
    print(f"{'prior':15} {'accuracy':>8}  inclusion of the middle columns, and of the rest")
    for family in (iv.IsingSpikeSlab, CentredPixels):
        torch.manual_seed(0)
        network = iv.ViT(iv.ViTConfig(image_size=SIDE, patch_size=SIDE, classes=2, dim=8, heads=2, mlp_ratio=2))
        model = iv.IsingViT(network, family(network.weight_sites()))
        config = iv.FitConfig(steps=steps, learning_rate=4e-3, temperature=0.02)
        result = iv.fit(iv.LikelihoodGuided(model), train, config=config, progress=False)
        accuracy = (result.posterior.predict(test.images).labels == test.labels).float().mean()
        probs = result.posterior.inclusion_probabilities()["patch_embed"].mean(0).view(SIDE, SIDE).mean(0)
        middle = probs[SIDE // 2 - 1 : SIDE // 2 + 1].mean()
        rest = torch.cat([probs[: SIDE // 2 - 1], probs[SIDE // 2 + 1 :]]).mean()
        print(f"{family.__name__:15} {accuracy:8.1%}  {middle:.2f}  {rest:.2f}")


if __name__ == "__main__":
    main()
