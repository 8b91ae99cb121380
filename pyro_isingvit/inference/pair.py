"""A check that model and guide have the same sites, with errors that name the site and the fix."""

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..errors import InputError
from ..guides import Guide


def check_pair(guide: Guide, images: Tensor, labels: Tensor) -> None:
    """Draw once from a guide and run the model against it.

    Args:
        guide: the guide, with its model.
        images, labels: a batch, on the device of the model.

    Raises:
        InputError: if the guide misses a site or samples one that the prior does not have; if a draw has the wrong
            shape, is not finite, or is a mask other than zeros and ones; or if the prior samples latent variables that
            the normaliser of its interaction does not account for.
    """
    model = guide.model
    for part in (model.prior, model.prior.interaction, guide):
        if part is not None:
            part.settings()  # refused now rather than when the fit is saved
    _check_interaction(guide)
    _check_returned_masks(guide)
    _check_means(guide)
    with pyro.validation_enabled(False):
        trace = poutine.trace(guide).get_trace(images, labels)
        if not guide.plated:
            _check_event(trace, guide)
        drawn = _latent(trace)
        family, prior = type(guide).__name__, type(model.prior).__name__
        for site in model.sites:
            expected = {site.weight_name: site.shape}
            if model.fixed_masks is None and site.name in guide.mask_shapes:
                expected[site.mask_name] = tuple(guide.mask_shapes[site.name])
            for name, shape in expected.items():
                if name in drawn:
                    _check_draw(name, drawn[name], shape, family, mask=name == site.mask_name)
                else:
                    raise InputError(f"guide={family} misses the site {name!r}: sample it in draw_masks or forward")
        replayed = poutine.replay(model, trace=poutine.trace(guide).get_trace(images, labels))
        wanted = _latent(poutine.trace(replayed).get_trace(images, labels))
    missing, strange = wanted.keys() - drawn.keys(), drawn.keys() - wanted.keys()
    if missing:
        raise InputError(f"guide={family} misses the sites {sorted(missing)} of prior={prior}: sample them too")
    if strange:
        raise InputError(
            f"guide={family} samples {sorted(strange)}, which prior={prior} does not have: leave them out, or mark "
            "them infer={'is_auxiliary': True}"
        )


def _check_interaction(guide: Guide) -> None:
    prior, sampled = guide.model.prior, guide.mask_hypers
    interaction = prior.interaction
    if sampled and interaction is not None and not (interaction.normalised or interaction.covers_latents):
        raise InputError(
            f"prior={type(prior).__name__} samples {sampled} beneath an interaction of its masks, whose normaliser "
            "depends on them: override log_normaliser(masks) of the interaction and set covers_latents = True, or set "
            "interaction = None"
        )
    if interaction is not None and guide.mask_shapes:
        device = prior.zero.device
        with guide.hypers_at_median():
            energy = interaction.energy({n: torch.ones(s, device=device) for n, s in guide.mask_shapes.items()})
        if energy.shape != ():
            raise InputError(
                f"interaction={type(interaction).__name__}: its energy has shape {tuple(energy.shape)}; return a "
                "scalar, e.g. by .sum()"
            )


def _check_returned_masks(guide: Guide) -> None:
    if guide.model.fixed_masks is None and guide.mask_shapes:
        with poutine.block(), guide.hypers_at_median():
            missing = guide.mask_shapes.keys() - guide.draw_masks().keys()
        if missing:
            raise InputError(
                f"guide={type(guide).__name__}: draw_masks returns no masks of {sorted(missing)}; add them"
            )


def _check_means(guide: Guide) -> None:
    try:
        with poutine.block():
            guide.mean_weights(guide.median_masks())
    except NotImplementedError as error:
        if error.args:  # a guide that says itself what it lacks
            raise
        raise InputError(
            f"guide={type(guide).__name__}: the distribution of a weight has no mean; give it a property mean, or "
            "override mean_weights(masks)"
        ) from None


def _check_event(trace: Any, guide: Guide) -> None:
    """Whether masks and weights are events as a whole, so that their densities are scalars."""
    for name, node in trace.nodes.items():
        if name.endswith((".mask", ".weight")) and node["type"] == "sample" and node["fn"].batch_shape:
            raise InputError(
                f"guide={type(guide).__name__} draws {name!r} from a distribution with batch shape "
                f"{tuple(node['fn'].batch_shape)}: use to_event({len(node['fn'].batch_shape)})"
            )


def _latent(trace: Any) -> dict[str, Tensor]:
    """Values of the latent sites of a trace, by name, without plates and auxiliary sites."""
    return {
        name: node["value"]
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and not node["is_observed"]
        and not node["infer"].get("is_auxiliary")
        and not poutine.util.site_is_subsample(node)
    }


def _check_draw(name: str, value: Tensor, shape: tuple[int, ...], family: str, mask: bool) -> None:
    if tuple(value.shape) != tuple(shape):
        raise InputError(
            f"guide={family} draws {name!r} of shape {tuple(value.shape)}; expected {tuple(shape)}: expand its "
            "distribution and use to_event"
        )
    if not value.isfinite().all():
        raise InputError(f"guide={family} draws {name!r} with NaN or infinity: look at its parameters")
    if mask and not ((value == 0) | (value == 1)).all():
        wrong = value[(value != 0) & (value != 1)].flatten()[0]
        raise InputError(
            f"guide={family} draws {name!r} with {float(wrong):g}: a mask is exactly 0 or 1; use "
            "StraightThroughBernoulli, or StraightThroughConcrete for a relaxation"
        )
