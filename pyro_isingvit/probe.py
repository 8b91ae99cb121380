"""What prior, guide and network give at fixed values, by which they are known again if settings do not tell all."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .draws import evaluating, network_logits
from .guides import Guide
from .models import IsingViT

CLOSE = 1e-3
"""Relative difference of log densities up to which they are taken for those of the same prior and guide."""

NEAR = 1e-2
"""The same of the outputs of a network, which devices compute differently."""

OUTPUTS = "the squares of the outputs"
"""Name of the number that tells whether the network computes what it did."""


@torch.no_grad()
def log_densities(guide: Guide) -> dict[str, float | None]:
    """Log densities of prior and guide at fixed masks and weights, and the sum of the squares of the network's outputs.

    A network that does not say the shape of its images is left out, and so is a family that has no distribution of
    single sites. What is not finite is None.
    """
    model = guide.model
    prior, device, found = model.prior, model.prior.zero.device, {}
    with evaluating(model, guide), guide.hypers_at_median():
        masks = {name: _fixed(shape, device).gt(-0.5).float() for name, shape in guide.mask_shapes.items()}
        for site in model.sites:
            mask = masks.get(site.name)
            weight = 0.1 * _fixed(site.shape, device) * (1.0 if mask is None else mask)
            try:
                found[f"{site.name} of prior"] = prior.weight(site, mask).log_prob(weight)
                base = prior.mask(site)
                if base is not None:
                    found[f"mask of {site.name} of prior"] = base.log_prob(mask)
                found[f"{site.name} of guide"] = guide.weight(site, mask).log_prob(weight)
            except NotImplementedError:
                continue
        if masks and prior.interaction is not None:
            found["energy"] = prior.interaction.energy(masks)
        outputs = _outputs(model)
        if outputs is not None:
            found[OUTPUTS] = outputs.square()
    sums = {name: float(value.sum()) for name, value in found.items()}
    return {name: value if math.isfinite(value) else None for name, value in sums.items()}


def _outputs(model: IsingViT) -> Tensor | None:
    """Outputs of the network, with its biases and norms as they are, for a fixed image and fixed weights.

    The weights are taken with both signs, as one of them may switch off all units of a layer.
    """
    shape = getattr(model.network, "image_shape", None)
    if shape is None:
        return None
    device = model.prior.zero.device
    image = (1 + _fixed(tuple(shape), device)) / 2
    weights = {site.name: _fixed(site.shape, device) * (2 / site.fan_in) ** 0.5 for site in model.sites}
    other = {name: -weight for name, weight in weights.items()}
    return torch.cat([network_logits(model, image.unsqueeze(0), each) for each in (weights, other)])


def _fixed(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers within [-1, 1] that depend on the shape alone."""
    return torch.arange(math.prod(shape), device=device, dtype=torch.float32).sin().reshape(shape)


def changed(guide: Guide, known: Mapping[str, float | None]) -> str | None:
    """The first of the `log_densities` of a guide, or its network's outputs, that is not as it was; None if all are."""
    for name, now in log_densities(guide).items():
        then = known.get(name)
        close = {"rel_tol": NEAR} if name == OUTPUTS else {"rel_tol": CLOSE, "abs_tol": CLOSE}
        same = now == then if now is None or then is None else math.isclose(now, then, **close)
        if not same:
            what = name if name == OUTPUTS else f"the log density of {name}"
            return f"{what} is {now} and was {then} at the same values"
    return None
