"""Learning rates of parts of a network."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..errors import InputError
from ..guides import Guide

Groups = list[dict[str, Any]]


def with_rates(groups: Groups, guide: Guide, rates: Mapping[str, float]) -> Groups:
    """Parameter groups of an optimiser in which some parameters have learning rates of their own.

    Args:
        groups: parameter groups with their learning rates.
        guide: the guide. Its parameters go by the name of their site, and those of the network by their own.
        rates: factors by pattern (``*``, ``?``) of such names; of several that match, the first counts.

    Raises:
        InputError: if a pattern matches nothing that is trained.
    """
    if not rates:
        return groups
    names, unused = _names(guide), set(rates)
    split: Groups = []
    for group in groups:
        parts: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            name = names.get(id(parameter), "")
            found = next((pattern for pattern in rates if fnmatchcase(name, pattern)), None)
            unused.discard(found or "")
            parts.setdefault(1.0 if found is None else rates[found], []).append(parameter)
        split += [{**group, "params": part, "lr": group["lr"] * factor} for factor, part in parts.items()]
    if unused:
        known = sorted(set(names.values()))
        raise InputError(
            f"rates: {sorted(unused)[0]!r} matches nothing that is trained, or only what an earlier pattern matches; "
            f"there are {known}"
        )
    return split


def _names(guide: Guide) -> dict[int, str]:
    """Names of the parameters that are trained, by their ``id``."""
    sites = {site.key: site.name for site in guide.model.sites}
    own = {id(p): sites.get(name.split(".")[-1], name) for name, p in guide.named_parameters() if p.requires_grad}
    shared = {
        id(p): name.removeprefix("network.").removeprefix("original.")
        for name, p in guide.model.named_parameters()
        if p.requires_grad
    }
    return shared | own
