"""Accuracy against size of networks cut from posteriors, and by magnitude, on MNIST.

Fits posteriors held at several densities, and the deterministic network, with the same recipe from the same weights;
cuts each to its density, trains the cut network on for a while, and writes ``docs/pruning.csv``, ``docs/pruning.png``
and the tables of ``docs/pruning.md``. An hour or more on one thread:

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
from pyro_isingvit.diagnostics.inclusion import Unit, alive_units
from pyro_isingvit.experiments.recipes import known_recipe
from pyro_isingvit.experiments.tables import markdown
from pyro_isingvit.models.priors.structured import UNIT_LEVELS
from pyro_isingvit.predict import evaluating, seeded
from pyro_isingvit.pruning import costs, decide
from pyro_isingvit.pruning.decide import keep_best

DENSITIES = (0.15, 0.3, 0.5)
"""Shares of the weights. A posterior is held at one, and cut to it."""

POSTERIORS = ("units, J = 1", "heads, J = 1", "weights, J = 1", "weights, J = 0")
"""By what has a mask: hidden units, and units of heads; hidden units, and whole heads; single weights."""

METHODS = (*POSTERIORS, "magnitude", "magnitude by kind")
TUNE = {"learning_rate": 1e-3, "batch_size": 64, "augment": "handwriting", "precision": "bfloat16"}


def build(method: str, seed: int) -> tuple[iv.IsingViT, iv.Guide]:
    """The pair of a method; all start at the same weights."""
    with seeded(torch.device("cpu"), seed):
        network = iv.ViT(iv.ViTConfig())
    sites = network.weight_sites()
    if method.startswith("magnitude"):
        model = iv.IsingViT(network, iv.priors.Flat(sites))
        return model, iv.guides.PointEstimate(model)
    coupling = float(method[-1])
    prior: iv.Prior
    if method.startswith("heads"):
        prior = iv.StructuredSpikeSlab(sites, coupling=coupling)
    elif method.startswith("units"):
        prior = iv.StructuredSpikeSlab(sites, levels=UNIT_LEVELS, coupling=coupling)
    else:
        prior = iv.IsingSpikeSlab(sites, coupling=coupling)
    model = iv.IsingViT(network, prior)
    return model, iv.LikelihoodGuided(model)


def _slug(method: str) -> str:
    return method.replace(" ", "").replace(",", "-")


def fitted(method: str, density: float, data: iv.data.Data, folder: Path, steps: int, seed: int) -> iv.FitResult:
    """Fit, or read the fit of before."""
    plain = method.startswith("magnitude")
    where = folder / f"{'deterministic' if plain else f'{_slug(method)}-{density}'}-{seed}"
    model, guide = build(method, seed)
    if (where / "posterior.safetensors").exists():
        return iv.FitResult.load(where, model, guide)
    known = known_recipe("mnist", len(data.train))
    assert known is not None
    settings = known["fit"] | {"steps": steps, "seed": seed, "precision": "bfloat16"}
    held = {"temperature": 1.0} if plain else {"target_density": density}
    result = iv.fit(guide, data.train, data.validation, iv.FitConfig(**settings | held))
    result.save(where)
    return result


def by_magnitude(result: iv.FitResult, density: float, by_kind: bool) -> iv.pruning.CompactViT:
    """Units of the largest products of norms of what enters and what leaves (or, of queries and keys, of both).

    Ranked all together, or as many of each kind.
    """
    weights = result.posterior.guide.mean_weights({})
    norms = {name: weight.square() for name, weight in weights.items()}
    scores: dict[Unit, Tensor] = {
        "hidden": norms["encoder.up"].sum(2) * norms["encoder.down"].sum(1),
        "head_dim": norms["encoder.value"].sum(3) * norms["encoder.out"].sum(1),
        "query_key": norms["encoder.query"].sum(3) * norms["encoder.key"].sum(3),
    }
    sizes = dict.fromkeys(scores, 1)  # each of them owns 2 x dim weights
    kept = {k: m for unit in scores for k, m in keep_best({unit: scores[unit]}, {unit: 1}, density).items()}
    return iv.pruning.shrink(
        result.posterior.model.network, weights, kept if by_kind else keep_best(scores, sizes, density)
    )


def judged(
    method: str, result: iv.FitResult, density: float, data: iv.data.Data, steps: int, seed: int
) -> pd.DataFrame:
    """Cut to a density, as it is and trained on."""
    if method.startswith("magnitude"):
        small = by_magnitude(result, density, method.endswith("kind"))
    else:
        small = iv.prune(result, density=density)
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


def dead_units(method: str, density: float, result: iv.FitResult) -> dict[str, object]:
    """The share of units that are dead when the most probable weights are kept, as many as the density says."""
    masks = decide(result.posterior.guide, "weight", density=density).masks
    dead = {
        f"{unit} dead": 1 - float(alive_units(result.posterior.guide, unit, masks).double().mean())
        for unit in ("hidden", "head_dim", "query_key")
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
    parser.add_argument("--work", type=Path, required=True, help="where fits and curves are kept")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--only", choices=METHODS, action="append", help="fit and cut these, and stop")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--tune-steps", type=int, default=1000)
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    everything = iv.read("mnist", args.data_root)
    tables, dead, results = [], [], {}
    for seed in args.seeds:
        data = iv.split(everything, 6000, None, 2000, seed)
        for method in args.only or METHODS:
            for density in args.densities:
                result = results[method, density] = fitted(method, density, data, args.work, args.steps, seed)
                path = args.work / f"{_slug(method)}-{density}-{seed}.csv"
                if not path.exists():
                    judged(method, result, density, data, args.tune_steps, seed).to_csv(path, index=False)
                tables.append(pd.read_csv(path))
                if method in POSTERIORS:
                    dead.append(dead_units(method, density, result))
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
    whole = results["magnitude", args.densities[0]]
    dense = whole.posterior.model.network
    dense.load_state_dict(dense.state_dict() | whole.posterior.guide.mean_weights({}))
    probs = whole.posterior.predict_plug_in(data.test.images)
    print("dense", metrics(probs, data.test.labels))
    cut = {f"{density}": iv.prune(results[POSTERIORS[0], density], density=density) for density in args.densities}
    both = iv.prune(results[POSTERIORS[0], args.densities[-1]], density={"hidden": 0.45, "head_dim": 0.6})
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
