"""``isingvit fit``."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from ..errors import InputError, InterruptedFitError
from . import options as option
from .ending import end

if TYPE_CHECKING:
    from ..experiments import Run, RunConfig


def fit_command(
    context: typer.Context,
    config_file: option.ConfigFile = None,
    dataset: option.Dataset = "digits",
    data_root: option.DataRoot = None,
    download: option.Download = False,
    image_size: option.ImageSize = None,
    background: option.Background = None,
    out: option.Out = None,
    overwrite: option.Overwrite = False,
    resume: option.Resume = None,
    checkpoint_every: option.CheckpointEvery = 60.0,
    log: option.Log = None,
    compare: option.Compare = True,
    members: option.Members = None,
    train: option.Train = None,
    validation: option.Validation = None,
    test: option.Test = None,
    balanced: option.Balanced = False,
    steps: option.Steps = None,
    epochs: option.Epochs = None,
    batch_size: option.BatchSize = None,
    learning_rate: option.LearningRate = None,
    pilot: option.Pilot = None,
    fine_tune: option.FineTune = None,
    temperature: option.Temperature = None,
    target_density: option.TargetDensity = None,
    inclusion: option.Inclusion = None,
    coupling: option.CouplingStrength = None,
    structured: option.Structured = False,
    select: option.Select = False,
    network: option.Network = None,
    pretrained: option.Pretrained = False,
    around: option.Around = None,
    patch_size: option.PatchSize = None,
    stem: option.Stem = None,
    dim: option.Dim = None,
    depth: option.Depth = None,
    heads: option.Heads = None,
    mlp_ratio: option.MlpRatio = None,
    augment: option.Augmentation = None,
    precision: option.Precision = None,
    seed: option.Seed = None,
    device: option.Device = None,
    devices: option.Devices = 1,
) -> None:
    """Fit an Ising Vision Transformer, evaluate it, and write a run folder. Defaults are from the data set's recipe."""
    from ..data import read
    from ..experiments import RunConfig, recipe, run
    from ..experiments.logs import LOGS, check_logs
    from ..experiments.recipes import merged, read_settings
    from ..experiments.runs import resume_run

    if resume is not None:
        _only_resume(context)
        how: dict[str, Any] = {"interval": checkpoint_every, "devices": devices, "network": network}
        _finish(partial(resume_run, resume, data_root, **how), resume)
        return
    written = {} if config_file is None else read_settings(config_file)
    reads: dict[str, Any] = {
        "dataset": dataset,
        "data_root": data_root,
        "image_size": image_size,
        "background": background,
        "train": train,
    }
    reads |= {name: written[name] for name in reads if name in written and name not in _on_command_line(context)}
    dataset, data_root, train = reads["dataset"], reads["data_root"], reads["train"]
    out = Path("runs") / Path(dataset).stem if out is None else out
    _check_out(out, overwrite)
    check_logs(log or (), out)
    grey = 255 if reads["background"] is None else reads["background"]
    everything = read(dataset, data_root, "train", download, reads["image_size"], grey)
    geometry = {"patch_size": patch_size, "stem": stem, "dim": dim, "depth": depth, "heads": heads}
    _check_network(network, geometry | {"mlp_ratio": mlp_ratio}, pretrained or around is not None)
    fit: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "pilot": pilot}
    fit |= {"fine_tune": fine_tune, "temperature": temperature, "target_density": target_density, "augment": augment}
    given: dict[str, Any] = {
        "network": geometry | {"mlp_ratio": mlp_ratio},
        "module": {"name": network, "pretrained": pretrained or None, "around": around},
        "fit": fit | {"precision": precision, "seed": seed, "device": device},
        "prior": {"inclusion": inclusion, "coupling": coupling, "structured": structured or None},
        **reads,
        **{"validation": validation, "test": test, "members": members},
        **{"balanced": balanced or None, "select": select or None},
    }
    if network is None:
        given.pop("module")
    settings = merged(merged(recipe(dataset, everything, train, data_root), written), given)
    config = RunConfig(**settings)
    if epochs is not None:
        config = _of_epochs(config, epochs, steps)
    how = {"interval": checkpoint_every, "devices": devices, "log": log or ()}
    _finish(partial(run, config, out, everything, compare, overwrite, **how), out)
    if log:
        Console().print(f"Logs: {out.parent / LOGS}", highlight=False, soft_wrap=True)


def _finish(start: Callable[[], "Run"], out: Path) -> None:
    from ..experiments.console import show_run

    try:
        finished = start()
    except InterruptedFitError as error:  # here, as Typer has a message of its own for interrupts
        end(error, 128 + error.signal)
    show_run(finished)
    Console().print(f"Run folder: {out}", highlight=False, soft_wrap=True)


def _check_out(out: Path, overwrite: bool) -> None:
    """Refuse a place before anything is read, in words of the command line."""
    from ..experiments.place import check_free, is_unfinished, resolved

    place = resolved(out)
    if place.exists() and not overwrite:
        if is_unfinished(place):
            raise InputError(
                f"--out={str(out)!r} has an unfinished run: --resume {out} goes on, --overwrite starts again"
            )
        raise InputError(f"--out={str(out)!r} exists: give another folder or --overwrite")
    check_free(place, overwrite)


def _check_network(network: str | None, geometry: Mapping[str, Any], of_another: bool) -> None:
    """Refuse options of a `ViT` beside another network, and the other way round."""
    if network is None and of_another:
        raise InputError(
            "--pretrained and --around are of other networks: give --network, e.g. timm:vit_tiny_patch16_224"
        )
    for name, value in geometry.items():
        if network is not None and value is not None:
            raise InputError(f"--{name.replace('_', '-')}={value}: of a ViT, and --network={network!r}; leave one out")


def _on_command_line(context: typer.Context) -> list[str]:
    """The options that were given."""
    sources = {name: getattr(context.get_parameter_source(name), "name", None) for name in context.params}
    return [name for name, source in sources.items() if source == "COMMANDLINE"]


def _only_resume(context: typer.Context) -> None:
    """Refuse options beside ``--resume`` that would make it another run."""
    given = [
        name
        for name in _on_command_line(context)
        if name not in ("resume", "data_root", "checkpoint_every", "devices", "network")
    ]
    if given:
        raise InputError(
            f"--{given[0].removesuffix('_file').replace('_', '-')} with --resume: a run goes on with the "
            "settings that it has; leave it out"
        )


def _of_epochs(config: "RunConfig", epochs: int, steps: int | None) -> "RunConfig":
    """The configuration with as many steps as make ``epochs`` passes over its training images."""
    if steps is not None:
        raise InputError(f"--epochs={epochs} and --steps={steps}: give one of them")
    if epochs < 1:
        raise InputError(f"--epochs={epochs}: need at least one")
    passes = epochs * config.fit.steps_per_pass(config.train)
    return config.model_copy(update={"fit": config.fit.model_copy(update={"steps": passes})})
