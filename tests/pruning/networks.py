"""What is cut in tests: networks in which everything matters, and posteriors of them."""

import torch

import pyro_isingvit as iv

CONFIG = iv.ViTConfig(image_size=8, patch_size=4, dim=8, depth=2, heads=2, mlp_ratio=1.5, classifier_hidden=5)
WITH_TOKEN = CONFIG.model_copy(update={"pooling": "cls"})
PLAIN = WITH_TOKEN.model_copy(update={"position_embedding": False})
WITH_STEM = CONFIG.model_copy(update={"stem": "convolutions"})
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))

LEVEL_DIMS = {
    "hidden": {"encoder.up": "hidden", "encoder.down": "hidden"},
    "head_dim": {f"encoder.{role}": "head_dim" for role in ("query", "key", "value", "out")},
    "head": {f"encoder.{role}": "head" for role in ("query", "key", "value", "out")},
    "block": {f"encoder.{role}": "layer" for role in ("query", "key", "value", "out", "up", "down")},
    "patch": {"patch_embed": "patch"},
    "classifier_hidden": {"classifier.hidden": "classifier_hidden", "classifier.out": "classifier_hidden"},
}
"""For each level, the dimension of a role along which its masks differ."""


def network_of(config, seed):
    """A network whose biases, norms and embeddings all matter."""
    generator = torch.Generator().manual_seed(seed)
    network = iv.ViT(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def posterior_of(prior=iv.IsingSpikeSlab, seed=0, **options):
    network = network_of(CONFIG, seed)
    model = iv.IsingViT(network, prior(network.weight_sites(), coupling=0.1, **options))
    guide = iv.MeanField(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for logit in guide.logit.values():
            logit.copy_(2 * torch.randn(logit.shape, generator=generator))
    return iv.Posterior((guide,))
