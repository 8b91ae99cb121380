"""Accuracy against size of networks that are pruned by posteriors, and by magnitude, on MNIST.

Fits posteriors held at several densities, and the deterministic network, with the same recipe from the same initial
weights. Cuts each to its density, fine-tunes the pruned network, writes ``docs/pruning.csv`` and ``docs/pruning.png``,
and prints the tables of ``docs/pruning.md``. This takes an hour or more on one thread:

    python benchmarks/pruning.py --data-root FOLDER --work FOLDER
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import Tensor

import pyro_isingvit as iv
from pyro_isingvit.diagnostics.calibration import metrics
from pyro_isingvit.diagnostics.units import alive_units
from pyro_isingvit.draws import evaluating, seeded
from pyro_isingvit.experiments.page import markdown
from pyro_isingvit.experiments.recipes import known_recipe
from pyro_isingvit.models.priors.structured import UNIT_LEVELS
from pyro_isingvit.pruning import costs, decide
from pyro_isingvit.pruning.decide import keep_best

DENSITIES = (0.15, 0.3, 0.5)
"""Shares of the weights. A posterior is held at one of them while it is fitted, and cut to the same."""

POSTERIORS = ("units, J = 1", "heads, J = 1", "weights, J = 1", "weights, J = 0")
"""Posteriors by what has a mask: hidden units and units of heads, hidden units and whole heads, or single weights."""

METHODS = (*POSTERIORS, "magnitude", "magnitude by kind")
TUNE = {"learning_rate": 1e-3, "batch_size": 64, "augment": "handwriting", "precision": "bfloat16"}


def build(method: str, seed: int) -> iv.Guide:
    """The guide of a method, with its model; all start from the same weights."""
    with seeded(torch.device("cpu"), seed):
        network = iv.ViT(iv.ViTConfig())
    sites = network.weight_sites()
    if method.startswith("magnitude"):
        model = iv.IsingViT(network, iv.priors.Flat(sites))
        return iv.guides.PointEstimate(model)
    coupling = float(method[-1])
    prior: iv.Prior
    if method.startswith("heads"):
        prior = iv.StructuredSpikeSlab(sites, coupling=coupling)
    elif method.startswith("units"):
        prior = iv.StructuredSpikeSlab(sites, levels=UNIT_LEVELS, coupling=coupling)
    else:
        prior = iv.IsingSpikeSlab(sites, coupling=coupling)
    return iv.LikelihoodGuided(iv.IsingViT(network, prior))


def _slug(method: str) -> str:
    return method.replace(" ", "").replace(",", "-")


def fitted(method: str, density: float, data: iv.data.Data, folder: Path, steps: int, seed: int) -> iv.FitResult:
    """Fit a method, or read an earlier fit."""
    plain = method.startswith("magnitude")
    where = folder / f"{'deterministic' if plain else f'{_slug(method)}-{density}'}-{seed}"
    if (where / "posterior.safetensors").exists():
        return iv.FitResult.load(where)
    known = known_recipe("mnist", len(data.train))
    assert known is not None
    settings = known["fit"] | {"steps": steps, "seed": seed, "precision": "bfloat16"}
    held = {"temperature": 1.0} if plain else {"target_density": density}
    result = iv.fit(build(method, seed), data.train, data.validation, iv.FitConfig(**settings | held))
    result.save(where)
    return result


def by_magnitude(posterior: iv.Posterior, density: float, by_kind: bool) -> iv.pruning.CompactViT:
    """Keep the units with the largest product of the norms of their ingoing and outgoing weights (or of query and key).

    Units are ranked all together, or each kind by itself.
    """
    weights = posterior.mean_weights({})
    norms = {name: weight.square() for name, weight in weights.items()}
    scores: dict[str, Tensor] = {
        "hidden": norms["encoder.up"].sum(2) * norms["encoder.down"].sum(1),
        "value": norms["encoder.value"].sum(3) * norms["encoder.out"].sum(1),
        "query_key": norms["encoder.query"].sum(3) * norms["encoder.key"].sum(3),
    }
    sizes = dict.fromkeys(scores, 1)  # each unit has 2 x dim weights
    kept = {k: m for unit in scores for k, m in keep_best({unit: scores[unit]}, {unit: 1}, density).items()}
    return iv.pruning.shrink(posterior.model.network, weights, kept if by_kind else keep_best(scores, sizes, density))


def judged(
    method: str, posterior: iv.Posterior, density: float, data: iv.data.Data, steps: int, seed: int
) -> pd.DataFrame:
    """Scores of the network cut to a density, before and after fine-tuning."""
    if method.startswith("magnitude"):
        small = by_magnitude(posterior, density, method.endswith("kind"))
    else:
        small = iv.prune(posterior, density=density)
    rows = []
    for tuned in (False, True):
        if tuned:
            settings = iv.FitConfig(**TUNE, steps=steps, seed=seed)
            iv.pruning.fine_tune(small, data.train, data.validation, settings, progress=False)
        with evaluating(small):
            probs = torch.cat([small(batch).softmax(-1) for batch in data.test.images.split(500)])
        size = sum(p.numel() for p in small.parameters())
        hidden = sum(layer.hidden for layer in small.config.layers)
        row = {"method": method, "seed": seed, "density": density, "tuned": tuned, "parameters": size, "hidden": hidden}
        rows.append(row | metrics(probs, data.test.labels))
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def dead_units(method: str, density: float, posterior: iv.Posterior) -> dict[str, object]:
    """Share of the units that are dead when the most probable weights are kept, up to a density."""
    masks = decide(posterior, "weight", density=density).masks
    dead = {
        f"{unit} dead": 1 - float(alive_units(posterior, unit, masks).double().mean())
        for unit in ("hidden", "value", "query_key")
    }
    return {"method": method, "density": density} | dead


def draw(table: pd.DataFrame, path: Path) -> None:
    _, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for ax, tuned in zip(panels, (False, True), strict=True):
        for method in METHODS:
            part = (
                table[(table["method"] == method) & (table["tuned"] == tuned)]
                .groupby("density")
                .mean(numeric_only=True)
            )
            ax.plot(part["parameters"] / 1000, 100 * part["accuracy"], "o-", label=method, markersize=4)
        ax.set(xscale="log", xlabel="parameters, thousands", title="trained on" if tuned else "as cut")
        ax.set_xticks([15, 20, 30, 40], ["15", "20", "30", "40"])
        ax.minorticks_off()
    panels[0].set(ylabel="accuracy, %", ylim=(80, 99))
    panels[1].legend()
    plt.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder to keep fits and their scores in")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--only", choices=METHODS, action="append", help="fit and cut only these methods, and exit")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--tune-steps", type=int, default=1000)
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    everything = iv.read("mnist", args.data_root)
    tables, dead, posteriors = [], [], {}
    for seed in args.seeds:
        data = iv.split(everything, 6000, None, 2000, seed)
        for method in args.only or METHODS:
            for density in args.densities:
                posterior = fitted(method, density, data, args.work, args.steps, seed).posterior
                posteriors[method, density] = posterior
                path = args.work / f"{_slug(method)}-{density}-{seed}.csv"
                if not path.exists():
                    judged(method, posterior, density, data, args.tune_steps, seed).to_csv(path, index=False)
                tables.append(pd.read_csv(path))
                if method in POSTERIORS:
                    dead.append(dead_units(method, density, posterior))
    if args.only:
        return
    table = pd.concat(tables)
    table.to_csv(args.out / "pruning.csv", index=False)
    draw(table, args.out / "pruning.png")
    shown = (
        table.assign(accuracy=100 * table["accuracy"]).groupby(["tuned", "density", "method"]).mean(numeric_only=True)
    )
    print(markdown(shown[["parameters", "hidden", "accuracy", "nll", "ece"]].reset_index()))
    print(markdown(pd.DataFrame(dead)))
    whole = posteriors["magnitude", args.densities[0]]
    dense = whole.network()
    probs = whole.predict_plug_in(data.test.images)
    print("dense", metrics(probs, data.test.labels))
    cut = {f"{density}": iv.prune(posteriors[POSTERIORS[0], density], density=density) for density in args.densities}
    both = iv.prune(posteriors[POSTERIORS[0], args.densities[-1]], density={"hidden": 0.45, "head_dim": 0.6})
    settings = iv.FitConfig(**TUNE | {"learning_rate": 2e-3}, steps=args.steps // 2, seed=args.seeds[-1])
    iv.pruning.fine_tune(both, data.train, data.validation, settings)
    with torch.no_grad():
        probs = torch.cat([both(batch).softmax(-1) for batch in data.test.images.split(500)])
    print("hidden .45, attention .6", [layer.hidden or layer.heads for layer in both.config.layers])
    print(metrics(probs, data.test.labels))
    cut["hidden .45, attention .6"] = both
    for name, cost in costs(
        {"dense": dense, "dense, folded": iv.pruning.shrink(dense)} | cut, data.test.images
    ).items():
        print(name, cost)


if __name__ == "__main__":
    main()
