"""Prune the network of a run, and compare its cost and scores with those of the whole network."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapted import Adapted
from ..data import Data, Images
from ..data.streams import in_memory
from ..drafts import drafting
from ..draws import BATCH
from ..errors import InputError
from ..files import home, write
from ..network.stem import as_floats
from ..posterior import Posterior
from ..pruning import Cost, costs, export, fine_tune, prune, prune_draws
from ..pruning.compact import CompactViT
from ..pruning.cut import scale_within
from ..pruning.decide import DEFAULT_LEVELS
from ..pruning.exported import FILES, METRICS, check, write_as
from ..pruning.modules import OnImages, prune_module
from .images import same_images
from .reading import open_fit
from .recipes import RunConfig
from .record import RunFacts

EXAMPLES = 64
"""Number of images by which it is seen that the outputs of units without weights are constant."""

NOTABLE_ZEROS = 0.1
"""Share of zeros in a small network above which `show_pruned` says that they save no time."""

_ROWS = (("parameters", "{:,.0f}"), ("of them zero, %", "{:.1f}"), ("MFLOP an image", "{:.2f}"), ("MB", "{:.3f}"))
_SCORES = (
    ("accuracy", "accuracy", "{:.2%}"),
    ("NLL", "nll", "{:.4f}"),
    ("ECE", "ece", "{:.4f}"),
    ("Brier", "brier", "{:.4f}"),
)


@dataclass(frozen=True)
class NetworkFigures:
    """The cost of a network, and its scores on the test images by name; none without test images."""

    cost: Cost
    scores: dict[str, float]


@dataclass(frozen=True)
class Pruned:
    """The result of `prune_run`.

    Attributes:
        levels: the levels that were decided on.
        network: the small network; of an adapted network see `PrunedModule.network`.
        before: figures of the run's median-probability model as one dense network; for an ensemble, of the same draws
            before they are cut.
        after: figures of the small network.
        unscored: why there are no scores; empty if there are.
    """

    levels: tuple[str, ...]
    network: CompactViT | OnImages
    before: NetworkFigures
    after: NetworkFigures
    unscored: str = ""

    def rows(self) -> Iterator[tuple[str, str, tuple[float, ...]]]:
        """Name, format, and figures before and after, for each row of a table."""
        both = (self.before, self.after)
        sizes = [
            (one.cost.parameters, 100 * one.cost.zeros, one.cost.flops / 1e6, one.cost.bytes / 1e6) for one in both
        ]
        for (name, shown), figures in zip(_ROWS, zip(*sizes, strict=True), strict=True):
            yield name, shown, figures
        for size in self.before.cost.latency:
            yield f"ms, batch of {size}", "{:.2f}", tuple(1e3 * one.cost.latency[size] for one in both)
        for title, name, shown in () if self.unscored else _SCORES:
            yield title, shown, tuple(one.scores[name] for one in both)


def prune_run(
    folder: str | Path,
    out: str | Path,
    level: str | Sequence[str] | None = None,
    threshold: float = 0.5,
    density: float | None = None,
    fine_tune_steps: int = 0,
    draws: int | None = None,
    formats: Sequence[str] = (),
    data_root: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    network: str | None = None,
) -> Pruned:
    """Prune the network of a run, export it, and compare it with the whole network on the run's test images.

    The folder ``out`` gets the files of `export`, and ``metrics.json``. If the images of the run's data set cannot be
    read, the network is cut and exported all the same, without scores; `Pruned.unscored` says why. An adapted network
    is cut by `prune_module`, and the folder gets the file of `PrunedModule.save` in place of those of `export`.

    Args:
        folder: a run folder that `run` made.
        out: the folder to write.
        level, threshold, density: see `pyro_isingvit.prune`; an adapted network takes none of these.
        fine_tune_steps: number of steps of fine-tuning after the cut, of a `ViT`; 0 for none.
        draws: number of posterior draws to export as an ensemble; None for the median-probability model, of a mixture
            an ensemble of those of its members.
        formats, overwrite: see `pyro_isingvit.export`.
        data_root: folder of the data set's files, if it has moved. If it is given, the images have to be there.
        progress: whether to show a progress bar.
        network: see `evaluate`.

    Raises:
        InputError: if the run or an argument cannot be used.
        TrainingError: if fine-tuning broke down.
    """
    if fine_tune_steps < 0:
        raise InputError(f"fine_tune={fine_tune_steps}: give a number of steps, or 0 for none")
    if fine_tune_steps and draws is not None:
        raise InputError(f"fine_tune={fine_tune_steps} and draws={draws}: draws of a posterior are not trained on")
    check(out, formats, overwrite)
    config, facts, result = open_fit(folder, data_root, network=network)
    data, unscored = _images(config, facts, home(folder), bool(fine_tune_steps) or data_root is not None)
    if config.module is not None:
        given = {"level": level, "density": density, "fine_tune": fine_tune_steps or None, "draws": draws}
        _refuse(given | {"threshold": None if threshold == 0.5 else threshold}, config.module.name)
        return _prune_adapted(config, result.posterior, data, unscored, home(out), formats, overwrite)
    level = DEFAULT_LEVELS if level is None else level
    chosen: dict[str, Any] = {"level": level, "threshold": threshold, "density": density}
    if fine_tune_steps and len(result.posterior.guides) > 1:
        raise InputError(f"fine_tune={fine_tune_steps}: the run is a mixture, and one network is trained; fit 1 member")
    seed = config.fit.seed
    posterior = result.posterior
    small = prune(posterior, **chosen) if draws is None else prune_draws(posterior, draws, **chosen, seed=seed)
    if fine_tune_steps:
        assert data is not None
        settings = config.fit.model_copy(update={"steps": fine_tune_steps})
        fine_tune(small, in_memory(data.train), data.validation, settings, progress)
    before, after = _figures((_whole(posterior, draws, seed), small), config, None if data is None else data.test)
    levels = (level,) if isinstance(level, str) else tuple(level)
    said: dict[str, Any] = {"levels": levels, "threshold": threshold, "density": density}
    said |= {"fine_tune": fine_tune_steps, "draws": draws, "before": asdict(before), "after": asdict(after)}
    export(small, out, formats, overwrite, {METRICS: json.dumps(said, indent=2) + "\n"})
    return Pruned(levels, small, before, after, unscored)


def _refuse(given: Mapping[str, Any], network: str) -> None:
    """Refuse arguments that are of a `ViT`, and are None if they were not given."""
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{name}={value}: of a ViT, and the run's network is {network!r}; leave it out")


def _whole(posterior: Posterior, draws: int | None, seed: int) -> nn.Module:
    """What is cut, as dense networks: that of each member, or of each draw."""
    if draws is None:
        networks = [member.network() for member in posterior.members]
    else:
        networks = _networks_of_draws(posterior, draws, seed)
    return (networks[0] if len(networks) == 1 else Ensemble(networks)).cpu()


def _prune_adapted(
    config: RunConfig,
    posterior: Posterior,
    data: Data | None,
    unscored: str,
    out: Path,
    formats: Sequence[str],
    overwrite: bool,
) -> Pruned:
    """Prune a module that `adapt` has made a network of; without its data set, units are constant for random images."""
    shape = config.network.channels, *config.network.image_size
    if data is None:
        example = torch.rand(EXAMPLES, *shape, generator=torch.Generator().manual_seed(config.fit.seed))
    else:
        example = as_floats(in_memory(data.train).images[:EXAMPLES])
    small = prune_module(posterior, example)
    whole = posterior.network().cpu()
    assert isinstance(whole, Adapted)
    plain = OnImages(whole.plain(), whole.mean, whole.std).eval()  # as fast as it is without the sites
    before, after = _figures((plain, small.network), config, None if data is None else data.test)
    said = {"before": asdict(before), "after": asdict(after)}
    with drafting(out, partial(check, out, formats, overwrite)) as draft:
        small.save(draft)
        write(draft / METRICS, json.dumps(said, indent=2) + "\n")
        for one in formats:
            write_as(one, copy.deepcopy(small.network), shape, draft / FILES[one])
    return Pruned(("units that nothing reads",), small.network, before, after, unscored)


def _images(config: RunConfig, facts: RunFacts, folder: Path, needed: bool) -> tuple[Data | None, str]:
    """The images of a run; or why there are none, unless they are needed."""
    try:
        return same_images(config, facts, folder)[1], ""
    except InputError as error:
        if needed:
            raise
        return None, str(error)


def _figures(networks: Sequence[nn.Module], config: RunConfig, test: Images | None) -> list[NetworkFigures]:
    """The figures of networks side by side; without test images, of their costs alone."""
    shape = config.network.channels, *config.network.image_size
    images = torch.zeros(1, *shape) if test is None else test.images
    prices = costs({str(k): network for k, network in enumerate(networks)}, images)
    scores: list[dict[str, float]] = [{} for _ in networks]
    if test is not None:
        scores = [_scores(predict_with(network, images), test.labels) for network in networks]
    return [NetworkFigures(price, score) for price, score in zip(prices.values(), scores, strict=True)]


class Ensemble(nn.Module):
    """Dense networks that run one after the other: logits (networks, batch, classes)."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([network(images) for network in self.networks])


def _networks_of_draws(posterior: Posterior, draws: int, seed: int) -> list[nn.Module]:
    """Draws from a posterior as dense networks, with its logit scale."""
    networks: list[nn.Module] = []
    for draw in posterior.draws(draws, seed):
        network = copy.deepcopy(draw.model.network)
        network.load_state_dict(network.state_dict() | scale_within(network, draw.weights, posterior.logit_scale))
        networks.append(network.requires_grad_(True).eval())
    return networks


@torch.no_grad()
def predict_with(network: nn.Module, images: Tensor) -> Tensor:
    """Probabilities (n, classes); for an ensemble, their mean over the members."""
    logits = [network(batch) for batch in images.split(BATCH)]
    return torch.cat([(one.softmax(-1).mean(0) if one.dim() == 3 else one.softmax(-1)) for one in logits])


def _scores(probs: Tensor, labels: Tensor) -> dict[str, float]:
    from ..diagnostics.calibration import metrics  # torchmetrics takes seconds to import

    return metrics(probs, labels)
