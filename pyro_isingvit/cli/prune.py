"""``isingvit prune``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import options as option


def prune_command(
    folder: option.RunFolder,
    out: Annotated[Path, typer.Option(help="Folder to write the small network to.")],
    level: Annotated[
        list[str] | None,
        typer.Option(
            help="What to decide on: weight, hidden, head_dim, head, block, patch, classifier_hidden. Repeatable.",
            show_default="hidden and head_dim",
        ),
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of the weights to keep, the most probable first.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Keep units or weights that are alive with at least this probability.")
    ] = 0.5,
    fine_tune: Annotated[int, typer.Option(help="Steps of fine-tuning after the cut.")] = 0,
    draws: Annotated[
        int | None, typer.Option(help="Export an ensemble of this many posterior draws instead of one network.")
    ] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="torch or onnx, in addition to safetensors. May be repeated.")
    ] = None,
    data_root: option.MovedRoot = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a network that was exported there before.")
    ] = False,
    network: option.RunNetwork = None,
) -> None:
    """Cut the network of a run down to what its posterior keeps, and export it for use without Pyro."""
    from ..experiments.console import show_pruned
    from ..experiments.prune import prune_run

    pruned = prune_run(
        folder,
        out,
        level=level or None,
        threshold=threshold,
        density=density,
        fine_tune_steps=fine_tune,
        draws=draws,
        formats=formats or (),
        data_root=data_root,
        overwrite=overwrite,
        network=network,
    )
    show_pruned(pruned)
    Console().print(f"Small network: {out}", highlight=False, soft_wrap=True)
