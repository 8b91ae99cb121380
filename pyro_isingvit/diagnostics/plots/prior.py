"""Plots of a prior, without data."""

from matplotlib.axes import Axes

from ...models import Prior
from ...models.priors.size import mask_counts, numbers_kept
from .style import DARK, GREY, LIGHT, bare, new_axes

BINS = 30
"""Number of bars."""


def plot_prior_size(prior: Prior, draws: int = 200, units: bool = False, seed: int = 0, ax: Axes | None = None) -> Axes:
    """Histogram of the number of weights, or masks, that a prior keeps, with its interaction.

    Args:
        prior: a prior with masks.
        draws, units, seed: see `pyro_isingvit.models.priors.size.numbers_kept`.
        ax: axes to draw on; those of a new figure if None.

    Raises:
        InputError: if the prior has no masks.
        NotImplementedError: if the interaction of the prior does not implement `draw`.
    """
    kept = numbers_kept(prior, draws, units, seed)
    counts = mask_counts(prior)
    total = sum(counts.values()) if units else sum(prior.sites[name].numel for name in counts)
    mean, what = float(kept.mean()), "masks" if units else "weights"
    ax = new_axes(5.0, 3.0) if ax is None else ax
    ax.hist(kept.numpy(), bins=BINS, color=LIGHT, edgecolor=GREY, lw=0.5)
    ax.axvline(mean, color=DARK, label=f"mean {mean:,.0f}")
    ax.set(xlabel=f"{what} kept under the prior, of {total:,}", ylabel=f"draws, of {draws}")
    ax.legend(frameon=False)
    return bare(ax)
