"""Networks of torchvision, timm and transformers, small and with random weights: adapted, fitted, pruned, exported.

python benchmarks/networks.py [--steps 60]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from typing import Any

import onnxruntime
import pandas as pd
import timm
import torch
import torchvision
import transformers
from torch import nn

import pyro_isingvit as iv
from pyro_isingvit.experiments.page import markdown
from pyro_isingvit.pruning import prune_module

SIDE, CLASSES = 64, 10

SMALL: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": CLASSES}

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "torchvision vit_b_16, small": lambda: torchvision.models.VisionTransformer(
        SIDE, 16, 2, 4, 48, 96, num_classes=CLASSES
    ),
    "torchvision resnet18": lambda: torchvision.models.resnet18(num_classes=CLASSES),
    "timm vit_tiny_patch16_224": lambda: _timm("vit_tiny_patch16_224", img_size=SIDE),
    "timm deit3_small_patch16_224": lambda: _timm("deit3_small_patch16_224", img_size=SIDE, depth=3),
    "timm convnext_atto": lambda: _timm("convnext_atto"),
    "timm mixer_s32_224": lambda: _timm("mixer_s32_224", img_size=SIDE),
    "transformers ViTForImageClassification": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=SIDE, intermediate_size=96, **SMALL)
    ),
    "transformers Dinov2ForImageClassification": lambda: transformers.Dinov2ForImageClassification(
        transformers.Dinov2Config(image_size=SIDE, patch_size=16, mlp_ratio=2, **SMALL)
    ),
}


def _timm(name: str, **options: Any) -> nn.Module:
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = iv.read("digits", image_size=SIDE)
    images = iv.Images(digits.images.expand(-1, 3, -1, -1), digits.labels, CLASSES)
    rows = []
    for name, make in NETWORKS.items():
        try:
            rows.append({"network": name} | row(make, images, options.steps))
        except iv.InputError as error:
            rows.append({"network": name, "refused": str(error)[:100]})
        print(rows[-1], flush=True)
    print(markdown(pd.DataFrame(rows).fillna("")))


def row(make: Callable[[], nn.Module], images: iv.Images, steps: int) -> dict[str, Any]:
    """Numbers of a network: of sites, couplings and weights, seconds of each thing done, and how exact pruning is."""
    torch.manual_seed(0)
    times = [time.perf_counter()]

    def lap() -> str:
        times.append(time.perf_counter())
        return f"{times[-1] - times[-2]:.1f}"

    network = iv.adapt(make(), images.images[:1], mean=(0.5,), std=(0.5,))
    found: dict[str, Any] = {
        "sites": len(network.weight_sites()),
        "couplings": len(network.couplings.couplings),
        "weights": f"{sum(site.numel for site in network.weight_sites()):,}",
        "adapt s": lap(),
    }
    prior = iv.IsingSpikeSlab(network.weight_sites(), inclusion=0.2, couplings=network.couplings)
    guide = iv.LikelihoodGuided(iv.IsingNetwork(network, prior))
    config = iv.FitConfig(steps=steps, batch_size=16, pilot=0.2, temperature=1e-4, device="cpu")
    posterior = iv.fit(guide, images[torch.arange(200)], config=config, progress=False).posterior
    _make_sparse(posterior.guide)
    found["fit s"] = lap()
    few = images.images[200:210]
    posterior.predict(few, draws=2)
    found["predict s"] = lap()
    small = prune_module(posterior, few)
    with torch.no_grad():
        standardised = (few - 0.5) / 0.5
        outputs = small.module(standardised)
        outputs = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
        found["prune s"] = lap()
        found["units cut"] = f"{int(small.units['cut'].sum())} of {int(small.units['units'].sum())}"
        found["largest difference"] = f"{float((outputs - posterior.network()(few)).abs().max()):.1e}"
        torch.export.export(small.module, (standardised,))
        found["export s"] = lap()
        found["ONNX: difference"] = f"{float((_by_onnx(small.module, standardised) - outputs).abs().max()):.1e}"
    found["ONNX s"] = lap()
    return found


def _by_onnx(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What an ONNX runtime computes of the exported module."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/network.onnx"
        torch.onnx.export(module, (images,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path)
        return torch.tensor(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def _make_sparse(guide: Any) -> None:
    """Drop every third unit of what is read, so that there is something to cut after a few steps."""
    with torch.no_grad():
        for site in guide.model.sites:
            axis = site.dims.index(site.reads[0]) if site.reads else 0
            index = [slice(None)] * len(site.shape)
            index[axis] = slice(None, None, 3)
            guide.logit[site.key].fill_(8.0)
            guide.logit[site.key][tuple(index)] = -8.0


if __name__ == "__main__":
    main()
