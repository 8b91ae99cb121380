"""Compare every prior, guide and estimator on the digits, with one recipe.

Priors are fitted with `LikelihoodGuided` where they have masks, guides and estimators under `IsingSpikeSlab`.

    python benchmarks/catalogue.py --out docs
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import pyro_isingvit as iv
from pyro_isingvit.diagnostics.calibration import metrics
from pyro_isingvit.diagnostics.units import alive_units
from pyro_isingvit.experiments.page import markdown
from pyro_isingvit.guides.estimators import HessianDiagonal

PRIORS: dict[str, tuple[Callable[..., iv.Prior], Callable[..., iv.Guide]]] = {
    "IsingSpikeSlab": (iv.IsingSpikeSlab, iv.LikelihoodGuided),
    "IsingSpikeSlab(weighting='magnitude')": (partial(iv.IsingSpikeSlab, weighting="magnitude"), iv.LikelihoodGuided),
    "BackwardIsingSpikeSlab": (iv.priors.BackwardIsingSpikeSlab, iv.LikelihoodGuided),
    "IsingSpikeSlab(learn_coupling=True)": (
        partial(iv.IsingSpikeSlab, coupling=0.5, learn_coupling=True),
        iv.LikelihoodGuided,
    ),
    "IndependentSpikeSlab": (iv.IndependentSpikeSlab, iv.LikelihoodGuided),
    "IndependentSpikeSlab(learn_slab_scale=True)": (
        partial(iv.IndependentSpikeSlab, learn_slab_scale=True),
        iv.LikelihoodGuided,
    ),
    "HierarchicalSpikeSlab": (iv.priors.HierarchicalSpikeSlab, iv.LikelihoodGuided),
    "StructuredSpikeSlab": (iv.StructuredSpikeSlab, iv.LikelihoodGuided),
    "LatticeSpikeSlab": (iv.priors.LatticeSpikeSlab, iv.LikelihoodGuided),
    "RegularisedHorseshoe, MeanField": (iv.priors.RegularisedHorseshoe, iv.MeanField),
    "RegularisedHorseshoe, Auto": (iv.priors.RegularisedHorseshoe, iv.guides.Auto),
    "Prior (no masks), Auto": (iv.Prior, iv.guides.Auto),
    "LogUniform, SparseVariationalDropout": (iv.priors.LogUniform, iv.guides.SparseVariationalDropout),
    "Flat, PointEstimate (deterministic)": (iv.priors.Flat, iv.guides.PointEstimate),
}

ESTIMATORS = ("levenberg_marquardt", "hessian_diagonal", "paired_draws", "straight_through", "disarm", "none")

GUIDES: dict[str, Callable[..., iv.Guide]] = {
    **{f"LikelihoodGuided({name!r})": partial(iv.LikelihoodGuided, estimator=name) for name in ESTIMATORS},
    "LikelihoodGuided('hessian_diagonal')": partial(iv.LikelihoodGuided, estimator=partial(HessianDiagonal, every=40)),
    "MeanField": iv.MeanField,
    "Relaxed": iv.guides.Relaxed,
    "BackwardIsing": iv.guides.BackwardIsing,
    "LowRank": iv.guides.LowRank,
    "ScoreFunction('none')": partial(iv.guides.ScoreFunction, baseline="none"),
    "ScoreFunction('decaying_average')": iv.guides.ScoreFunction,
    "ScoreFunction('neural')": partial(iv.guides.ScoreFunction, baseline="neural"),
}


NOTES = """Second-order estimates and coordinate updates prune most and stay accurate. What does worse, and why:

* `StructuredSpikeSlab` keeps more weights: a unit goes only when all of its weights together are not worth their
  price; the last table shows it at higher temperatures.
* `BackwardIsingSpikeSlab` keeps more: a kept mask behind raises the odds of all before it, and a dropped
  one is not pulled back by those before it as under the symmetric energy.
* `IndependentSpikeSlab(learn_slab_scale=True)`: the slabs shrink onto small weights, which keeps more of those.
* `straight_through` prunes everything: the first-order term is noise about a stationary point (see the design of
  `pyro_isingvit.guides.estimators`). `none` does so because nobody speaks for the weights.
* `disarm` is unbiased, but one pair of draws of 42,144 masks says next to nothing about each.
* `hessian_diagonal` costs 42,144 products with the Hessian at every evaluation.
* `MeanField`, `Relaxed`, `BackwardIsing`, `LowRank` and `ScoreFunction` keep most masks: gradients of masks are small
  and noisy at a stationary point, so in these steps the logits hardly leave where they start. Accuracy is unharmed.
* `RegularisedHorseshoe` and `Prior` have no masks: shrinkage there is continuous, nothing is exactly zero."""

LARGE = {"steps": 5000, "pilot": 0.4}


def run(
    name: str, prior: Callable[..., iv.Prior], guide: Callable[..., iv.Guide], fit: dict[str, Any]
) -> dict[str, Any]:
    """Fit once; returns a row of scores on the test images."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = iv.split(iv.read("digits"), train=1000, test=500)
    network = iv.ViT(iv.ViTConfig(image_size=8, patch_size=4, mlp_ratio=8))
    model = iv.IsingViT(network, prior(network.weight_sites()))
    augment = iv.Augment(degrees=10, scale=0.1, shear=10, translate=0.1)
    config = iv.FitConfig(**{"learning_rate": 4e-3, "augment": augment, "temperature": 1e-3, "device": "cpu"} | fit)
    result = iv.fit(guide(model), data.train, config=config, progress=False)
    scores = metrics(result.posterior.predict(data.test.images, 50).probs, data.test.labels)
    shares = result.posterior.densities()
    return {
        "": name,
        "accuracy %": round(100 * scores["accuracy"], 1),
        "NLL": round(scores["nll"], 3),
        "ECE": round(scores["ece"], 3),
        "kept %": round(100 * shares.get("median_density", 1.0), 1),
        "expected %": round(100 * shares.get("expected_density", 1.0), 1),
        **{
            f"{name} alive": f"{int(alive.sum())}/{alive.numel()}"
            for name, unit in (("heads", "head"), ("hidden units", "hidden"))
            for alive in [alive_units(result.posterior, unit)]
        },
        "seconds": round(result.seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    short, likelihood = {"steps": options.steps}, {"temperature": 1.0}
    tables = {
        "Every prior": [
            (name, *pair, short | (likelihood if pair[0] is iv.priors.Flat else {})) for name, pair in PRIORS.items()
        ],
        "Every guide and estimator, under IsingSpikeSlab": [
            (name, iv.IsingSpikeSlab, guide, short) for name, guide in GUIDES.items()
        ],
        "Whole heads and hidden units: StructuredSpikeSlab in 5,000 steps": [
            ("deterministic", iv.priors.Flat, iv.guides.PointEstimate, LARGE | likelihood),
            ("T = 0.01", iv.StructuredSpikeSlab, iv.LikelihoodGuided, LARGE | {"temperature": 0.01}),
            ("T = 0.06", iv.StructuredSpikeSlab, iv.LikelihoodGuided, LARGE | {"temperature": 0.06}),
            (
                "T = 0.03, slab_scale = 3",
                partial(iv.StructuredSpikeSlab, slab_scale=3.0),
                iv.LikelihoodGuided,
                LARGE | {"temperature": 0.03},
            ),
        ],
    }
    text = (
        "# What priors, guides and estimators cost and buy\n\nDigits, 1,000 training and 500 test images, seed 0, "
        f"one recipe of {options.steps} steps at temperature 0.001, one thread each. "
        f"Made by `python benchmarks/catalogue.py --steps {options.steps}`.\n\n{NOTES}\n"
    )
    frames = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        futures = {title: [pool.submit(run, *job) for job in jobs] for title, jobs in tables.items()}
        for title, waiting in futures.items():
            rows = []
            for future in waiting:
                rows.append(future.result())
                print(rows[-1], flush=True)
            table = pd.DataFrame(rows)
            text += f"\n## {title}\n\n{markdown(table)}\n"
            frames.append(table.assign(table=title))
    options.out.mkdir(parents=True, exist_ok=True)
    pd.concat(frames).to_csv(options.out / "catalogue.csv", index=False)
    (options.out / "catalogue.md").write_text(text)


if __name__ == "__main__":
    main()
