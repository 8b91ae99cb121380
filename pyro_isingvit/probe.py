"""Log densities at fixed values, by which a prior and a guide are known again whose settings do not tell all."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .draws import evaluating
from .guides import Guide

CLOSE = 1e-3
"""Relative difference of log densities up to which they are taken for those of the same prior and guide."""


@torch.no_grad()
def log_densities(guide: Guide) -> dict[str, float | None]:
    """Log densities of prior and guide at fixed masks and weights, by which classes of a user's own are known again.

    A family that has no distribution of single sites is left out. What is not finite is None.
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
    sums = {name: float(value.sum()) for name, value in found.items()}
    return {name: value if math.isfinite(value) else None for name, value in sums.items()}


def _fixed(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers within [-1, 1] that depend on the shape alone."""
    return torch.arange(math.prod(shape), device=device, dtype=torch.float32).sin().reshape(shape)


def changed(guide: Guide, known: Mapping[str, float | None]) -> str | None:
    """The first of the log densities of a guide that is not as it was, in words; None if all are."""
    for name, now in log_densities(guide).items():
        then = known.get(name)
        same = now == then if now is None or then is None else math.isclose(now, then, rel_tol=CLOSE, abs_tol=CLOSE)
        if not same:
            return f"the log density of {name} is {now} and was {then} at the same values"
    return None
