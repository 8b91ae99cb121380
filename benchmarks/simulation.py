"""Simulation-based calibration of guides on a tiny network.

Masks, weights and labels are drawn from the model, and a guide is fitted to the labels at temperature 1. If the guide
were the posterior, the rank of a quantity of the true draw among those of draws from the guide would be uniform.
Quantities do not change when hidden units swap places: the share of the weights that is kept, and the probability of a
class, averaged over new images. (Talts, Betancourt, Simpson, Vehtari & Gelman, arXiv 1804.06788.)

    python benchmarks/simulation.py --sets 100 --json simulation.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
import scipy.stats
import torch

import pyro_isingvit as iv
from pyro_isingvit.draws import Draw, prior_draws
from pyro_isingvit.experiments.page import markdown
from pyro_isingvit.guides import BackwardIsing
from pyro_isingvit.testing import TwoLayers

GUIDES = {"MeanField": iv.MeanField, "LikelihoodGuided": iv.LikelihoodGuided, "BackwardIsing": BackwardIsing}

DRAWS, BINS, IMAGES = 99, 10, 60
"""Draws from a guide, bins of their ranks, and images that it is fitted to."""


def model_of() -> iv.IsingViT:
    """Ten weights, each with a mask, of which those of a hidden unit are coupled."""
    network = TwoLayers()
    sites = network.weight_sites()
    graph = iv.CouplingGraph(sites, [iv.Coupling("first", "second", ("hidden",))])
    prior = iv.IsingSpikeSlab(sites, inclusion=0.5, coupling=0.3, couplings=graph, slab_scale=3.0)
    return iv.IsingViT(network, prior)


def quantities(draw: Draw, images: torch.Tensor) -> dict[str, float]:
    """Share kept, and mean probability of the second class."""
    kept = torch.cat([mask.flatten() for mask in draw.masks.values()]).mean()
    return {"kept": float(kept), "class": float(draw.log_probs(images)[:, 1].exp().mean())}


def ranks(family: Any, seed: int) -> dict[str, int]:
    """Rank of each quantity of a draw from the prior among draws from a guide that is fitted to its labels."""
    torch.manual_seed(seed)
    images, new = torch.rand(IMAGES, 1, 1, 3), torch.rand(200, 1, 1, 3)
    truth = next(prior_draws(model_of(), 1, seed))
    labels = torch.multinomial(truth.log_probs(images).exp(), 1).squeeze(-1)
    config = iv.FitConfig(
        steps=800, batch_size=20, learning_rate=2e-2, pilot=0.3, temperature=1.0, seed=seed, device="cpu"
    )
    posterior = iv.fit(family(model_of()), iv.Images(images, labels, 2), config=config, progress=False).posterior
    own = quantities(truth, new)
    found = [quantities(draw, new) for draw in posterior.draws(DRAWS, seed)]
    place = {}
    for name, value in own.items():
        below, equal = (sum(compare(other[name]) for other in found) for compare in (value.__gt__, value.__eq__))
        place[name] = below + int(torch.randint(equal + 1, ()))
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    every, rows = {}, []
    for name, family in GUIDES.items():
        table = pd.DataFrame([ranks(family, seed) for seed in range(options.sets)])
        every[name] = table.to_dict("list")
        for quantity in table:
            counts = table[quantity].floordiv((DRAWS + 1) // BINS).value_counts().reindex(range(BINS), fill_value=0)
            rows.append(
                {
                    "guide": name,
                    "quantity": quantity,
                    "p-value of uniform ranks": round(float(scipy.stats.chisquare(counts).pvalue), 4),
                    "outermost fifth": round(float((counts[0] + counts[BINS - 1]) / options.sets), 2),
                    "ranks by tenths": ", ".join(map(str, counts)),
                }
            )
        print(rows[-2:], flush=True)
    print(markdown(pd.DataFrame(rows)))
    if options.json is not None:
        options.json.write_text(json.dumps(every) + "\n")


if __name__ == "__main__":
    main()
