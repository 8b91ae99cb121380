"""Mixtures of posteriors: members that are fitted alike, from other first weights, in other batches, with other draws.

References:
    Lakshminarayanan, Pritzel & Blundell, "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
    NeurIPS 2017.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch

from ..data import Images
from ..data.streams import Labelled, Source
from ..draws import seeded
from ..errors import InputError, InterruptedFitError, check_count, check_positive, kind_of
from ..files import home
from ..guides import Guide
from ..saved import description, difference
from .config import FitConfig
from .events import Listener
from .inputs import check_kinds, check_together, read_data
from .members import Order, fit_all, progress_bar
from .ranks import check_devices
from .result import FitResult, member_seed
from .search import TemperatureSearch
from .trainer import Trainer

MOST = 1000
"""Number of members above which ``members`` is taken for a mistake."""


def fit_mixture(
    build: Callable[[], Guide],
    members: int,
    train: Source,
    validation: Source | None = None,
    config: FitConfig | None = None,
    progress: bool = True,
    share: float = 1.0,
    jobs: int | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    interval: float = 60.0,
    devices: int = 1,
    strategy: Any = "ddp",
    listeners: Callable[[int], Sequence[Listener]] | None = None,
) -> FitResult:
    """Fit the members of a mixture of posteriors, with equal weights.

    They differ in first weights, batches and draws. A search for the temperature is made once, by the first member;
    the others wait for what it finds, at the end of their pilot phases.

    Args:
        build: makes a guide with its model, new ones each time. It is called once for each member, with the random
            state of the member's seed, which is that of the configuration for the first.
        members: number of members.
        train, validation, config: see `fit`. The mixture as a whole is calibrated after a search.
        progress: whether to show a progress bar.
        share: share of the training images, within (0, 1], that each member draws for itself, without replacement.
        jobs: number of processes at a time, which share the threads; None for as many as there are members to fit (at
            most two for each thread), or 1 on a GPU or several devices. With 1, members are fitted in this process, one
            after the other. Results depend on it, in the last bits, as they do on the number of threads.
        checkpoint, resume, interval: see `fit`; each member has a folder of its own in that of the checkpoints.
        devices, strategy: see `fit`; all devices train one member after the other.
        listeners: makes the listeners of a member, see `fit`, from its number from 0. It is called in the process of
            that member, to which it is copied by cloudpickle.

    Returns:
        The posterior of the mixture, see `Posterior.members`, and the log of the fit: ``history`` has a column
        ``member``, ``trials`` are those of the first member, and ``seconds`` is the time that passed here.

    Raises:
        InputError, TrainingError, InterruptedFitError: see `fit`; also if ``build`` returns a guide twice, or guides
            of different kinds.
        LostProcessError: if the process of a member ended without a result, as when it is killed for memory; a
            `TrainingError`. With checkpoints, ``resume=True`` goes on.
    """
    start = time.perf_counter()
    config = FitConfig() if config is None else config
    check_kinds(config=config)
    check_devices(devices, strategy)
    check_count("members", members, MOST)
    if jobs is not None:
        check_count("jobs", jobs, MOST)
    if not callable(build):
        raise InputError(f"build={kind_of(build)}: give a function that makes a guide with its model")
    check_positive("share", share, "0.5")
    if share > 1:
        raise InputError(f"share={share}: each member draws this share of the training images, at most 1")
    if resume and checkpoint is None:
        raise InputError("resume=True with checkpoint=None: give the folder of the checkpoints")
    folder = None if checkpoint is None else home(checkpoint)
    seeds = [member_seed(config.seed, k) for k in range(members)]
    guides = _built(build, seeds)
    config.torch_device()
    images, held_out, config = read_data(guides[0].model, train, validation, config)
    check_together(guides[0], images, held_out, config)
    if round(share * len(images)) < 1:
        raise InputError(f"share={share} of {len(images)} images is none; give at least {1 / len(images):.2g}")
    with (
        tempfile.TemporaryDirectory(prefix="isingvit-", ignore_cleanup_errors=True) as scratch,
        progress_bar(Path(scratch), guides, config, progress),
    ):
        orders = [
            Order(
                k,
                guides[k],
                _drawn(images, share, seeds[k]),
                held_out,
                _config_of(k, seeds[k], config, Path(scratch)),
                None if folder is None else folder / str(k),
                resume,
                interval,
                devices,
                strategy,
                Path(scratch),
                listeners,
            )
            for k in range(members)
        ]
        with _naming(folder):
            results, together = fit_all(orders, 1 if devices > 1 else jobs)
    each = [result.seconds for result in results]  # with those before an interruption
    seconds = max(time.perf_counter() - start, max(each) if together else sum(each))
    return _together(results, held_out, config, seconds)


def _built(build: Callable[[], Guide], seeds: Sequence[int]) -> list[Guide]:
    """The guide of each member, checked."""
    guides: list[Guide] = []
    for seed in seeds:
        with seeded(torch.device("cpu"), seed):
            guide = build()
        check_kinds(guide=guide)
        if any(guide is other or guide.model is other.model for other in guides):
            raise InputError("build: it returned a guide or model that it had returned before; make new ones each time")
        other = difference(description(guide), description(guides[0])) if guides else None
        if other:
            raise InputError(f"build: the guides that it returned are of different kinds: {other}")
        guides.append(guide)
    return guides


def _drawn(train: Labelled, share: float, seed: int) -> Labelled:
    """The images of a member."""
    if share == 1:
        return train
    number = round(share * len(train))
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:number]
    return train[chosen.sort().values]


def _config_of(member: int, seed: int, config: FitConfig, scratch: Path) -> FitConfig:
    """The configuration of a member."""
    changes: dict[str, Any] = {"seed": seed}
    if isinstance(config.temperature, TemperatureSearch):
        search = _First if member == 0 else _Follower
        known = config.temperature.model_dump(include=set(TemperatureSearch.model_fields))
        changes["temperature"] = search(**known, found=scratch / "temperature")
    return config.model_copy(update=changes)


class _First(TemperatureSearch):
    """The search of the first member, which tells the others what it has found."""

    found: Path

    def try_temperatures(self, trainer: Trainer, validation: Images, steps: int) -> pd.DataFrame | None:
        trials = super().try_temperatures(trainer, validation, steps)
        if trainer.ranks.first:
            draft = self.found.with_suffix(".draft")
            draft.write_text(repr(trainer.temperature))
            draft.replace(self.found)
        return trials


class _Follower(TemperatureSearch):
    """In place of a search, the temperature that the first member has found, or is about to find."""

    found: Path

    def try_temperatures(self, trainer: Trainer, validation: Images, steps: int) -> pd.DataFrame | None:
        while not self.found.exists():
            if trainer.told.signal is not None:  # the end of the pilot phase is saved
                raise InterruptedFitError("stopped at the end of the pilot phase", trainer.told.signal)
            time.sleep(0.05)
        trainer.temperature = float(self.found.read_text())
        return None


def _together(results: Sequence[FitResult], validation: Images | None, config: FitConfig, seconds: float) -> FitResult:
    """The result of a mixture from those of its members."""
    guides = tuple(result.posterior.guide for result in results)
    posterior = replace(results[0].posterior, guides=guides, logit_scale=1.0)
    trials = results[0].trials
    if trials is not None:
        posterior = posterior.calibrate(cast(Images, validation))
    history = pd.concat([result.history.assign(member=k) for k, result in enumerate(results)], ignore_index=True)
    return FitResult(posterior, history, trials, seconds, config.model_dump(mode="json"))


@contextmanager
def _naming(folder: Path | None) -> Iterator[None]:
    """Context in which an interrupt says how to go on with the mixture, in place of one member."""
    try:
        yield
    except InterruptedFitError as error:
        what, _, where = str(error).partition("; ")
        kept = where if where.startswith("no ") else f"go on from the checkpoints in {folder}"
        raise InterruptedFitError(f"{what}; {kept}", error.signal) from None
