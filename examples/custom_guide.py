"""A guide of one's own: all masks of a hidden unit share one probability.

The labels come from a network in which half of the hidden units are dead. The guide below learns one log odds
for each unit in place of one for each weight, and finds out which units are alive.

    python examples/custom_guide.py
"""

import argparse

import torch
from torch import nn

import pyro_isingvit as iv

CONFIG = iv.ViTConfig(image_size=4, patch_size=2, classes=4, dim=8, depth=1, heads=2, mlp_ratio=2)


class UnitWise(iv.MeanField):
    """`MeanField` with one log odds for each hidden unit, for all weights into and out of it. One override."""

    def __init__(self, model: iv.IsingViT, **options: float) -> None:
        super().__init__(model, **options)
        for role in ("encoder_up", "encoder_down"):
            self.logit.pop(role)
        self.logit["unit"] = nn.Parameter(torch.full((1, CONFIG.hidden), 2.0))

    def mask(self, site: iv.WeightSite) -> iv.StraightThroughBernoulli:
        if site.name not in ("encoder.up", "encoder.down"):
            return super().mask(site)
        logit = self.logit["unit"].unsqueeze(-1 if site.name == "encoder.up" else -2).expand(site.shape)
        return iv.StraightThroughBernoulli(logits=logit, event_dim=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    truth = iv.ViT(CONFIG)
    alive = torch.arange(CONFIG.hidden) % 2 == 0
    with torch.no_grad():
        for site in truth.weight_sites():
            truth.get_parameter(site.name).mul_(3)
        truth.encoder.up.mul_(2 * alive.view(1, -1, 1))
        truth.encoder.down.mul_(4)
        images = torch.rand(2000, 1, 4, 4)
        labels = truth(images).argmax(-1)
    train, test = (iv.Images(images[part], labels[part], 4) for part in (slice(1000), slice(1000, None)))
    network = iv.ViT(CONFIG)
    network.load_state_dict(truth.state_dict())  # the question is which units are alive, not how to train
    with torch.no_grad():
        network.encoder.up.add_(0.1 * torch.randn_like(network.encoder.up))
    prior = iv.IsingSpikeSlab(network.weight_sites(), slab_scale=6.0, coupling=0.5)
    model = iv.IsingViT(network, prior)
    config = iv.FitConfig(steps=steps, learning_rate=1e-3, pilot=0.1, temperature=0.02)
    result = iv.fit(UnitWise(model), train, config=config, progress=False)
    accuracy = (result.posterior.predict(test.images).labels == test.labels).float().mean()
    probs = result.posterior.inclusion_probabilities()["encoder.up"][0, :, 0]
    print(f"accuracy {accuracy:.1%}")
    print("inclusion of living units", " ".join(f"{p:.2f}" for p in probs[alive]))
    print("inclusion of dead units  ", " ".join(f"{p:.2f}" for p in probs[~alive]))


if __name__ == "__main__":
    main()
