"""Plots of inclusion probabilities and densities."""

import pandas as pd
from matplotlib.axes import Axes

from ...errors import InputError
from ...network import LAYER
from ...network.units import UNITS
from ...posterior import Posterior
from ..inclusion import inclusion_dataset, inclusion_table, threshold_table
from ..units import unit_inclusion
from .style import ACCENT, DARK, GREY, LIGHT, MAP, bare, figure_of, new_axes, note_right


def plot_inclusion(posterior: Posterior, ax: Axes | None = None) -> Axes:
    """Inclusion by role and block.

    Bars show the mean inclusion probability, lines the 90 % credible interval of the share of the weights that is kept,
    and dots that share in the median-probability model.

    Args:
        posterior: a posterior with masks.
        ax: axes to draw on; those of a new figure if None.
    """
    table = inclusion_table(posterior)
    names = [
        site if pd.isna(layer) else f"block {int(layer) + 1}  {site.removeprefix('encoder.')}"
        for site, layer in zip(table["site"], table["layer"], strict=True)
    ]
    ax = new_axes(5.8, 1.3 + 0.25 * len(table)) if ax is None else ax
    rows = range(len(table))
    ax.barh(rows, table["expected"], color=LIGHT, label="mean probability")
    ax.hlines(rows, table["lower"], table["upper"], color=GREY, lw=3, label="share kept, 90 %")
    ax.plot(table["median"], rows, "o", color=DARK, ms=5, clip_on=False, label="median model")
    for row, text in enumerate(["weights", *(f"{weights:,}" for weights in table["weights"])], -1):
        note_right(ax, row, text, 60)
    ax.set_yticks(rows, names)
    ax.set(xlim=(0, 1), ylim=(len(table) - 0.4, -1.4), xlabel="inclusion")
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, fontsize="small", frameon=False)
    return bare(ax)


def plot_heads(posterior: Posterior, ax: Axes | None = None) -> Axes:
    """Mean inclusion probability of the attention weights of each head, and the probability that it is alive.

    Args:
        posterior: a posterior of a `ViT`, with masks.
        ax: axes to draw on; those of a new figure if None.

    Raises:
        InputError: if no attention weights have masks.
    """
    probs = inclusion_dataset(posterior)
    roles = [role for role in UNITS["head"].owns if role in probs]
    if not roles:
        raise InputError("posterior: none of its attention weights has a mask, so there is nothing to draw by head")
    alive = unit_inclusion(posterior, "head")
    rows, names = [], []
    for block in range(alive.sizes[LAYER]):
        for role in roles:
            each = probs[role].isel({LAYER: block})
            each = each.mean([dim for dim in each.dims if dim != "head"])
            rows.append(each.broadcast_like(alive.isel({LAYER: block})).values)
            names.append(f"block {block + 1}  {role.removeprefix('encoder.')}")
        rows.append(alive.isel({LAYER: block}).values)
        names.append(f"block {block + 1}  alive")
    ax = new_axes(2.2 + 0.65 * len(rows[0]), 0.9 + 0.3 * len(rows)) if ax is None else ax
    ax.imshow(rows, cmap=MAP, vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            text = f"{value:.2f}"
            ax.text(j, i, text, ha="center", va="center", fontsize="small", color="white" if value > 0.6 else "black")
    for block in range(1, alive.sizes[LAYER]):
        ax.axhline(block * (len(roles) + 1) - 0.5, color="black", lw=1)
    ax.set_yticks(range(len(rows)), names)
    ax.set_xticks(range(len(rows[0])), [str(head + 1) for head in range(len(rows[0]))])
    ax.set(xlabel="head")
    return ax


def plot_mask(posterior: Posterior, site: str, layer: int | None = None, ax: Axes | None = None) -> Axes:
    """Inclusion probability of every weight of a site, as a matrix with outputs as rows and inputs as columns.

    Args:
        posterior: a posterior with masks.
        site: name of the site.
        layer: block to show, counted from 0; needed if the site has blocks, else None.
        ax: axes to draw on; those of a new figure if None.

    Raises:
        InputError: if there are no masks of that name, or ``layer`` does not fit the site.
    """
    every = posterior.inclusion_probabilities()
    sites = {s.name: s for s in posterior.model.sites if s.name in every}
    if site not in sites:
        raise InputError(f"site={site!r}: no masks of that name; there are {list(sites)}")
    probs = every[site].cpu().expand(sites[site].shape)
    dims = list(sites[site].dims)
    if LAYER in dims:
        axis = dims.index(LAYER)
        if layer is None or not 0 <= layer < probs.shape[axis]:
            raise InputError(f"layer={layer}: {site} has blocks 0 to {probs.shape[axis] - 1}; choose one")
        probs = probs.select(axis, layer)
        dims.remove(LAYER)
    elif layer is not None:
        raise InputError(f"layer={layer}: {site} has no blocks; leave it out")
    down = [d for d in dims if d in sites[site].writes]
    across = [d for d in dims if d not in down]
    order = [dims.index(d) for d in down + across]
    rows = 1
    for d in down:
        rows *= probs.shape[dims.index(d)]
    matrix = probs.permute(order).reshape(rows, -1).numpy()
    ax = new_axes(5, 0.6 + 5 * min(0.9, max(0.15, rows / matrix.shape[1]))) if ax is None else ax
    picture = ax.imshow(matrix, cmap=MAP, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    block = "" if layer is None else f", block {layer + 1}"
    ax.set(xlabel=", ".join(across), ylabel=", ".join(down), title=f"{site}{block}")
    figure_of(ax).colorbar(picture, ax=ax, label="inclusion probability", shrink=0.8)
    return ax


def plot_thresholds(posterior: Posterior, ax: Axes | None = None) -> Axes:
    """Share of the weights kept, and false discovery rate that the fit claims among them, against the threshold.

    The claimed rate is an error rate only where `inclusion_meaning` says so.

    Args:
        posterior: a posterior with masks.
        ax: axes to draw on; those of a new figure if None.
    """
    table = threshold_table(posterior)
    ax = new_axes(5, 3.2) if ax is None else ax
    ax.plot(table["threshold"], table["density"], color=DARK, label="weights kept")
    ax.plot(
        table["threshold"],
        table["claimed_false_discovery_rate"],
        color=ACCENT,
        ls="--",
        label="false, as the fit claims",
    )
    ax.axvline(0.5, color=GREY, lw=1, ls=":")
    ax.annotate("median model", (0.5, 0.99), xytext=(3, 0), textcoords="offset points", va="top", fontsize="small")
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="threshold of the inclusion probability", ylabel="share")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize="small", frameon=False)
    return bare(ax)
