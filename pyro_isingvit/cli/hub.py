"""``isingvit push`` and ``isingvit pull``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Repo = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hugging Face hub.")]


def push_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Run folder, or folder of a pruned network.")],
    repo: Repo,
    license: Annotated[
        str, typer.Option(help="Licence of the network, e.g. apache-2.0. It depends on the training data.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload a run or a pruned network to the Hugging Face hub, with a model card."""
    from ..hub import push

    Console().print(f"Uploaded: {push(folder, repo, license, private)}", highlight=False, soft_wrap=True)


def pull_command(
    repo: Repo,
    out: Annotated[Path | None, typer.Option(help="Folder to write.", show_default="NAME")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
) -> None:
    """Download a run or a pruned network from the Hugging Face hub."""
    from ..hub import pull

    folder = pull(repo, Path(repo.split("/")[-1]) if out is None else out, revision)
    Console().print(f"Downloaded: {folder}", highlight=False, soft_wrap=True)
