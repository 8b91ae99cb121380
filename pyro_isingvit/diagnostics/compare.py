"""Comparison of priors on one data set, and sensitivity of a posterior to its prior and likelihood.

References:
    Giordano, Broderick & Jordan, "Covariances, Robustness, and Variational Bayes", JMLR 2018.
    Kallioinen, Paananen, Burkner & Vehtari, "Detecting and Diagnosing Prior and Likelihood Sensitivity with
    Power-Scaling", Statistics and Computing 2024.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..data import Images
from ..draws import Draw, check_draws
from ..errors import InputError, kind_of
from ..guides import Guide
from ..inference.config import FitConfig
from ..inference.fit import fit
from ..inference.inputs import check_part
from ..inference.result import FitResult
from ..posterior import Posterior
from ..scores import mean_scores
from .calibration import paired_difference
from .checks import leave_one_out
from .labels import labels_given

LOO_DRAWS = 100
"""Number of draws behind leave-one-out scores, which are shown if they are reliable."""

FEWEST = 50
"""Smallest number of draws from which covariances are estimated."""


@dataclass(frozen=True)
class PriorComparison:
    """Several priors on one data set.

    Attributes:
        table: one row for each prior, the one of least NLL first, see `compare_priors`.
        results: the fits, by name; their posteriors are those of the table, calibrated if there are validation images.
    """

    table: pd.DataFrame
    results: dict[str, FitResult]


def compare_priors(
    guides: Mapping[str, Guide],
    train: Images,
    held_out: Images,
    validation: Images | None = None,
    config: FitConfig | None = None,
    draws: int = 50,
    progress: bool = True,
) -> PriorComparison:
    """Fit models that differ in their priors to the same images, and compare their predictions of held-out images.

    Args:
        guides: by name, guides of models with the priors; each is fitted as it is, with the same seed and schedule.
        train: the training images.
        held_out: images for the comparison, which no fit sees.
        validation: for the temperature, if it is searched for, and the logit scale; see `fit`.
        config: how to fit; the default `FitConfig` if None.
        draws: number of posterior draws behind each prediction.
        progress: whether to show progress bars.

    Returns:
        The fits, and a table with columns ``prior``, its name; ``nll``, in nats, and ``accuracy`` of the held-out
        images; ``difference``, the NLL less that of the first row, with ``se``, its standard error among these images,
        which does not know how trainings differ; ``kept``, the share of the weights in the median-probability model,
        missing without masks; ``temperature`` of the posterior; ``elpd``, the leave-one-out score of the training
        images in nats, missing where ``k_hat``, the Pareto shape of the guide's importance weights, or that of an image
        is above 0.7, so that it cannot be relied on. That is so for all but tiny networks.

    Raises:
        InputError: if there are fewer than two guides, or two have the same model; see also `fit`.
        TrainingError: see `fit`.
    """
    if not isinstance(guides, Mapping) or len(guides) < 2:
        given = list(guides) if isinstance(guides, Mapping) else kind_of(guides)
        raise InputError(f"guides={given}: give two or more by name, {{'spike-and-slab': guide, ...}}")
    for name, guide in guides.items():
        if not isinstance(guide, Guide):
            raise InputError(f"guides[{name!r}]={kind_of(guide)}: give a guide, e.g. LikelihoodGuided(model)")
    for part in ("network", "prior"):
        if len({id(getattr(guide.model, part)) for guide in guides.values()}) < len(guides):
            raise InputError(f"guides: two have the same {part}; build a network, a prior and a model for each")
    config = FitConfig() if config is None else config
    results, probs, rows = {}, {}, []
    for name, guide in guides.items():
        result = fit(guide, train, validation, config, progress)
        posterior = result.posterior if validation is None else result.posterior.calibrate(validation)
        results[name] = replace(result, posterior=posterior)
        probs[name] = posterior.predict(held_out.images, draws, seed=config.seed).probs
        scores, loo = mean_scores(probs[name], held_out.labels.cpu()), leave_one_out(posterior, train, LOO_DRAWS)
        rows.append(
            {
                "prior": name,
                "nll": scores["nll"],
                "accuracy": scores["accuracy"],
                "kept": posterior.densities().get("median_density", math.nan),
                "temperature": posterior.model.temperature,
                "elpd": loo.elpd if loo.reliable else math.nan,
                "k_hat": loo.k_hat,
            }
        )
    table = pd.DataFrame(rows).sort_values("nll", ignore_index=True)
    best = probs[table["prior"][0]]
    gaps = [_nll_gap(probs[name], best, held_out.labels) for name in table["prior"]]
    table.insert(3, "difference", [gap for gap, _ in gaps])
    table.insert(4, "se", [error for _, error in gaps])
    return PriorComparison(table, results)


def _nll_gap(probs: Tensor, best: Tensor, labels: Tensor) -> tuple[float, float]:
    row = paired_difference(probs, best, labels).set_index("score").loc["nll"]
    return float(row["difference"]), float(row["se"])


def power_sensitivity(
    posterior: Posterior, train: Images, held_out: Images | None = None, draws: int = 400, seed: int = 0
) -> pd.DataFrame:
    r"""How much posterior means would change if the prior of the masks, or the likelihood, counted twice.

    If a factor of the posterior is raised to the power a, the derivative of the mean of a quantity g in log2 a, at
    a = 1, is ``log(2) * Cov(g, log factor)``. It is estimated from draws, whose log densities are those of the model;
    that the draws are from a guide is not corrected for. A change of less than its standard error says nothing. With
    many weights log densities vary by hundreds of nats, and so do the products that are averaged.

    The slab and the spike stay as they are: to the power of a they are other densities, and their values depend on the
    unit of the weights.

    Args:
        posterior: posterior of one guide, or a mixture.
        train: the images that it was fitted to.
        held_out: images whose mean NLL and, of classes, entropy are among the quantities; the training images if None.
        draws: number of draws, at least `FEWEST`.
        seed: seed of the draws.

    Returns:
        One row for each ``quantity``: ``kept`` in all and by site (the share of the weights with masks), ``nll`` and
        ``entropy`` of the network of a draw, in nats. Columns ``mean`` and ``sd`` over the draws; ``prior`` (of the
        masks, with their interaction; 0 without masks) and ``likelihood``, the change of the mean for a doubled power,
        to first order, in multiples of ``sd``; and ``prior_se`` and ``likelihood_se``, their standard errors over the
        draws.

    Raises:
        InputError: if there are fewer than `FEWEST` draws, or labels are of another kind or number than in the fit.
    """
    check_draws(draws)
    if draws < FEWEST:
        raise InputError(f"draws={draws}: covariances take at least {FEWEST}")
    held_out = train if held_out is None else held_out
    for name, part in (("train", train), ("held_out", held_out)):
        check_part(posterior.model, name, part)
    factors: dict[str, list[float]] = {"prior": [], "likelihood": []}
    every: list[dict[str, float]] = []
    for t, draw in enumerate(posterior.draws(draws, seed)):
        guide = posterior.guides[t % len(posterior.guides)]  # of which the draw is, see `Posterior.draws`
        factors["prior"].append(_log_prior_of_masks(guide, draw.masks))
        of_train = labels_given(draw, train.images).log_likelihood(train.labels)
        factors["likelihood"].append(float(of_train.double().sum()) / guide.model.temperature)
        every.append(_quantities(posterior, draw, held_out))
    table = pd.DataFrame(every)
    rows = []
    for name in table:
        values = torch.tensor(table[name].to_numpy(), dtype=torch.float64)
        row: dict[str, Any] = {"quantity": name, "mean": float(values.mean()), "sd": float(values.std())}
        for factor, logs in factors.items():
            row[factor], row[f"{factor}_se"] = _change(values, torch.tensor(logs, dtype=torch.float64))
        rows.append(row)
    return pd.DataFrame(rows)


@torch.no_grad()
def _log_prior_of_masks(guide: Guide, masks: Mapping[str, Tensor]) -> float:
    """Log density of masks under base measure and interaction, in nats, up to a constant."""
    prior, total = guide.model.prior, torch.zeros(())
    if not masks or guide.model.fixed_masks is not None:
        return 0.0
    with guide.hypers_at_median():
        for site in guide.model.sites:
            base = prior.mask(site)
            total = total if base is None else total + base.log_prob(masks[site.name]).cpu()
        if prior.interaction is not None:
            total = total + prior.interaction.energy(masks).cpu()
    return float(total)


def _change(values: Tensor, logs: Tensor) -> tuple[float, float]:
    """The change of a mean for a doubled power, in standard deviations, and its standard error."""
    if float(values.std()) == 0:
        return 0.0, 0.0
    products = math.log(2) * (values - values.mean()) / values.std() * (logs - logs.mean())
    return float(products.sum()) / (len(values) - 1), float(products.std()) / len(values) ** 0.5


def _quantities(posterior: Posterior, draw: Draw, held_out: Images) -> dict[str, float]:
    found: dict[str, float] = {}
    if draw.masks:
        sites = [site for site in posterior.model.sites if site.name in draw.masks]
        shares = {site.name: float(draw.masks[site.name].double().mean()) for site in sites}
        found["kept"] = sum(site.numel * shares[site.name] for site in sites) / sum(site.numel for site in sites)
        found |= {f"kept {name}": share for name, share in shares.items()}
    each = labels_given(draw, held_out.images)
    found["nll"] = -float(each.log_prob(held_out.labels).mean())
    if held_out.kind == "classes":
        found["entropy"] = float(torch.special.entr(each.mean).sum(-1).mean())
    return found
