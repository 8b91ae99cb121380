"""What inclusion probabilities mean: error rates, power and reliability where the truth is known.

Fits networks to digits among decoy channels and to data of a planted network, with masks of weights and of features, at
several temperatures of weights and masks; selects features as recommended and predicts with what was selected; trains
opponents that rank features by the norm of their weights. Every fit is a file in the working folder, so that a run can
be stopped and started again. `inclusion_report.py` makes tables and pictures of what is there.

    python benchmarks/inclusion.py --jobs 2 --work FOLDER
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from inclusion_methods import METHODS, GroupLasso
from selection import KEPT, KEPT_TEMPERATURE, refit
from torch import Tensor

import pyro_isingvit as iv
from pyro_isingvit.data import TestBed, digits_decoys, planted_network
from pyro_isingvit.diagnostics import inclusion_reliability, select, selection_table
from pyro_isingvit.diagnostics.calibration import metrics
from pyro_isingvit.guides.estimators import HeldOut
from pyro_isingvit.models.priors.structured import UNIT_LEVELS

SEEDS = (0, 1, 2, 3, 4)

FRESH = (5, 6, 7, 8, 9)
"""Seeds that nobody looked at when the method was made; for selections alone."""

LATER = (10, 11, 12, 13, 14)
"""Seeds that nobody looked at when the probabilities of shadows were made; for these alone."""

STEPS = 3000

LEVELS: Mapping[str, Callable[[Any], iv.Prior]] = {
    "weights": lambda sites: iv.IsingSpikeSlab(sites),
    "features": lambda sites: iv.StructuredSpikeSlab(sites, levels={"patch_embed": ("patch",)}),
    "units": lambda sites: iv.StructuredSpikeSlab(sites, levels=UNIT_LEVELS),
}
"""Priors by what has a mask of its own: every weight; a feature of a patch, and every weight elsewhere; every unit."""

BEDS = (("digits", 4), ("digits", 8), ("noise", 4), ("correlated", 4), ("planted", 4))
"""Test beds of the selections, and heights of a patch."""

PREDICT = (0.001, 0.003, 0.01)
"""Temperatures of the predictions from what was selected. Validation images choose."""

SELECTED = {"predict": "select", "predict shadows": "shadows"}
"""Tasks that predict from a selection, and the tasks that make it."""

OPPONENTS: Mapping[str, tuple[tuple[float, float], ...]] = {
    "group lasso": ((0.003, 1000), (0.001, 1000), (0.001, 300), (0.003, 300), (0.003, 100), (0.01, 100), (0.001, 100)),
    "weight decay": ((0.003, 0), (0.01, 0), (0.03, 0)),
    "dropout": ((1.0, 0.0), (1.0, 0.2), (1.0, 0.4)),
    "sparse VD": ((0.0006, 0), (0.002, 0), (0.006, 0)),
    "magnitude": ((1.0, 0.12), (1.0, 0.25), (1.0, 0.5)),
}
"""Settings of each opponent: temperature (which scales its penalty), and strength. Validation images choose."""


@dataclass(frozen=True)
class Cell:
    """One fit, or one selection with the fits that predict from it.

    Attributes:
        task: ``"select"``, features alone at temperature 1; ``"predict"``, given that selection; ``"shadows"``,
            `select` by shadows; ``"predict shadows"``, given that; ``"all features"``, the same without a selection;
            ``"grid"``; ``"held-out"``, the same with gains from the validation images;
            ``"guides"``, other guides and slabs; or the name of an opponent.
        bed: ``"digits"``, ``"noise"``, ``"correlated"`` (decoys of that kind), or ``"planted"``.
        patch: height and width of a patch; 4 gives 16 features a channel, 8 gives 64.
        seed: seed of the decoys, the split, the first weights and the fit.
        level: of the masks, see `LEVELS`; of the task ``"guides"``, the name of one of `METHODS`.
        temperature: of the weights.
        mask_temperature: of the masks of the patch embedding; None for that of the weights.
        strength: rate of dropout, or strength of the group lasso, or share of the features kept by magnitude.
        images: number of training images; 300, or 1,000 for the planted network, if None.
    """

    task: str
    bed: str
    patch: int
    seed: int
    level: str = ""
    temperature: float = 1.0
    mask_temperature: float | None = None
    strength: float = 0.0
    images: int | None = None

    @property
    def key(self) -> str:
        return "-".join(str(value) for value in asdict(self).values() if value not in ("", None))


def cells() -> list[Cell]:
    """All fits, those that matter most first."""
    every = [Cell("select", bed, patch, seed) for seed in SEEDS for bed, patch in BEDS]
    every += [Cell("select", "digits", 4, seed) for seed in FRESH]
    every += [Cell("select", "digits", 4, seed, images=n) for seed in SEEDS[:3] for n in (100, 1000)]
    every += [Cell("shadows", "digits", 8, seed) for seed in (*LATER, *SEEDS, *FRESH)]
    every += [Cell("shadows", "digits", 4, seed) for seed in (*SEEDS, *FRESH)]
    every += [Cell("shadows", bed, 4, seed) for seed in SEEDS[:3] for bed in ("noise", "correlated", "planted")]
    every += [Cell("predict", "digits", patch, seed, "units", T) for patch in (4, 8) for seed in SEEDS for T in PREDICT]
    every += [Cell("predict shadows", "digits", 8, seed, "units", T) for seed in SEEDS for T in PREDICT]
    every += [Cell("all features", "digits", 4, seed, "units", T) for seed in SEEDS for T in PREDICT]
    every += [
        Cell(name, "digits", patch, seed, temperature=T, strength=strength)
        for patch in (4, 8)
        for seed in SEEDS
        for name, settings in OPPONENTS.items()
        for T, strength in settings
    ]
    every += [
        Cell("grid", "digits", 4, seed, level, T, mask_T)
        for seed in SEEDS[:3]
        for level in ("weights", "features")
        for T in (0.002, 0.02, 0.2, 1.0)
        for mask_T in (None, 1.0)
        if not (T == 1.0 and mask_T == 1.0)
    ]
    every += [
        Cell("held-out", "digits", 4, seed, level, T, mask_T)
        for seed in SEEDS[:3]
        for level in ("weights", "features")
        for T in (0.002, 0.02, 0.2, 1.0)
        for mask_T in (None, 1.0)
        if not (T == 1.0 and mask_T == 1.0)
    ]
    every += [Cell("guides", "digits", 4, seed, name, T) for seed in SEEDS[:3] for name in METHODS for T in (1.0, 0.2)]
    return every


def bed_of(cell: Cell) -> tuple[TestBed, iv.data.Data]:
    """The test bed of a cell, and its images."""
    planted = cell.bed == "planted"
    bed = planted_network(seed=cell.seed) if planted else digits_decoys(7, cell.bed, cell.seed)  # type: ignore[arg-type]
    train = cell.images or (1000 if planted else 300)
    test = min(1000, len(bed.images) - train - 300)
    data = iv.split(bed.images, train=train, test=test, validation=300, seed=cell.seed)
    return bed, data


def network_of(cell: Cell, bed: TestBed, dropout: float = 0.0) -> iv.ViT:
    torch.manual_seed(cell.seed)
    channels, side, _ = bed.images.shape
    geometry = {"image_size": side, "patch_size": cell.patch, "channels": channels, "classes": bed.images.classes}
    return iv.ViT(iv.ViTConfig(**geometry, mlp_ratio=8, dropout=dropout))


def run(cell: Cell, work: Path) -> dict[str, Any]:
    """Run a cell; returns its settings and results."""
    torch.set_num_threads(1)
    bed, data = bed_of(cell)
    start = time.perf_counter()
    config = iv.FitConfig(
        steps=STEPS, learning_rate=4e-3, pilot=0.4, temperature=cell.temperature, seed=cell.seed, device="cpu"
    )
    truth = bed.features(cell.patch)
    if cell.task == "select":
        found = _select(cell, bed, data, config)
    elif cell.task == "shadows":
        found = _by_shadows(cell, bed, data)
    elif cell.task in SELECTED or cell.task == "all features":
        found = _predict(cell, bed, data, config, work)
    elif cell.task in ("grid", "held-out"):
        found = _grid(cell, bed, data, config, truth)
    elif cell.task == "guides":
        network, method = network_of(cell, bed), METHODS[cell.level]
        guide = method.guide(iv.IsingViT(network, method.prior(network.weight_sites())))
        found = _measured(guide, data, config, truth, {"fit": None})
    else:
        found = _opponent(cell, bed, data, config)
    scores = found.pop("scores")
    if len(scores) == len(truth):  # one mask for each feature
        found["scores"] = [round(value, 5) for value in scores.tolist()]
        found["truth"] = truth.tolist()
    return asdict(cell) | found | {"seconds": round(time.perf_counter() - start)}


def _select(cell: Cell, bed: TestBed, data: iv.data.Data, config: iv.FitConfig) -> dict[str, Any]:
    """Masks of features alone, at temperature 1."""
    network = network_of(cell, bed)
    guide = iv.LikelihoodGuided(iv.IsingViT(network, iv.FeatureSpikeSlab(network.weight_sites())))
    posterior = iv.fit(guide, data.train, config=config, progress=False).posterior
    probs = posterior.inclusion_probabilities()["patch_embed"].flatten()
    return {"scores": probs} | _predictions(posterior, data)


def _by_shadows(cell: Cell, bed: TestBed, data: iv.data.Data) -> dict[str, Any]:
    """Probabilities of features by shadows, from fits that keep all of them."""
    torch.manual_seed(cell.seed)
    again = refit(cell.patch, KEPT, KEPT_TEMPERATURE)
    unfitted = iv.FeatureSpikeSlab(network_of(cell, bed).weight_sites())
    guide = iv.LikelihoodGuided(iv.IsingViT(network_of(cell, bed), unfitted))
    found = select(iv.Posterior.of(guide), 0.05, "shadow", train=data.train, refit=again, seed=cell.seed)
    return {"scores": torch.tensor(found.table["score"].to_numpy())}


def _predict(cell: Cell, bed: TestBed, data: iv.data.Data, config: iv.FitConfig, work: Path) -> dict[str, Any]:
    """Masks of units at the cell's temperature, given the features selected, or with all features."""
    network = network_of(cell, bed)
    guide = iv.LikelihoodGuided(iv.IsingViT(network, LEVELS[cell.level](network.weight_sites())))
    if cell.task in SELECTED:
        chosen = torch.tensor(_read(work, Cell(SELECTED[cell.task], cell.bed, cell.patch, cell.seed))["scores"])
        guide.hold_masks({"patch_embed": chosen.view(guide.mask_shapes["patch_embed"])})
    posterior = iv.fit(guide, data.train, config=config, progress=False).posterior
    probs = posterior.inclusion_probabilities()["patch_embed"].flatten()
    return {"scores": probs} | _predictions(posterior, data)


def _grid(cell: Cell, bed: TestBed, data: iv.data.Data, config: iv.FitConfig, truth: Tensor) -> dict[str, Any]:
    network = network_of(cell, bed)
    mask_temperature = None if cell.mask_temperature is None else {"patch_embed": cell.mask_temperature}
    model = iv.IsingViT(network, LEVELS[cell.level](network.weight_sites()))
    estimator: Any = "squared_gradient"
    if cell.task == "held-out":
        estimator = partial(HeldOut, held_out=(data.validation.images, data.validation.labels))
    guide = iv.LikelihoodGuided(model, estimator=estimator, mask_temperature=mask_temperature)
    return _measured(guide, data, config, truth, {"fit": None, "read off at 1": 1.0})


def _measured(
    guide: iv.Guide,
    data: iv.data.Data,
    config: iv.FitConfig,
    truth: Tensor,
    temperatures: Mapping[str, float | None],
) -> dict[str, Any]:
    """Fit, and measure the masks of the patch embedding, at some temperatures of the evidence by name."""
    posterior = iv.fit(guide, data.train, config=config, progress=False).posterior
    tables = {}
    for name, temperature in temperatures.items():
        probs = posterior.inclusion_probabilities(temperature)["patch_embed"]
        relevant = truth.expand(probs.shape)
        tables[name] = {
            "rates": selection_table(probs, relevant, [0.5]).to_dict("records")[0],
            "reliability": inclusion_reliability(probs, relevant).to_dict("records"),
        }
    probs = posterior.inclusion_probabilities()["patch_embed"].flatten()
    return {"scores": probs, "tables": tables} | _predictions(posterior, data)


def _opponent(cell: Cell, bed: TestBed, data: iv.data.Data, config: iv.FitConfig) -> dict[str, Any]:
    """An opponent; features are ranked by the norms of their weights."""
    dropout = cell.task == "dropout"
    network = network_of(cell, bed, cell.strength if dropout else 0.0)
    sites = network.weight_sites()
    priors: dict[str, Callable[[], iv.Prior]] = {
        "group lasso": lambda: GroupLasso(sites, cell.strength),
        "weight decay": lambda: iv.Prior(sites),
        "sparse VD": lambda: iv.priors.LogUniform(sites),
    }
    model = iv.IsingViT(network, priors.get(cell.task, lambda: iv.priors.Flat(sites))())
    family = iv.guides.SparseVariationalDropout if cell.task == "sparse VD" else iv.guides.PointEstimate
    posterior = iv.fit(family(model), data.train, config=config, progress=False).posterior
    norms = posterior.mean_weights({})["patch_embed"].square().sum(0).sqrt()
    if cell.task == "magnitude":
        keep = norms >= norms.topk(max(1, round(cell.strength * len(norms)))).values[-1]
        guide = posterior.guide
        masks = {site.name: torch.ones(site.shape) for site in guide.model.sites}
        guide.model.fix_masks(masks | {"patch_embed": keep.float().expand(masks["patch_embed"].shape).clone()})
        again = config.model_copy(update={"steps": STEPS // 4})
        posterior = iv.fit(guide, data.train, config=again, progress=False).posterior
        norms = torch.where(keep, norms, norms * 1e-3)
    draws = 50 if cell.task == "sparse VD" else 1
    return {"scores": norms / norms.max()} | _predictions(posterior, data, draws)


def _predictions(posterior: iv.Posterior, data: iv.data.Data, draws: int = 50) -> dict[str, Any]:
    """Scores of predictions that are calibrated on the validation images."""
    posterior = posterior.calibrate(data.validation)
    validation, test = (posterior.predict(part.images, draws).probs for part in (data.validation, data.test))
    of_test = metrics(test, data.test.labels)
    return {
        "validation_nll": metrics(validation, data.validation.labels)["nll"],
        "nll": of_test["nll"],
        "accuracy": of_test["accuracy"],
        "kept": posterior.densities().get("median_density", 1.0),
    }


def _read(work: Path, cell: Cell) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work / f"{cell.key}.json").read_text())
    return found


def _job(cell: Cell, work: Path) -> str:
    path = work / f"{cell.key}.json"
    found = run(cell, work)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(found))
    draft.rename(path)
    shown = {name: round(found[name], 3) for name in ("validation_nll", "nll", "accuracy", "seconds") if name in found}
    return f"{cell.key}: {shown}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/inclusion"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", help="Only cells whose key begins with this.", default="")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    waiting = [cell for cell in cells() if cell.key.startswith(options.only)]
    left = [cell for cell in waiting if not (options.work / f"{cell.key}.json").exists()]
    print(f"{len(waiting) - len(left)} of {len(waiting)} are done", flush=True)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        # Selections first: predictions read them.
        for chosen in (True, False):
            some = [cell for cell in left if (cell.task in SELECTED.values()) is chosen]
            for line in pool.map(_job, some, [options.work] * len(some)):
                print(line, flush=True)


if __name__ == "__main__":
    main()
