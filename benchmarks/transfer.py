"""Few images of new classes, from a network that was trained on others: ours beside fine-tuning and a linear probe.

A small ViT of timm is trained on the digits 0 to 4 of MNIST; then networks are fitted to 25 images of each of 5 to 9.
Settings of every method are chosen by the calibrated NLL of 250 held-out images.

    python benchmarks/transfer.py --data-root FOLDER [--seeds 0 1 2] [--work FOLDER]
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from torch import Tensor, nn

import pyro_isingvit as iv
from pyro_isingvit.diagnostics.calibration import metrics
from pyro_isingvit.experiments.page import markdown

EACH, HELD_OUT, TEST = 25, 250, 2000

STEPS, BATCH, RATE = 1500, 25, 1e-3

SOURCE_STEPS, SOURCE_IMAGES = 3000, 6000

Guided = Callable[[nn.Module, Tensor, float], iv.Guide]
"""A guide of a method, from a module, an example, and a setting."""


def module(seed: int, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.models.VisionTransformer(
        img_size=28,
        patch_size=7,
        in_chans=1,
        embed_dim=48,
        depth=3,
        num_heads=4,
        num_classes=5,
        drop_rate=dropout,
        proj_drop_rate=dropout,
    )


def adapted(net: nn.Module, example: Tensor, **options: Any) -> iv.Adapted:
    return iv.adapt(net, example, mean=(0.5,), std=(0.5,), **options)


def plain(net: nn.Module, example: Tensor, setting: float) -> iv.Guide:
    """Weights decay to zero, by the Gaussian prior at a temperature; not at all at 0."""
    return _point(adapted(net, example), setting)


def towards(net: nn.Module, example: Tensor, setting: float) -> iv.Guide:
    """Weights decay to what they were."""
    return _point(adapted(net, example, around="pretrained"), setting)


def probe(net: nn.Module, example: Tensor, setting: float) -> iv.Guide:
    """The last layer alone."""
    return _point(adapted(net, example, include=("head",), train="masked"), setting)


def _point(network: iv.Adapted, setting: float) -> iv.Guide:
    sites = network.weight_sites()
    prior = iv.Prior(sites) if setting else iv.priors.Flat(sites)
    return iv.guides.PointEstimate(iv.IsingNetwork(network, prior))


def ising(net: nn.Module, example: Tensor, setting: float) -> iv.Guide:
    return _ising(adapted(net, example), 1.0)


def changes(net: nn.Module, example: Tensor, setting: float) -> iv.Guide:
    return _ising(adapted(net, example, around="pretrained"), setting)


def _ising(network: iv.Adapted, slab_scale: float) -> iv.Guide:
    sites = network.weight_sites()
    prior = iv.IsingSpikeSlab(sites, inclusion=0.2, couplings=network.couplings, slab_scale=slab_scale)
    return iv.LikelihoodGuided(iv.IsingNetwork(network, prior))


METHODS: dict[str, tuple[Guided, bool, tuple[float, ...], tuple[float, ...]]] = {
    "from scratch": (plain, False, (0.0, 1e-3, 1e-2), (0.0, 0.1)),
    "fine-tuned": (plain, True, (0.0, 1e-3, 1e-2), (0.0, 0.1)),
    "fine-tuned, decay to pretrained": (towards, True, (1e-3, 1e-2, 1e-1), (0.0,)),
    "linear probe": (probe, True, (0.0, 1e-3, 1e-2), (0.0,)),
    "Ising about zero": (ising, True, (0.0,), (0.0,)),
    "Ising about the pretrained": (changes, True, (0.1, 0.5), (0.0,)),
}
"""Guide, whether it starts from the source, its settings (temperature, or scale of the slab), and rates of dropout."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/transfer"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    every = iv.read("mnist", options.data_root)
    source = _source(every, options.work / "source.pt")
    for seed in options.seeds:
        for method in METHODS:
            path = options.work / f"{method}-{seed}.json"
            if not path.exists():
                found = run(every, source, method, seed)
                path.write_text(json.dumps(found))
                print(seed, method, {k: round(v, 3) for k, v in found.items() if isinstance(v, float)}, flush=True)
    print(markdown(_table(options.work, options.seeds)))


def _source(every: iv.Images, path: Path) -> dict[str, Tensor]:
    """The state of the source network, trained once."""
    if not path.exists():
        low = every[(every.labels < 5).nonzero().flatten()[:SOURCE_IMAGES]]
        low = iv.Images(low.images, low.labels, 5)
        guide = plain(module(0), low.images[:1], 0.0)
        config = iv.FitConfig(steps=SOURCE_STEPS, batch_size=64, learning_rate=RATE, temperature=1.0, device="cpu")
        posterior = iv.fit(guide, low, config=config, progress=False).posterior
        torch.save(posterior.network().plain().state_dict(), path)
    return torch.load(path)


def run(every: iv.Images, source: dict[str, Tensor], method: str, seed: int) -> dict[str, Any]:
    """Scores of a method with the setting that held-out images choose."""
    data = _split(every, seed)
    make, pretrained, settings, dropouts = METHODS[method]
    best: dict[str, Any] | None = None
    for dropout in dropouts:
        for setting in settings:
            net = module(seed + 1, dropout)
            if pretrained:
                body = {name: value for name, value in source.items() if not name.startswith("head.")}
                net.load_state_dict(net.state_dict() | copy.deepcopy(body))
            start = time.perf_counter()
            guide = make(net, data.train.images[:1], setting)
            ours = bool(guide.mask_shapes)
            temperature: Any = "auto" if ours else (setting or 1.0)
            config = iv.FitConfig(
                steps=2 * STEPS if ours else STEPS,
                batch_size=BATCH,
                learning_rate=RATE,
                temperature=temperature,
                seed=seed,
                device="cpu",
            )
            posterior = iv.fit(guide, data.train, data.validation, config, progress=False).posterior
            found = _scores(posterior, data) | {"setting": setting, "dropout": dropout}
            found["seconds"] = time.perf_counter() - start
            if best is None or found["validation"] < best["validation"]:
                best = found
    assert best is not None
    return best


def _split(every: iv.Images, seed: int) -> iv.data.Data:
    high = (every.labels >= 5).nonzero().flatten()
    chosen = every[high[torch.randperm(len(high), generator=torch.Generator().manual_seed(seed))]]
    chosen = iv.Images(chosen.images, chosen.labels - 5, 5)
    return iv.split(chosen, train=5 * EACH, test=TEST, validation=HELD_OUT, seed=seed, balanced=True)


def _scores(posterior: iv.Posterior, data: iv.data.Data) -> dict[str, Any]:
    calibrated = posterior.calibrate(data.validation)
    draws = 50 if posterior.guide.mask_shapes else 1
    raw, scaled = (p.predict(data.test.images, draws).probs for p in (_raw(posterior), calibrated))
    validation = calibrated.predict(data.validation.images, draws).probs
    of_test = metrics(scaled, data.test.labels)
    return {
        "accuracy": of_test["accuracy"],
        "raw NLL": metrics(raw, data.test.labels)["nll"],
        "NLL": of_test["nll"],
        "ECE": of_test["ece"],
        "weights": posterior.densities().get("median_density", 1.0),
        "validation": metrics(validation, data.validation.labels)["nll"],
    }


def _raw(posterior: iv.Posterior) -> iv.Posterior:
    """The posterior before calibration."""
    return iv.Posterior(posterior.guides, 1.0, posterior.names)


def _table(work: Path, seeds: list[int]) -> pd.DataFrame:
    rows = []
    for method in METHODS:
        every = [json.loads((work / f"{method}-{seed}.json").read_text()) for seed in seeds]
        found = pd.DataFrame(every)
        rows.append(
            {
                "method": method,
                "accuracy %": f"{100 * found['accuracy'].mean():.1f} ({100 * found['accuracy'].sem():.1f})",
                "raw NLL": f"{found['raw NLL'].mean():.3f}",
                "NLL": f"{found['NLL'].mean():.3f} ({found['NLL'].sem():.3f})",
                "ECE": f"{found['ECE'].mean():.3f}",
                "weights %": f"{100 * found['weights'].mean():.1f}",
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
