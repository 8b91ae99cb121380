"""Pyro's own automatic guides, for priors without masks."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import autoguide
from pyro.infer.autoguide import AutoGuide, AutoNormal
from pyro.infer.autoguide.initialization import init_to_median, init_to_value
from torch import Tensor

from pyro_isingvit.errors import InputError
from pyro_isingvit.models.ising_vit import IsingViT
from pyro_isingvit.programs import announce_parameters, full_precision
from pyro_isingvit.settings import plain

from .base import Guide


class Auto(Guide):
    """Any guide of `pyro.infer.autoguide` over all weights and the prior's own latent variables.

    Args:
        model: the model whose posterior this approximates; its prior has no masks.
        family: class of the guide, e.g. `AutoNormal`, `AutoDelta`, or for small networks
            `AutoLowRankMultivariateNormal`.
        options: arguments of the family; by default the weights start at the network's.

    Raises:
        InputError: if the prior has masks.
    """

    def __init__(self, model: IsingViT, family: Callable[..., AutoGuide] = AutoNormal, **options: Any) -> None:
        super().__init__(model)
        if self.mask_shapes:
            raise InputError(f"prior={type(model.prior).__name__} has masks, which Pyro's AutoGuides cannot draw")
        self._settings = {"family": family.__name__ if _of_pyro(family) else plain(family), **plain(options)}
        self.hyper_loc.clear()
        self.hyper_log_scale.clear()
        self._hypers = {"mask": {}, "weight": {}}  # the family samples them all
        start = {site.weight_name: model.network.get_parameter(site.name).detach().clone() for site in model.sites}
        options.setdefault("init_loc_fn", init_to_value(values=start, fallback=init_to_median()))
        if "init_scale" in inspect.signature(family).parameters:
            options.setdefault("init_scale", 5e-3)
        with pyro.settings.context(module_local_params=True), poutine.block(), torch.random.fork_rng():
            self.family = family(model.draw_weights, **options)
            self.family()  # the first call creates its parameters

    def settings(self) -> dict[str, Any]:
        return dict(self._settings)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        announce_parameters("guide", self)
        self.model.follow(self)
        with pyro.settings.context(module_local_params=True), full_precision(self.model.prior.zero.device):
            values = self.family()
        return {site.name: values[site.weight_name] for site in self.model.sites}

    @contextmanager
    def hypers_at_median(self) -> Iterator[None]:
        with pyro.settings.context(module_local_params=True), poutine.block(), torch.no_grad():
            values = self.family.median()
        names = {site.weight_name for site in self.model.sites}
        with poutine.block(), poutine.condition(data={n: v for n, v in values.items() if n not in names}):
            yield

    @torch.no_grad()
    def mean_weights(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Posterior median of every weight, by site name."""
        with pyro.settings.context(module_local_params=True):
            values = self.family.median()
        return {site.name: values[site.weight_name] for site in self.model.sites}


def _of_pyro(family: Any) -> bool:
    return getattr(autoguide, getattr(family, "__name__", ""), None) is family
