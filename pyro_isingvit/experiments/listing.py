"""What is known of runs from their folders alone: lists of them, and what distinguishes some."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import home, read_json
from ..saved import DESCRIPTION
from .logs import LOGS
from .place import PLAN, WORK, check_finished, is_unfinished
from .recipes import RunConfig
from .record import METRICS, RUN, Unfinished, check_digests, config_of, read_facts
from .scoring import Scores


@dataclass(frozen=True)
class RunSummary:
    """What a run folder says of its run.

    Attributes:
        folder: the folder.
        config: configuration of the run.
        images: fingerprint of the images of its data set.
        written: when the folder was completed; of an unfinished run, when it was begun.
        scores: metrics on the test images by method, see `Run`; empty while it is unfinished.
        temperature: temperature of the posterior that was fitted; None while it is unfinished.
        versions: versions of Python and of packages; empty while it is unfinished.
    """

    folder: Path
    config: RunConfig
    images: str
    written: datetime
    scores: Scores = field(default_factory=dict)
    temperature: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return self.temperature is not None

    def settings(self) -> dict[str, Any]:
        """Its settings by name; those within others have names like ``fit.steps``."""
        return dict(_flat(self.config.model_dump(mode="json")))


def read_run(folder: str | Path) -> RunSummary:
    """Read what a run folder says of its run, whether that is finished or not. Its data set is not read.

    Raises:
        InputError: if there is no run, or a file that is read is damaged or of another version.
    """
    folder = home(folder)
    if is_unfinished(folder):
        path = folder / WORK / PLAN
        plan = Unfinished(**read_json(path))
        return RunSummary(folder, config_of(plan.config, path), plan.images, _written(path))
    check_finished(folder)
    facts = read_facts(folder)
    config = config_of(facts.config, folder / RUN)
    check_digests(folder, {name: facts.files.get(name, "") for name in (METRICS, DESCRIPTION)})
    scores, members = (
        json.loads((folder / METRICS).read_bytes()),
        read_json(folder / DESCRIPTION)["members"],
    )
    temperature = float(members[0]["temperature"])
    return RunSummary(folder, config, facts.images, _written(folder / RUN), scores, temperature, facts.versions)


def find_runs(top: str | Path) -> tuple[list[RunSummary], dict[Path, str]]:
    """The runs in a folder and in the folders in it, and what is there instead.

    Hidden folders, and those of logs, are left out.

    Returns:
        The runs, in the order of their paths; and folders without a run that can be read, with the reason.

    Raises:
        InputError: if there is no such folder.
    """
    top = home(top)
    if not top.is_dir():
        raise InputError(f"folder={str(top)!r}: no such folder; give one that has run folders, or runs to compare")
    runs: list[RunSummary] = []
    others: dict[Path, str] = {}
    if not _visit(top, runs, others) and not others:
        others[top] = "no run there"
    return runs, others


def differing(runs: Sequence[RunSummary]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, and their values; None where a run has no such setting.

    If all runs are finished, versions that differ are among them, with names like ``version.torch``.
    """
    every = [run.settings() for run in runs]
    if all(run.finished for run in runs):
        for settings, run in zip(every, runs, strict=True):
            settings.update({f"version.{name}": version for name, version in run.versions.items()})
    names = dict.fromkeys(name for settings in every for name in settings)
    values = {name: [settings.get(name) for settings in every] for name in names}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def same_test_images(runs: Sequence[RunSummary]) -> bool:
    """Whether runs have split the same images alike, so that their scores are those of the same test images."""
    names = ("dataset", "image_size", "train", "validation", "test", "balanced")
    splits = [[run.images, run.config.fit.seed, *(getattr(run.config, name) for name in names)] for run in runs]
    return all(split == splits[0] for split in splits)


def _visit(folder: Path, runs: list[RunSummary], others: dict[Path, str]) -> bool:
    """Read the runs in a folder; returns whether there is any, or the remains of one."""
    if (folder / RUN).exists() or is_unfinished(folder):
        try:
            runs.append(read_run(folder))
        except (InputError, KeyError, TypeError, ValueError) as error:
            others[folder] = str(error) if isinstance(error, InputError) else f"damaged ({error!r}); fit again"
        return True
    inside = [each for each in sorted(folder.iterdir()) if each.is_dir() and not each.is_symlink()]
    found = {each: _visit(each, runs, others) for each in inside if each.name[0] != "." and each.name != LOGS}
    if any(found.values()):
        others.update({each: "no run there" for each, has in found.items() if not has})
    return any(found.values())


def _written(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime)


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
