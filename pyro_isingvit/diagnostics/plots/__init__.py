"""Plots. ``plot_*`` functions draw on ``ax`` and return it; ``figure_*`` functions return a new figure.

Methods can be told apart in greyscale and by colour-blind readers.
"""

from .attention import figure_attention
from .inclusion import plot_heads, plot_inclusion, plot_mask, plot_thresholds
from .predictive import (
    figure_samples,
    plot_check,
    plot_radar,
    plot_reliability,
    plot_selective,
    plot_shift,
    plot_uncertainty,
)
from .prior import plot_prior_size
from .selection import figure_features, plot_inclusion_reliability, plot_selection
from .training import figure_training, plot_density, plot_loss, plot_path

__all__ = [
    "figure_attention",
    "figure_features",
    "figure_samples",
    "figure_training",
    "plot_check",
    "plot_density",
    "plot_heads",
    "plot_inclusion",
    "plot_inclusion_reliability",
    "plot_loss",
    "plot_mask",
    "plot_path",
    "plot_prior_size",
    "plot_radar",
    "plot_reliability",
    "plot_selection",
    "plot_selective",
    "plot_shift",
    "plot_thresholds",
    "plot_uncertainty",
]
