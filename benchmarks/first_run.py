"""The first run, a bare ``isingvit fit``, over ten seeds: scores, what is kept and seconds, and differences by pairs.

    python benchmarks/first_run.py --out runs/first [--seeds 10]

Seeds that are done are not run again. Prints tables in Markdown.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from pyro_isingvit.experiments.page import markdown

COMMAND = [sys.executable, "-c", "from pyro_isingvit.cli import main; main()", "fit"]
SCORES = {"accuracy": ".1%", "nll": ".3f", "ece": ".3f", "auroc": ".3f", "density": ".0%", "seconds": ".0f"}


def run(seed: int, out: Path) -> dict[str, float]:
    """Run the command with a seed, unless it was; returns the seconds that it took in all."""
    took = out / f"{seed}.json"
    if not took.exists():
        start = time.perf_counter()
        subprocess.run([*COMMAND, "--seed", str(seed), "--out", str(out / str(seed))], check=True, capture_output=True)
        took.write_text(json.dumps({"seconds": time.perf_counter() - start}))
    return json.loads(took.read_text())["seconds"]


def summary(table: pd.DataFrame) -> str:
    """Median and range over seeds of each score, by method."""
    rows = []
    for method, own in table.groupby("method", sort=False):
        cells = {
            name: f"{own[name].median():{f}} ({own[name].min():{f}} to {own[name].max():{f}})"
            for name, f in SCORES.items()
        }
        rows.append({"": method} | cells)
    return markdown(pd.DataFrame(rows))


def differences(table: pd.DataFrame) -> str:
    """Mean over seeds of the mixture's score less that of each other method, with its standard error."""
    wide, rows = table.pivot(index="seed", columns="method"), []
    for other in table["method"].unique()[1:]:
        row = {"ising less": other}
        for name in ("accuracy", "nll", "ece", "auroc"):
            gap = wide[name]["ising"] - wide[name][other]
            row[name] = f"{gap.mean():+.4f} ± {gap.sem():.4f}"
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows, took = [], []
    for seed in range(options.seeds):
        took.append(run(seed, options.out))
        for method, scores in json.loads((options.out / str(seed) / "metrics.json").read_text()).items():
            rows.append({"seed": seed, "method": method} | {name: scores[name] for name in SCORES})
    table = pd.DataFrame(rows)
    times = pd.Series(took)
    print(summary(table), differences(table), sep="\n\n")
    print(f"\nIn all: {times.median():.0f} s ({times.min():.0f} to {times.max():.0f}).")


if __name__ == "__main__":
    main()
