"""Memory of a fit for each weight: peak of the process above what it had before, in bytes.

python benchmarks/memory.py [--guide LikelihoodGuided] [--structured] [--unit-scales] [--weights 10] [--steps 20]
"""

import argparse

import torch

import pyro_isingvit as iv
from pyro_isingvit.models.priors.structured import UNIT_LEVELS
from pyro_isingvit.processes import peak_memory

FAMILIES = {
    "LikelihoodGuided": iv.LikelihoodGuided,
    "MeanField": iv.MeanField,
    "PointEstimate": iv.guides.PointEstimate,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=float, default=10.0, help="Millions of weights.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guide", choices=list(FAMILIES), default="LikelihoodGuided")
    parser.add_argument("--structured", action="store_true", help="One mask for all weights of a role at a unit.")
    parser.add_argument("--unit-scales", action="store_true", help="One scale for all weights that a unit reads.")
    options = parser.parse_args()
    if options.unit_scales and options.guide == "PointEstimate":
        parser.error("--unit-scales: a point estimate has no scales")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = iv.Images(torch.rand(64, 1, 16, 16), torch.arange(64) % 10, 10)
    # A small fit first, so that what torch, Pyro and the process itself take is there before.
    small = iv.ViTConfig(image_size=16, patch_size=8, dim=16, depth=1, heads=2)
    _fit(options, small, images)
    depth = max(1, round(options.weights * 1e6 / (12 * 512**2)))
    config = iv.ViTConfig(image_size=16, patch_size=8, dim=512, depth=depth, heads=8, mlp_ratio=4)
    before = peak_memory()
    weights = _fit(options, config, images)
    grown = (peak_memory() - before) * 2**20
    what = options.guide
    what += ", masks of units" if options.structured else ""
    what += ", scales of units" if options.unit_scales else ""
    print(f"{what}: {weights:,} weights, {grown / 2**20:.0f} MiB, {grown / weights:.0f} bytes a weight")


def _fit(options: argparse.Namespace, config: iv.ViTConfig, images: iv.Images) -> int:
    network = iv.ViT(config)
    sites = network.weight_sites()
    masked = iv.StructuredSpikeSlab(sites, UNIT_LEVELS) if options.structured else iv.IsingSpikeSlab(sites)
    prior = iv.priors.Flat(sites) if options.guide == "PointEstimate" else masked
    of_guide = {"unit_scales": True} if options.unit_scales else {}
    guide = FAMILIES[options.guide](iv.IsingViT(network, prior), **of_guide)
    settings = iv.FitConfig(steps=options.steps, batch_size=8, pilot=0.2, temperature=1e-3, device="cpu")
    iv.fit(guide, images, config=settings, progress=False)
    return sum(site.numel for site in sites)


if __name__ == "__main__":
    main()
