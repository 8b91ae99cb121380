"""Options of ``isingvit fit``, as types of its parameters."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Settings in YAML or JSON, named as in run.json; or the run.json of a run. Options take precedence.",
    ),
]
Dataset = Annotated[
    str,
    typer.Option(
        help="digits, digits-decoys, mnist, fashion-mnist, cifar-10, cifar-100, folder (with one subfolder of images "
        "for each class), or the path of an .npz file."
    ),
]
DataRoot = Annotated[str | None, typer.Option(help="Folder with the files of the data set.")]
Download = Annotated[bool, typer.Option("--download", help="Download the files of the data set if they are missing.")]
ImageSize = Annotated[int | None, typer.Option(help="Height and width to resize the images to.")]
Background = Annotated[
    int | None, typer.Option(help="Grey level beneath transparent images of a folder, 0 to 255.", show_default="255")
]
Out = Annotated[Path | None, typer.Option(help="Run folder to write.", show_default="runs/DATASET")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run folder if it exists.")]
Resume = Annotated[
    Path | None, typer.Option(metavar="RUN", help="Go on with the unfinished run in this folder, as it was started.")
]
CheckpointEvery = Annotated[float, typer.Option(help="Seconds between checkpoints.")]
Log = Annotated[
    list[str] | None,
    typer.Option(
        help="Also log the training to tensorboard, csv, wandb (offline) or mlflow (SQLite), in the folder 'logs' "
        "beside the run folder. May be repeated; needs the extra 'loggers', 'wandb' or 'mlflow'."
    ),
]
Compare = Annotated[bool, typer.Option(help="Also train the deterministic network of the same recipe.")]
Members = Annotated[
    int | None,
    typer.Option(help="Number of members of a mixture of posteriors; 1 for a single one.", show_default="the recipe's"),
]
Train = Annotated[int | None, typer.Option(help="Number of training images N.")]
Validation = Annotated[
    str | None, typer.Option(help="Number of validation images, or official: the data set's own.", show_default=False)
]
Test = Annotated[
    str | None,
    typer.Option(
        help="Number of test images, or 'official' for those of the data set.", show_default="the recipe's, or a tenth"
    ),
]
Balanced = Annotated[bool, typer.Option("--balanced", help="Take equally many training images of each class.")]
Steps = Annotated[int | None, typer.Option(help="Training steps; a search for the temperature takes more.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images, instead of --steps.")]
BatchSize = Annotated[int | None, typer.Option(help="Images per step.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Pilot = Annotated[float | None, typer.Option(help="Share of the steps for the pilot phase, with all masks on.")]
FineTune = Annotated[
    float | None, typer.Option(help="Share of the steps at the end that train the median-probability model.")
]
Temperature = Annotated[
    str | None,
    typer.Option(help="Temperature of the posterior, or 'auto' or 'sparsest' to search for it on validation images."),
]
TargetDensity = Annotated[float | None, typer.Option(help="Mean inclusion probability to hold during the fit.")]
Inclusion = Annotated[float | None, typer.Option(help="Prior inclusion probability.")]
CouplingStrength = Annotated[float | None, typer.Option(help="Strength J of the Ising coupling.")]
Structured = Annotated[
    bool,
    typer.Option(
        "--structured", help="Use masks of whole units instead of single weights, so that prune can remove units."
    ),
]
Select = Annotated[
    bool,
    typer.Option(
        "--select",
        help="First select input features (pixels of a patch, by channel), at temperature 1. Then fit with what was "
        "selected and with all features, and keep the fit with the lower NLL on the validation images.",
    ),
]
PatchSize = Annotated[int | None, typer.Option(help="Height and width of a patch, in pixels.")]
Stem = Annotated[
    str | None, typer.Option(help="How tokens are computed: from 'patches' of pixels, or by 'convolutions'.")
]
Dim = Annotated[int | None, typer.Option(help="Width of the residual stream.")]
Depth = Annotated[int | None, typer.Option(help="Number of blocks.")]
Heads = Annotated[int | None, typer.Option(help="Number of attention heads.")]
MlpRatio = Annotated[float | None, typer.Option(help="Hidden units of an MLP, in multiples of dim.")]
Augmentation = Annotated[
    str | None,
    typer.Option(
        help="Augmentation of the training images: none, digits, handwriting, handwriting-elastic, garments, photos."
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(help="Precision of training: float32, bfloat16, which may be faster, or float16, for older GPUs."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of the split, the initial weights and the training.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, or auto for a GPU if there is one.")]
Network = Annotated[
    str | None,
    typer.Option(
        help="Network in place of the ViT: timm:NAME, torchvision:NAME, transformers:NAME or FILE.py:FUNCTION."
    ),
]
Pretrained = Annotated[bool, typer.Option(help="Start from the library's weights, which it may download.")]
Around = Annotated[
    str | None, typer.Option(help="With --network, what dropped weights are: zero, or what they were: pretrained.")
]
Devices = Annotated[
    int, typer.Option(help="Number of devices that share each batch; needs the extra 'devices'.", show_default=True)
]

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that 'isingvit fit' made.")]
"""Of the commands that read a run, as are the next."""

RunNetwork = Annotated[
    str | None,
    typer.Option(
        "--network",
        metavar="FILE.py:FUNCTION",
        help="Network of the run, if it is of a file: a run holds no code, and none is run because a folder names it.",
    ),
]
MovedRoot = Annotated[str | None, typer.Option(help="Folder with the files of the data set, if it has moved.")]
