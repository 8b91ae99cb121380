"""Colours and line styles of methods, which hold in greyscale and for colour-blind readers, and helpers for axes."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ...files import write
from ...network.stem import as_floats

DARK, LIGHT, ACCENT, GREY = "#1b3a5c", "#8ab6de", "#c8641e", "#9a9a9a"
MAP = "Blues"
"""Colour map of probabilities: white is 0, dark is 1."""

METHODS: dict[str, dict[str, Any]] = {
    "ising": {"color": DARK, "marker": "o", "ls": "-"},
    "median network": {"color": LIGHT, "marker": "s", "ls": "--"},
    "deterministic": {"color": ACCENT, "marker": "^", "ls": "-."},
}
"""Styles of the methods of a run. Colour, marker or dashes alone suffice to tell them apart."""

SPARE: list[dict[str, Any]] = [
    {"color": GREY, "marker": "D", "ls": ":"},
    {"color": "#2f7d5b", "marker": "v", "ls": "--"},
    {"color": "#7a4fa0", "marker": "P", "ls": "-"},
    {"color": "#b8a000", "marker": "X", "ls": "-."},
    {"color": "#5e5e5e", "marker": "*", "ls": (0, (1, 1))},
    {"color": "#c94f7c", "marker": "<", "ls": "--"},
    {"color": "#2a9fb0", "marker": ">", "ls": "-."},
]


def lines(methods: list[str], variants: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """A style for each method.

    Args:
        methods: their names.
        variants: name of the method for each name of a variant. A variant is drawn like its method, but dotted and with
            hollow markers.
    """
    names = {method: (variants or {}).get(method, method) for method in methods}
    unknown = dict.fromkeys(name for name in names.values() if name not in METHODS)
    known = METHODS | {name: SPARE[i % len(SPARE)] for i, name in enumerate(unknown)}
    variant = {"ls": ":", "mfc": "none"}
    return {method: known[name] if name == method else known[name] | variant for method, name in names.items()}


def new_axes(width: float, height: float) -> Axes:
    """Axes of a new figure, whose width and height are in inches; pyplot does not keep the figure alive."""
    return Figure(figsize=(width, height), layout="constrained").subplots()


def bare(ax: Axes) -> Axes:
    """Hide the upper and right border of axes, and return the axes."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def as_png(figure: Figure, dpi: int = 150) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def write_figure(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Write a figure as a PNG file; see `pyro_isingvit.files.write`."""
    write(path, as_png(figure, dpi))


def note_right(ax: Axes, row: float, text: str, offset: int) -> None:
    """Write text beside a row, right-aligned ``offset`` points beyond the right border."""
    at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    ax.annotate(text, (1, row), xytext=(offset, 0), va="center", ha="right", fontsize="small", **at)


def show_image(ax: Axes, image: Tensor) -> None:
    """Show an image (channels, height, width) of bytes or within [0, 1]; only its first channel unless it has three."""
    pixels = as_floats(image).cpu().permute(1, 2, 0).numpy()
    ax.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    ax.set_axis_off()


def figure_of(ax: Axes) -> Figure:
    """The figure that axes belong to."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure
