"""Plot of attention maps."""

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from ..attention import Attention
from .style import show_image


def figure_attention(attention: Attention, images: Tensor, index: int = 0) -> Figure:
    """Attention rollout and the attention maps of all heads for one image.

    The first row shows the image, the share of each patch in the rollout, and the standard deviation of that share over
    the posterior. The other rows, one for each block, show how much each head attends to each patch, averaged over the
    tokens that attend, and the probability that the head is alive.

    Args:
        attention: from `pyro_isingvit.diagnostics.attention_maps`.
        images: the images that it was computed for, (n, channels, height, width).
        index: which of the images to show.
    """
    image = images[index].cpu()
    size = (int(image.shape[-2]), int(image.shape[-1]))
    mean, sd = attention.rollout_mean[index], attention.rollout_sd[index]
    depth, heads = attention.head_inclusion.shape
    patches = mean.numel()
    columns = max(3, heads)
    figure = Figure(figsize=(1.55 * columns + 0.6, 1.75 * (depth + 1)), layout="constrained")
    grid = figure.subplots(depth + 1, columns, squeeze=False)
    for ax in grid.flat:
        ax.set_axis_off()
    top = max(float(mean.max()), float(attention.mean[index].mean(-2).max()))
    for ax, (values, title) in zip(
        grid[0], ((None, "image"), (mean, "share in the answer"), (sd, "its posterior sd")), strict=False
    ):
        show_image(ax, image)
        ax.set_title(title, fontsize="small")
        if values is not None:
            picture = ax.imshow(_enlarged(values, size), cmap="viridis", vmin=0, vmax=top, alpha=0.65)
    figure.colorbar(picture, ax=grid, shrink=0.5, label="share").ax.tick_params(labelsize="x-small")
    for block in range(depth):
        # How much each patch is attended to, averaged over all tokens that attend.
        seen = attention.mean[index, block].mean(-2)[:, -patches:].view(heads, *mean.shape)
        for head in range(heads):
            ax = grid[block + 1, head]
            show_image(ax, image)
            ax.imshow(_enlarged(seen[head], size), cmap="viridis", vmin=0, vmax=top, alpha=0.65)
            alive = float(attention.head_inclusion[block, head])
            ax.set_title(f"block {block + 1}, head {head + 1}\nalive: {alive:.2f}", fontsize="x-small")
    return figure


def _enlarged(values: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Values of patches, (rows, columns), repeated for each pixel of an image of that size."""
    return F.interpolate(values[None, None].to(torch.float), size=size, mode="nearest")[0, 0].numpy()
