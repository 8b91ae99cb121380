"""Tables for the terminal."""

from rich import box
from rich.console import Console
from rich.table import Table

from ..network import ViT
from ..posterior import Posterior
from ..pruning import CompactViT
from ..scores import ENSEMBLE, ISING, MEDIAN
from .prune import NOTABLE_ZEROS, Pruned
from .runs import Run


def show_run(finished: Run) -> None:
    """Print the scores of a run."""
    config, result, data = finished.config, finished.result, finished.data
    numbers = f"{config.train} training, {len(data.validation)} validation and {len(data.test)} test images"
    table = Table(
        title=f"{config.dataset}: {numbers}\n"
        f"temperature {result.posterior.model.temperature:.2g}, seed {config.fit.seed}",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        caption="AUROC: by entropy, test images from the same turned by 90 degrees\n"
        "kept: weights of the median-probability model, relative to one network\n"
        "expected: mean inclusion probability; a score, not an error rate: see 'isingvit report'\n"
        "logits are scaled to suit the validation images, but for those of the median network",
        caption_justify="left",
    )
    if config.module is not None:
        model, shapes = result.posterior.model, result.posterior.guides[0].mask_shapes
        masked = sum(site.numel for site in model.sites if site.name in shapes)
        total = sum(parameter.numel() for parameter in model.network.parameters())
        table.caption = f"{masked:,} of {total:,} parameters of the network have a mask\n{table.caption}"
    table.add_column("", no_wrap=True)
    for column in ("accuracy", "NLL", "ECE", "AUROC", "kept", "expected", "seconds"):
        table.add_column(column, justify="right")
    for method, score in finished.scores.items():
        table.add_row(
            _name(method, config.members),
            f"{score['accuracy']:.2%}",
            f"{score['nll']:.4f}",
            f"{score['ece']:.4f}",
            f"{score['auroc']:.3f}",
            f"{score['density']:.1%}",
            f"{score['expected_density']:.1%}",
            f"{score['seconds']:.0f}",
        )
    Console().print(table)
    if config.members > 1:
        _show_meaning(finished)
    if finished.selection is not None:
        _show_selection(finished.selection.posterior, finished.result.posterior)


def _name(method: str, members: int) -> str:
    if members == 1:
        return method
    return {ISING: f"ising, {members} members", MEDIAN: "their medians", ENSEMBLE: f"ensemble of {members}"}.get(
        method, method
    )


def _show_meaning(finished: Run) -> None:
    """Print what the scores of a mixture say, and what they do not."""
    scores, images, members = finished.scores, len(finished.data.test), finished.config.members
    said = f"Together, the {members} members keep {scores[ISING]['density']:.0%} of the weights of one network"
    if ENSEMBLE in scores:
        said += f"; the ensemble has {scores[ENSEMBLE]['density']:.0%}"
    p = scores[ISING]["accuracy"]
    noise = 2 * (p * (1 - p) / images) ** 0.5
    said += (
        f". This is one split and one seed: each accuracy is known to ±{noise:.1%} from {images} test images, and "
        "what is kept says nothing about which weights are needed."
    )
    Console().print(said, highlight=False, soft_wrap=True)


def _show_selection(selection: Posterior, used: Posterior) -> None:
    """Print what was selected, what that means, and whether it serves the prediction."""
    from ..diagnostics.meaning import inclusion_meaning

    chosen = selection.median_masks()["patch_embed"].flatten()
    network = selection.model.network
    assert isinstance(network, ViT)
    by_channel = chosen.view(network.config.channels, -1).sum(1)
    counts = ", ".join(f"{int(count)} in channel {k + 1}" for k, count in enumerate(by_channel) if count)
    lines = [
        f"Input features selected: {int(chosen.sum())} of {len(chosen)}" + (f" ({counts})." if counts else "."),
        *inclusion_meaning(selection)["says"],
        "No feature has the evidence to be selected, so that the network predicts from all of them."
        if not chosen.any()
        else "The network predicts from "
        + ("what was selected" if used.guides[0].held else "all features")
        + ": its NLL on the validation images was lower than that of the other.",
    ]
    for line in lines:
        Console().print(line, highlight=False, soft_wrap=True)


def show_pruned(pruned: Pruned) -> None:
    """Print size, speed and scores of a small network beside those of the whole network."""
    table = Table(title=f"cut by {', '.join(pruned.levels)}", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, shown, figures in pruned.rows():
        table.add_row(name, *(shown.format(figure) for figure in figures))
    Console().print(table)
    if pruned.unscored:
        Console().print(f"There are no scores: {pruned.unscored}", highlight=False, soft_wrap=True)
    zeros = pruned.after.cost.zeros
    if zeros > NOTABLE_ZEROS:
        Console().print(
            f"{zeros:.0%} of the small network's parameters are zeros in dense matrices: they save no time. "
            + ("Levels hidden and head_dim cut whole units." if isinstance(pruned.network, CompactViT) else ""),
            highlight=False,
            soft_wrap=True,
        )
