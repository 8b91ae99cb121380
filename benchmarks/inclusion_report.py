"""Tables and pictures of what `inclusion.py` fitted.

Writes ``docs/inclusion.csv``, the pictures of ``docs/inclusion.md``, and the table of measurements that ships with the
package; prints the tables of ``docs/inclusion.md``.

    python benchmarks/inclusion_report.py --work FOLDER
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from inclusion import FRESH, LATER, OPPONENTS, SEEDS, Cell, bed_of, cells
from inclusion_methods import METHODS
from matplotlib.figure import Figure
from torch import Tensor

import pyro_isingvit as iv
from pyro_isingvit.diagnostics import inclusion_reliability, selection_table
from pyro_isingvit.diagnostics.calibration import wilson_interval
from pyro_isingvit.diagnostics.error_rates import while_mean_is_below
from pyro_isingvit.diagnostics.plots import plot_inclusion_reliability, plot_selection
from pyro_isingvit.diagnostics.plots.style import figure_of
from pyro_isingvit.experiments.page import markdown

LEAST = 100
"""Least number of masks of a bin that counts for the largest gap of a reliability curve."""

NAMES = {
    "predict": "ours, given the selection by the posterior",
    "predict shadows": "ours, given the selection by shadows",
    "all features": "ours, all features",
}
"""How tasks of ours are called in tables."""

RATES = 0.05, 0.1, 0.2
"""Nominal false discovery rates of the selection by shadows."""

SHOWN = (("weights", 0.002, 0.002), ("features", 0.2, 1.0))
"""Settings of the grid whose reliability is drawn: masks, temperature of weights, of masks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/inclusion"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    shipped = Path(iv.__file__).parent / "diagnostics" / "measured.csv"
    parser.add_argument("--measured", type=Path, default=shipped, help="Table that ships.")
    parser.add_argument("--guides", action="store_true", help="Print the table of other guides alone; write nothing.")
    parser.add_argument("--shadows", action="store_true", help="Tables and picture of the selection by shadows alone.")
    options = parser.parse_args()
    every = _rows(options.work)
    guides = every[every["task"] == "guides"]
    if len(guides):
        print(f"## Other guides and slabs\n\n{markdown(_guides(guides))}\n")
    if options.guides:
        return
    _report_shadows(every, options.out)
    if options.shadows:
        return
    every.drop(columns="found").round(4).to_csv(options.out / "inclusion.csv", index=False)
    chosen, grid = (every[every["task"] == task] for task in ("select", "grid"))
    print(f"\n## Selection by the posterior\n\n{markdown(_selections(chosen))}")
    chosen = chosen[chosen["images"].isna()]
    apart = chosen["bed"] != "correlated"
    curves = {
        "features alone, T = 1": inclusion_reliability(*_pooled(chosen[apart])),
        "the same, correlated decoys": inclusion_reliability(*_pooled(chosen[~apart])),
    }
    print("\nReliability of features alone at T = 1, pooled over all beds but correlated ones:\n")
    print(markdown(curves["features alone, T = 1"].round(3)))
    trusted = chosen[chosen["bed"].isin(("digits", "noise"))]
    facts = [_fact("features alone", 1.0, 1.0, trusted, inclusion_reliability(*_pooled(trusted)))]
    rows = []
    by_setting = grid.assign(at=grid["mask_temperature"].fillna(grid["temperature"]))
    for (level, temperature, at), group in by_setting.groupby(["level", "temperature", "at"], sort=False):
        merged = _merged([found["tables"]["fit"]["reliability"] for found in group["found"]])
        facts.append(_fact(level, temperature, at, group, merged))
        rows.append(_setting(level, temperature, at, group, merged))
        if (level, temperature, at) in SHOWN:
            curves[f"masks of {level}, T = {temperature:g}, of masks {at:g}"] = merged
    print(f"\n## Temperatures of weights and masks\n\n{markdown(pd.DataFrame(rows))}")
    pd.DataFrame(facts).to_csv(options.measured, index=False)
    figure_of(plot_inclusion_reliability(curves)).savefig(options.out / "inclusion_reliability.png", dpi=150)
    print("\n## Against opponents\n")
    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    for ax, patch in zip(figure.subplots(1, 2), (4, 8), strict=True):
        best = _tuned(every[(every["patch"] == patch) & (every["bed"] == "digits")])
        print(markdown(_against(best)), "\n")
        plot_selection(_ranked(best), at=0.1, ax=ax).set_xlabel(f"false discovery rate, {patch**2} features a channel")
    figure.savefig(options.out / "inclusion_power.png", dpi=150)


def _report_shadows(every: pd.DataFrame, out: Path) -> None:
    """Tables of the selection by shadows, and its picture: reliability, and power against opponents."""
    shadows = every[every["task"] == "shadows"]
    print(f"## Selection by shadows\n\n{markdown(_selections(shadows))}\n\n{markdown(_nominal(shadows))}")
    print("\nReliability of probabilities by shadows, pooled over all beds but correlated ones:\n")
    curve = inclusion_reliability(*_pooled(shadows[shadows["bed"] != "correlated"]))
    print(markdown(curve.round(3)))
    fine = every[(every["patch"] == 8) & (every["bed"] == "digits") & every["seed"].isin(SEEDS)]
    best = _tuned(fine)
    print(f"\n64 features a channel, predictions:\n\n{markdown(_against(best))}")
    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_inclusion_reliability({"ising": curve}, ax=left)
    named = {"ising": _ranked(fine[fine["task"] == "shadows"])["shadows"]}
    of_opponents = _ranked(best[best["task"].isin(OPPONENTS)])
    plot_selection(named | of_opponents, at=0.1, ax=right).set_xlabel("false discovery rate, 64 features a channel")
    figure.savefig(out / "inclusion_shadows.png", dpi=150)


def _ranked(fits: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Power against false discovery rate of ranks within each fit, by task."""
    tables = {}
    for name, group in fits.groupby("task", sort=False):
        scores, truth = _pooled(group, ranked=True)
        tables[NAMES.get(name, name)] = selection_table(scores, truth, scores.unique().tolist())
    return tables


def _selections(chosen: pd.DataFrame) -> pd.DataFrame:
    """A row for each test bed and set of seeds."""
    named = {SEEDS: "0 to 4", FRESH: "5 to 9", LATER: "10 to 14"}
    sets = chosen["seed"].map(lambda seed: next(name for seeds, name in named.items() if seed in seeds))
    rows = []
    every = chosen.assign(seeds=sets, images=chosen["images"].fillna(0))
    for (bed, patch, images, seeds), group in every.groupby(["bed", "patch", "images", "seeds"], sort=False):
        gap = _largest_gap(inclusion_reliability(*_pooled(group)))
        rows.append(
            {
                "bed": bed,
                "features a channel": patch**2,
                "images": f"{images or (1000 if bed == 'planted' else 300):.0f}",
                "seeds": seeds if len(group) == len(SEEDS) else ", ".join(map(str, group["seed"])),
                "selected": ", ".join(f"{n:.0f}" for n in group["selected"]),
                "false, expected": f"{group['expected'].mean():.3f}",
                "false, realised": f"{group['false_discovery_rate'].mean():.3f}",
                "power": f"{group['power'].mean():.2f}",
                "largest gap": "-" if math.isnan(gap) else f"{gap:.3f}",
            }
        )
    return pd.DataFrame(rows)


def _nominal(shadows: pd.DataFrame) -> pd.DataFrame:
    """Rates and power of the selection by shadows at nominal rates, over all seeds of a test bed."""
    rows = []
    for (bed, patch), group in shadows.groupby(["bed", "patch"], sort=False):
        for fdr in RATES:
            found = []
            for row in group.itertuples():
                scores, truth = torch.tensor(row.found["scores"]).double(), _truth(row.bed, row.patch, row.seed)
                selected, _ = while_mean_is_below(1 - scores, fdr)
                false = float((~truth[selected]).double().mean()) if selected.any() else 0.0
                found.append(
                    {"selected": int(selected.sum()), "false": false, "power": float(selected[truth].double().mean())}
                )
            each = pd.DataFrame(found)
            rows.append(
                {
                    "bed": bed,
                    "features a channel": patch**2,
                    "fits": len(each),
                    "nominal": f"{fdr:g}",
                    "selected": f"{each['selected'].mean():.1f}",
                    "false, realised": f"{each['false'].mean():.3f} ({each['false'].sem():.3f})",
                    "most": f"{each['false'].max():.2f}",
                    "power": f"{each['power'].mean():.2f}",
                }
            )
    return pd.DataFrame(rows)


def _setting(level: str, temperature: float, at: float, group: pd.DataFrame, curve: pd.DataFrame) -> dict[str, str]:
    """The row of a setting of the grid."""
    off = pd.DataFrame([found["tables"]["read off at 1"]["rates"] for found in group["found"]]).mean()
    return {
        "masks of": level,
        "T": f"{temperature:g}",
        "of masks": f"{at:g}",
        "selected": f"{group['selected'].mean():.0f}",
        "false, expected": f"{group['expected'].mean():.2f}",
        "false, realised": f"{group['false_discovery_rate'].mean():.2f}",
        "power": f"{group['power'].mean():.2f}",
        "largest gap": f"{_largest_gap(curve):.2f}",
        "read off at 1: selected": f"{off['selected']:.0f}",
        "false": f"{off['false_discovery_rate']:.2f}",
        "accuracy %": f"{100 * group['accuracy'].mean():.1f}",
        "NLL": f"{group['nll'].mean():.2f}",
    }


def _guides(fits: pd.DataFrame) -> pd.DataFrame:
    """A row for each guide and slab, and temperature."""
    rows = []
    for (name, temperature), group in fits.groupby(["level", "temperature"], sort=False):
        curve = _merged([found["tables"]["fit"]["reliability"] for found in group["found"]])
        rows.append(
            {
                "guide, slab": name,
                "masks of": METHODS[name].masks,
                "T": f"{temperature:g}",
                "seeds": ", ".join(map(str, group["seed"])),
                "selected": f"{group['selected'].mean():.0f}",
                "false, expected": f"{group['expected'].mean():.3f}",
                "false, realised": f"{group['false_discovery_rate'].mean():.3f}",
                "power": f"{group['power'].mean():.2f}",
                "largest gap": f"{_largest_gap(curve):.2f}",
                "accuracy %": f"{100 * group['accuracy'].mean():.1f}",
                "NLL": f"{group['nll'].mean():.2f}",
            }
        )
    return pd.DataFrame(rows)


def _rows(work: Path) -> pd.DataFrame:
    """All cells that are done, with error rates at a threshold of 0.5."""
    rows = []
    for cell in cells():
        path = work / f"{cell.key}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        truth = _truth(cell.bed, cell.patch, cell.seed)
        rates = found["tables"]["fit"]["rates"] if "tables" in found else _selected(found["scores"], truth)
        rates = {name: rates[name] for name in ("selected", "expected", "false_discovery_rate", "power")}
        if cell.task in OPPONENTS:  # norms have no threshold of their own
            rates = dict.fromkeys(rates, math.nan)
        scored = {name: found.get(name, math.nan) for name in ("validation_nll", "nll", "accuracy", "kept")}
        row = asdict(cell) | rates | scored
        rows.append(row | {"seconds": found["seconds"], "found": found})
    return pd.DataFrame(rows)


@cache
def _truth(bed: str, patch: int, seed: int) -> Tensor:
    return bed_of(Cell("select", bed, patch, seed))[0].features(patch)


def _selected(scores: Sequence[float], truth: Tensor) -> dict[str, Any]:
    """Error rates of what has a score of at least 0.5."""
    return selection_table(torch.tensor(scores), truth, [0.5]).to_dict("records")[0]


def _pooled(group: pd.DataFrame, ranked: bool = False) -> tuple[Tensor, Tensor]:
    """Scores of all fits of a group, or their ranks within each fit, and the truth."""
    each = [_ranks(found["scores"]) if ranked else found["scores"] for found in group["found"]]
    truths = [_truth(row.bed, row.patch, row.seed) for row in group.itertuples()]
    return torch.tensor([score for scores in each for score in scores]), torch.cat(truths)


def _ranks(scores: Sequence[float]) -> list[float]:
    """Ranks within one fit, up to 1, so that fits whose scores have different scales can be pooled.

    Scores that are equal have the lowest of their ranks, since no threshold separates them.
    """
    ranks: list[float] = pd.Series(scores).rank(method="min", pct=True).tolist()
    return ranks


def _merged(curves: Sequence[list[dict[str, float]]]) -> pd.DataFrame:
    """One reliability curve from several."""
    every = pd.DataFrame([row for curve in curves for row in curve])
    total = every["masks"]
    sums = every.assign(probability=every["probability"] * total, relevant=every["relevant"] * total)
    merged = sums.groupby("bin")[["masks", "probability", "relevant"]].sum()
    for name in ("probability", "relevant"):
        merged[name] /= merged["masks"]
    lower, upper = wilson_interval(merged["relevant"], merged["masks"])
    gap = merged["relevant"] - merged["probability"]
    return merged.assign(lower=lower, upper=upper, gap=gap).reset_index()


def _largest_gap(curve: pd.DataFrame) -> float:
    return float(curve.loc[curve["masks"] >= LEAST, "gap"].abs().max())


def _fact(masks: str, temperature: float, at: float, group: pd.DataFrame, curve: pd.DataFrame) -> dict[str, Any]:
    """A row of `pyro_isingvit.diagnostics.measured_reliability`."""
    return {
        "masks": masks,
        "temperature": temperature,
        "mask_temperature": at,
        "fits": len(group),
        "claimed": round(group["expected"].mean(), 3),
        "realised": round(group["false_discovery_rate"].mean(), 3),
        "power": round(group["power"].mean(), 3),
        "largest_gap": round(_largest_gap(curve), 3),
    }


def _tuned(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each method and seed, the setting with the least NLL of validation images."""
    methods = rows[~rows["task"].isin(("select", "shadows", "grid", "held-out", "guides"))]
    return methods.loc[methods.groupby(["task", "seed"], sort=False)["validation_nll"].idxmin()]


def _against(best: pd.DataFrame) -> pd.DataFrame:
    """Scores of each method, and its NLL less ours, paired by seed."""
    own = "predict shadows" if "predict shadows" in set(best["task"]) else "predict"
    ours = best[best["task"] == own].set_index("seed")
    rows = []
    for name, group in best.groupby("task", sort=False):
        gap = group.set_index("seed")["nll"] - ours["nll"]
        rows.append(
            {
                "method": NAMES.get(name, name),
                "accuracy %": f"{100 * group['accuracy'].mean():.1f}",
                "NLL": f"{group['nll'].mean():.3f}",
                "NLL by seed": ", ".join(f"{value:.3f}" for value in group.sort_values("seed")["nll"]),
                "less ours": "" if name == own else f"{gap.mean():+.3f} ({gap.std() / len(gap) ** 0.5:.3f})",
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
