"""Selection of input features with control of the false discovery rate, on digits among decoys: rates and power.

The methods of `pyro_isingvit.diagnostics.select` at nominal rates of .05, .1 and .2, with 300 digits and 7 decoy
channels; that by shadows is measured by `inclusion.py`. Every fit is kept in the working folder, so that a run can be
stopped and started again.

    python benchmarks/selection.py --work runs/selection
    python benchmarks/selection.py --work runs/selection --report
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

import pyro_isingvit as iv
from pyro_isingvit.data import digits_decoys
from pyro_isingvit.diagnostics import select
from pyro_isingvit.diagnostics.refits import Refit
from pyro_isingvit.diagnostics.select import By
from pyro_isingvit.experiments.page import markdown

RATES = 0.05, 0.1, 0.2

KEPT = 0.999
"""Prior inclusion probability with which nearly all features are kept, so that log odds rank them."""

KEPT_TEMPERATURE = 0.1
"""Temperature of these fits, chosen by the power on seed 0 with 64 features a channel."""

STEPS = 3000


def refit(patch: int, inclusion: float, temperature: float) -> Refit:
    """A function that fits masks of input features to images of any number of channels; each fit has another seed."""

    def fitted(images: iv.Images) -> iv.Posterior:
        seed = int(torch.randint(2**31, ()))
        torch.manual_seed(seed)
        channels, side, _ = images.shape
        config = iv.ViTConfig(image_size=side, patch_size=patch, channels=channels, classes=images.classes, mlp_ratio=8)
        network = iv.ViT(config)
        prior = iv.FeatureSpikeSlab(network.weight_sites(), inclusion=inclusion)
        settings = iv.FitConfig(
            steps=STEPS, learning_rate=4e-3, pilot=0.4, temperature=temperature, seed=seed, device="cpu"
        )
        guide = iv.LikelihoodGuided(iv.IsingViT(network, prior))
        return iv.fit(guide, images, config=settings, progress=False).posterior

    return fitted


METHODS: dict[str, tuple[By, float, float]] = {
    "posterior": ("posterior", 0.2, 1.0),
    "null": ("null", KEPT, KEPT_TEMPERATURE),
    "stability": ("stability", 0.2, 0.3),
}
"""The rule, prior inclusion probability and temperature of each method."""


def run(kind: str, patch: int, seed: int, name: str) -> pd.DataFrame:
    """Error rate and power of a method at the nominal rates."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    bed = digits_decoys(7, kind, seed)  # type: ignore[arg-type]
    train = iv.split(bed.images, train=300, test=1000, validation=300, seed=seed).train
    truth = bed.features(patch)
    by, inclusion, temperature = METHODS[name]
    again = remembered(refit(patch, inclusion, temperature))
    rows = []
    for fdr in RATES:
        options = {} if by == "posterior" else {"train": train, "refit": again}
        found = select(again(train), fdr, by, seed=seed, **options)  # type: ignore[arg-type]
        chosen = found.selected.flatten()
        rows.append(
            {
                "kind": kind,
                "features": patch**2,
                "seed": seed,
                "method": name,
                "nominal": fdr,
                "selected": int(chosen.sum()),
                "estimated": found.estimated,
                "realised": float((~truth[chosen]).double().mean()) if chosen.any() else 0.0,
                "power": float(chosen[truth].double().mean()),
            }
        )
    return pd.DataFrame(rows)


def remembered(fitted: Refit) -> Refit:
    """The same function, which fits to the same images once."""
    known: dict[str, iv.Posterior] = {}

    def once(images: iv.Images) -> iv.Posterior:
        if images.fingerprint not in known:
            known[images.fingerprint] = fitted(images)
        return known[images.fingerprint]

    return once


def report(work: Path) -> str:
    """Means over seeds, with standard errors."""
    every = pd.concat([pd.read_csv(path, keep_default_na=False) for path in sorted(work.glob("*.csv"))])
    keys = ["kind", "features", "method", "nominal"]
    grouped = every.groupby(keys)
    means = grouped[["selected", "estimated", "realised", "power"]].mean().round(3)
    table = means.assign(se=grouped["realised"].sem().round(3), seeds=grouped.size())
    return markdown(table.reset_index())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/selection"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--kinds", nargs="+", default=["digits"])
    parser.add_argument("--patches", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if not options.report:
        for kind in options.kinds:
            for patch in options.patches:
                for seed in options.seeds:
                    for name in options.methods:
                        path = options.work / f"{kind}-{patch}-{seed}-{name}.csv"
                        if not path.exists():
                            run(kind, patch, seed, name).to_csv(path, index=False)
                            print(path.stem, flush=True)
    print(report(options.work))


if __name__ == "__main__":
    main()
