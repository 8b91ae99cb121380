"""Rules that select by scores, with control of the false discovery rate.

References:
    Barber & Candes, "Controlling the False Discovery Rate via Knockoffs", Annals of Statistics 2015.
    Efron, Tibshirani, Storey & Tusher, "Empirical Bayes Analysis of a Microarray Experiment", JASA 2001 (two groups).
    Meinshausen & Buhlmann, "Stability Selection", JRSS B 2010.
    Newton, Noueiry, Sarkar & Ahlquist, "Detecting Differential Gene Expression with a Semiparametric
    Hierarchical Mixture Method", Biostatistics 2004.
    Shah & Samworth, "Variable Selection with Error Control: Another Look at Stability Selection", JRSS B 2013.
    Storey, "A Direct Approach to False Discovery Rates", JRSS B 2002.
"""

import torch
from torch import Tensor


def knockoff_plus(statistics: Tensor, fdr: float) -> tuple[Tensor, float]:
    """Select by statistics whose signs are fair coins for what is irrelevant: the knockoff+ rule.

    Args:
        statistics: (n,), positive where there is evidence of relevance.
        fdr: nominal false discovery rate.

    Returns:
        Booleans (n,), and the estimated false discovery rate at the threshold: ``(1 + below) / above``.
    """
    for threshold in statistics.abs().unique():
        if threshold > 0:
            above, below = int((statistics >= threshold).sum()), int((statistics <= -threshold).sum())
            if above and (1 + below) / above <= fdr:
                return statistics >= threshold, (1 + below) / above
    return torch.zeros_like(statistics, dtype=torch.bool), 0.0


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
