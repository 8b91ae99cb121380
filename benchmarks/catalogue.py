"""Every prior with `LikelihoodGuided`, every guide and estimator with `IsingSpikeSlab`, on digits with one recipe.

python benchmarks/catalogue.py --out docs
"""

import argparse
import re
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

PRIORS: dict[str, tuple[Callable[..., iv.Prior], Callable[..., iv.Guide]]] = {
    "IsingSpikeSlab": (iv.IsingSpikeSlab, iv.LikelihoodGuided),
    "IsingSpikeSlab(weighting='magnitude')": (partial(iv.IsingSpikeSlab, weighting="magnitude"), iv.LikelihoodGuided),
    "IsingSpikeSlab(direction='backward')": (partial(iv.IsingSpikeSlab, direction="backward"), iv.LikelihoodGuided),
    "IsingSpikeSlab(learn_coupling=True)": (
        partial(iv.IsingSpikeSlab, coupling=0.5, learn_coupling=True),
        iv.LikelihoodGuided,
    ),
    "IndependentSpikeSlab": (iv.IndependentSpikeSlab, iv.LikelihoodGuided),
    "IndependentSpikeSlab(learn_slab_scale=True)": (
        partial(iv.IndependentSpikeSlab, learn_slab_scale=True),
        iv.LikelihoodGuided,
    ),
    "HierarchicalSpikeSlab": (iv.HierarchicalSpikeSlab, iv.LikelihoodGuided),
    "StructuredSpikeSlab": (iv.StructuredSpikeSlab, iv.LikelihoodGuided),
    "LatticeSpikeSlab": (iv.LatticeSpikeSlab, iv.LikelihoodGuided),
    "RegularisedHorseshoe, MeanField": (iv.RegularisedHorseshoe, iv.MeanField),
    "RegularisedHorseshoe, Auto": (iv.RegularisedHorseshoe, iv.Auto),
    "Prior (no masks), Auto": (iv.Prior, iv.Auto),
    "Flat, PointEstimate (deterministic)": (iv.Flat, iv.PointEstimate),
}

ESTIMATORS = ("levenberg_marquardt", "hessian_diagonal", "paired_draws", "straight_through", "disarm", "none")

GUIDES: dict[str, Callable[..., iv.Guide]] = {
    **{f"LikelihoodGuided({name!r})": partial(iv.LikelihoodGuided, estimator=name) for name in ESTIMATORS},
    "MeanField": iv.MeanField,
    "Relaxed": iv.Relaxed,
    "BackwardIsing": iv.BackwardIsing,
    "LowRank": iv.LowRank,
    "ScoreFunction('none')": partial(iv.ScoreFunction, baseline="none"),
    "ScoreFunction('decaying_average')": iv.ScoreFunction,
    "ScoreFunction('neural')": partial(iv.ScoreFunction, baseline="neural"),
}


def run(name: str, prior: Callable[..., iv.Prior], guide: Callable[..., iv.Guide], steps: int) -> dict[str, Any]:
    """One fit and its figures on the test images."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = iv.split(iv.read("digits"), train=1000, test=500)
    network = iv.ViT(iv.ViTConfig(image_size=8, patch_size=4, mlp_ratio=8))
    model = iv.IsingViT(network, prior(network.weight_sites()))
    augment = iv.RandomAffine(degrees=10, scale=0.1, shear=10, translate=0.1)
    temperature = 1.0 if prior is iv.Flat else 1e-3
    config = iv.FitConfig(steps=steps, learning_rate=4e-3, augment=augment, temperature=temperature, device="cpu")
    result = iv.fit(model, guide(model), data.train, config=config, progress=False)
    predicted = result.predict(data.test.images, 50).probs if prior is not iv.Flat else None
    scores = metrics(result.predict_plug_in(data.test.images) if predicted is None else predicted, data.test.labels)
    shares = result.densities()
    return {
        "": name,
        "accuracy %": round(100 * scores["accuracy"], 1),
        "NLL": round(scores["nll"], 3),
        "ECE": round(scores["ece"], 3),
        "kept %": round(100 * shares.get("median_density", 1.0), 1),
        "expected %": round(100 * shares.get("expected_density", 1.0), 1),
        "seconds": round(result.seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="a pattern: run what matches alone")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    jobs = [(name, *pair) for name, pair in PRIORS.items()]
    jobs += [(name, iv.IsingSpikeSlab, guide) for name, guide in GUIDES.items()]
    jobs = [job for job in jobs if re.search(options.only, job[0])]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, *job, options.steps) for job in jobs]
        rows = []
        for future in futures:
            rows.append(future.result())
            print(rows[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(options.out / "catalogue.csv", index=False)


if __name__ == "__main__":
    main()
