"""Rules that select by scores, with control of the false discovery rate.

References:
    Barber & Candes, "Controlling the False Discovery Rate via Knockoffs", Annals of Statistics 2015 (fair coins).
    Efron, Tibshirani, Storey & Tusher, "Empirical Bayes Analysis of a Microarray Experiment", JASA 2001 (two groups).
    Kall, Storey, MacCoss & Noble, "Posterior Error Probabilities and False Discovery Rates: Two Sides of the Same
    Coin", Journal of Proteome Research 2008 (targets and decoys).
    Meinshausen & Buhlmann, "Stability Selection", JRSS B 2010.
    Newton, Noueiry, Sarkar & Ahlquist, "Detecting Differential Gene Expression with a Semiparametric
    Hierarchical Mixture Method", Biostatistics 2004.
    Shah & Samworth, "Variable Selection with Error Control: Another Look at Stability Selection", JRSS B 2013.
    Storey, "A Direct Approach to False Discovery Rates", JRSS B 2002.
"""

import math

import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

GRID = 500
"""Number of points of the grid over shares below one half."""


def relevance(statistics: Tensor) -> Tensor:
    """Probability that what each statistic is of is relevant; the sign is a fair coin if it is not.

    At a given distance from 0, as many irrelevant ones are below as above, and relevant ones are above. With a share q
    of all below, the local false discovery rate above is therefore q / (1 - q), the odds of being below, as for targets
    that compete with decoys. Isotonic regression finds q, which does not rise with the distance. At each of its levels,
    the rate is averaged over the posterior of q, whose prior is one half at 1/2, where nothing is relevant, and one
    half uniform below.

    Args:
        statistics: of any shape, positive where there is evidence of relevance. Those of several fits are pooled. Zeros
            say nothing, and are left out.

    Returns:
        Probabilities in that shape, 0 where a statistic is not positive.
    """
    flat = statistics.double().flatten()
    if not flat.any():
        return torch.zeros_like(flat).view(statistics.shape)
    decided = flat != 0
    below = (flat[decided] < 0).double()
    share = IsotonicRegression(increasing=False).fit_transform(flat[decided].abs().numpy(), below.numpy())
    levels, level = torch.from_numpy(share).unique(return_inverse=True)  # the furthest from 0 first
    number = torch.zeros_like(levels).index_add(0, level, torch.ones_like(below)).unsqueeze(1)
    under = torch.zeros_like(levels).index_add(0, level, below).unsqueeze(1)
    grid = (torch.arange(GRID, dtype=torch.double) + 0.5) / (2 * GRID)
    slab = under * grid.log() + (number - under) * (1 - grid).log() - math.log(GRID)
    weights = torch.cat([slab, number * math.log(0.5)], 1).softmax(1)[:, :-1]
    relevant = (weights * (1 - grid / (1 - grid))).sum(1).cummin(0).values
    found = torch.zeros_like(flat)
    found[decided] = torch.where(below > 0, 0.0, relevant[level])
    return found.view(statistics.shape)


def tail_rates(scores: Tensor, null: Tensor) -> Tensor:
    """False discovery rates of all that score as high, ``pi_0 (1 - F_0) / (1 - F)``, by empirical distributions.

    In the two-groups model this is the mean local false discovery rate of what is selected. (Local rates themselves,
    from an isotonic or spline estimate of the densities, had realised rates of .14 or .02 at a nominal .1.) The share
    ``pi_0`` of what is irrelevant is that of the scores below the median of the null, over a half, and at most 1.
    One more score is counted below that median, and one more of the null above each threshold, so that the estimates
    err upwards.

    Args:
        scores: (n,), higher where there is evidence of relevance.
        null: (m,), scores where nothing is relevant.

    Returns:
        Smallest rate at which each score is selected, within [0, 1], (n,).
    """
    scores, null = scores.double(), null.double()
    irrelevant = min(1.0, (1 + int((scores <= null.median()).sum())) / (len(scores) / 2))
    thresholds, inverse = scores.unique(return_inverse=True)
    above = len(scores) - torch.searchsorted(scores.sort().values, thresholds)
    null_above = len(null) - torch.searchsorted(null.sort().values, thresholds)
    rates = irrelevant * (1 + null_above) / (1 + len(null)) / (above / len(scores))
    return rates.cummin(0).values.clamp(0, 1)[inverse]


def stable(frequency: Tensor, selected: float, fdr: float) -> tuple[Tensor, float]:
    """Stability selection, at the lowest threshold at which its bound is at most a share of what is selected.

    With q of p masks selected in a fit, on average, the expected number of irrelevant masks whose frequency reaches
    a threshold above one half is at most ``q ** 2 / ((2 threshold - 1) p)``.

    Args:
        frequency: share of the fits in which each mask is selected, (p,).
        selected: q, the mean number of masks that a fit selects.
        fdr: nominal false discovery rate.

    Returns:
        Booleans (p,), and the bound as a share of their number.
    """
    for threshold in frequency[frequency > 0.5].unique():
        chosen = frequency >= threshold
        bound = selected**2 / ((2 * float(threshold) - 1) * len(frequency)) / int(chosen.sum())
        if bound <= fdr:
            return chosen, bound
    return torch.zeros_like(frequency, dtype=torch.bool), 0.0


def while_mean_is_below(errors: Tensor, fdr: float) -> tuple[Tensor, float]:
    """The largest set of lowest error probabilities whose mean is at most ``fdr``, and that mean."""
    ordered = errors.double().sort().values
    means = ordered.cumsum(0) / torch.arange(1, len(ordered) + 1)
    within = int((means <= fdr).sum())  # means of sorted values do not fall
    if not within:
        return torch.zeros_like(errors, dtype=torch.bool), 0.0
    selected = errors.double() <= ordered[within - 1]
    if int(selected.sum()) > within:  # a tie that goes on beyond: all of it, or none
        selected = errors.double() < ordered[within - 1]
    return selected, float(errors[selected].mean()) if selected.any() else 0.0
