"""What a fit is given: checks that its parts fit together, and its images as training takes them."""

from dataclasses import replace
from typing import Any

import torch

from ..data import Images
from ..data.streams import Labelled, Stream, in_memory, labelled, some_of
from ..draws import evaluating, seeded
from ..errors import InputError, kind_of
from ..guides import Guide
from ..models import IsingViT
from .config import FitConfig
from .pair import check_pair
from .search import TemperatureSearch

VALIDATION = 2000
"""Number of validation images that are drawn from a stream: their NLL tells temperatures apart."""

CHECKED = 100
"""Number of images of a stream whose labels are checked before training."""


def sparsifies(guide: Guide) -> bool:
    """Whether a fit has phases, in which masks are on, learned, and fixed."""
    return bool(guide.mask_shapes) or guide.sparsifies


def check_kinds(**arguments: object) -> None:
    """Check that some arguments of `fit`, by name, are of the right kinds.

    Raises:
        InputError: if one is not.
    """
    for name, value in arguments.items():
        kind, fix = _KINDS[name]
        if not isinstance(value, kind):
            raise InputError(f"{name}={kind_of(value)}: fit(guide, train, validation, config) takes {fix} here")


_LIKELIHOODS = {"classes": "Classes()", "numbers": "Regression()", "several labels": "SeveralLabels()"}
"""A likelihood for each kind of labels."""

_KINDS: dict[str, tuple[Any, str]] = {
    "guide": (Guide, "a Guide of the model, e.g. LikelihoodGuided(model)"),
    "config": (FitConfig, "a FitConfig"),
}


def read_data(
    model: IsingViT, train: Any, validation: Any, config: FitConfig
) -> tuple[Labelled, Images | None, FitConfig]:
    """The images of a fit as it takes them: validation images in memory, and the batch size of a data loader.

    Raises:
        InputError: if they are not of the right kinds.
    """
    images = _with_classes(model, labelled(train))
    if isinstance(images, Stream) and images.batch_size is not None:
        config = config.model_copy(update={"batch_size": images.batch_size})
    if validation is None:
        return images, None, config
    held_out = _with_classes(model, labelled(validation, "validation"))
    return images, in_memory(held_out, VALIDATION, config.seed), config


def _with_classes(model: IsingViT, part: Labelled) -> Labelled:
    """Images of which the number of classes is known; by the outputs of the network, if by nothing else."""
    if isinstance(part, Images) or part.classes:
        return part
    classes = _outputs(model, part) if part.kind == "classes" else part.first.classes
    return replace(part, classes=classes)


def _outputs(model: IsingViT, part: Labelled) -> int:
    with evaluating(model):
        outputs: int = model.network(some_of(part).images.to(next(model.network.parameters()).device)).shape[-1]
    return outputs


def check_together(guide: Guide, train: Labelled, validation: Images | None, config: FitConfig) -> None:
    """Check that arguments of `fit` fit together, on the device where the guide is.

    Raises:
        InputError: if they do not.
    """
    model = guide.model
    searched = isinstance(config.temperature, TemperatureSearch)
    if searched and validation is None:
        raise InputError(
            "temperature: a search, such as 'auto', is decided on held-out images: pass validation, or a number, e.g. "
            "1e-3"
        )
    if searched and model.likelihood.kind != "classes":
        raise InputError(
            "temperature: a search, such as 'auto', compares predictions of classes, and the likelihood is "
            f"{type(model.likelihood).__name__}: give a number, e.g. 1.0"
        )
    if searched and (not sparsifies(guide) or config.pilot + config.fine_tune == 1):
        raise InputError(
            "temperature: a search, such as 'auto', is decided in the Ising phase, and there is none (no masks, or "
            "pilot and fine_tune take all steps): give a number, e.g. 1e-3"
        )
    device = next(model.network.parameters()).device
    for name, part in (("train", train), ("validation", validation)):
        if part is not None:
            check_part(model, name, part)
    with seeded(device), evaluating(model, guide):
        first = some_of(train)
        check_pair(guide, first.images.to(device), first.labels.to(device))


def check_part(model: IsingViT, name: str, part: Labelled) -> None:
    """Check that labelled images fit a model.

    Raises:
        InputError: if their labels are of another kind or number than its likelihood and network are for, or a `ViT`
            takes images of another size.
    """
    likelihood = model.likelihood
    if likelihood.kind != part.kind:
        raise InputError(
            f"{name}.labels: {part.kind}, and the likelihood, {type(likelihood).__name__}, is of {likelihood.kind}; "
            f"give IsingViT(likelihood={_LIKELIHOODS[part.kind]})"
        )
    if part.kind == "classes" and part.classes == 1:
        raise InputError(
            f"{name}.classes=1: one class leaves nothing to predict; give images of two at least, or labels that are "
            "numbers as floats"
        )
    if name == "train":
        some = part if isinstance(part, Images) else part.read(torch.arange(min(CHECKED, len(part))))
        likelihood.check_labels(name, some.labels, part.classes)
    outputs, wanted = _outputs(model, part), likelihood.outputs(part.classes)
    if outputs != wanted:
        raise InputError(
            f"{name}.classes={part.classes}: the network has {outputs}; make it with {wanted}, as by "
            f"ViTConfig(classes={wanted})"
        )
