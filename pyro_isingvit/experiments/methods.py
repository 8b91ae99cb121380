"""The methods that a study compares: ours and its baselines, each a prior and a guide trained by the same loop.

References:
    Wan et al., "Regularization of Neural Networks using DropConnect", ICML 2013.
    Molchanov, Ashukha & Vetrov, "Variational Dropout Sparsifies Deep Neural Networks", ICML 2017.
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (temperature scaling).
    Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015 (magnitude pruning).
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self, get_args

import pydantic
import torch
from torch import Tensor

from ..config import Config
from ..data import Data
from ..errors import InputError, TrainingError
from ..guides import SparseVariationalDropout
from ..inference.fit import fit, fit_path
from ..inference.path import Mark
from ..inference.result import FitResult
from ..logit_scale import best_logit_scale, scale_logits
from ..models import IsingViT, LogUniform
from ..posterior import Posterior
from ..prediction import calibration, predictions
from ..scores import nll
from .fits import build, build_network, fit_deterministic, fit_ensemble, fit_ising, plain
from .opponents import Candidate, Opponent, ivon, laplace, swag
from .outcome import Outcome, Predictor
from .recipes import RunConfig

Name = Literal[
    "ising",
    "ising-mixture",
    "ising-path",
    "deterministic",
    "dropout",
    "dropconnect",
    "sparse-vd",
    "ensemble",
    "magnitude-pruning",
    "ivon",
    "laplace",
    "swag",
]
DRAWS = 20
"""Number of draws of an opponent by which its logits are scaled, as for `Posterior.calibrate`."""

_SETTINGS = {
    "ising-mixture": "members",
    "dropout": "rate",
    "dropconnect": "rate",
    "ensemble": "members",
    "magnitude-pruning": "densities",
}
"""Methods that have a setting of their own, and its name."""


class Method(Config):
    """A method and its own settings.

    Attributes:
        name: one of

            * ``ising``: our method. The same fit also gives its median-probability model, one network.
            * ``ising-mixture``: a mixture of such posteriors, see `fit_mixture`.
            * ``ising-path``: the same at every point of `fit_path`.
            * ``deterministic``, ``dropout``, ``dropconnect``, ``sparse-vd``, ``ensemble``.
            * ``magnitude-pruning``: the deterministic network is cut to each density, and then trained further for a
              quarter of the steps.
            * ``ivon``, ``laplace`` (of the last layer), ``swag``: see `pyro_isingvit.experiments.opponents`. Each is
              trained with a few settings of its own, of which the validation images choose one. The first two need the
              extra ``opponents``.

            The logits of ``ising-path`` and ``magnitude-pruning`` are scaled to suit the validation images; the other
            methods give outcomes without and with such scaling. The rule is the same for all, see
            `pyro_isingvit.logit_scale`.
        rate: rate of dropout or DropConnect.
        members: number of networks in the ensemble, or of members of the mixture.
        densities: densities that magnitude pruning cuts to.
    """

    name: Name
    rate: float = pydantic.Field(default=0.1, gt=0, lt=1)
    members: int = pydantic.Field(default=5, ge=2)
    densities: tuple[Annotated[float, pydantic.Field(gt=0, lt=1)], ...] = (0.05, 0.1, 0.2, 0.3, 0.5)

    @pydantic.model_validator(mode="after")
    def _own_settings(self) -> Self:
        for name, field in type(self).model_fields.items():
            if name not in {"name", _SETTINGS.get(self.name)} and getattr(self, name) != field.default:
                raise ValueError(f"{self.name} has no {name}; only {[m for m, s in _SETTINGS.items() if s == name]}")
        return self


def outcomes(config: RunConfig, method: Method, data: Data, progress: bool = True) -> Iterator[Outcome]:
    """Train a method as a run is configured, and predict the test images; one fit may give several outcomes."""
    if config.select:
        raise InputError("select=True: a study compares methods without a selection of features; use 'isingvit fit'")
    if config.members != 1:
        raise InputError(
            f"members={config.members}: in a study, give it to a method: {{name: ising-mixture, members: 3}}"
        )
    return _METHODS[method.name](config, method, data, progress)


def _ising(config: RunConfig, method: Method, data: Data, progress: bool) -> Iterator[Outcome]:
    yield from _of_ising(Predictor("ising"), fit_ising(config, data, progress), config, data)


def _ising_mixture(config: RunConfig, method: Method, data: Data, progress: bool) -> Iterator[Outcome]:
    result = fit_ising(config.model_copy(update={"members": method.members}), data, progress, jobs=1)
    yield from _of_ising(Predictor(f"ising-mixture of {method.members}"), result, config, data)


def _of_ising(predictor: Predictor, result: FitResult, config: RunConfig, data: Data) -> Iterator[Outcome]:
    yield from _posterior(predictor, result, config, data)
    yield from _median(predictor, result.posterior, result.seconds, data)


def _ising_path(config: RunConfig, method: Method, data: Data, progress: bool) -> Iterator[Outcome]:
    path = fit_path(build(config), data.train, data.validation, config.fit, progress)
    for row in range(len(path.stops)):
        mark = ", ".join(name for name in get_args(Mark) if path.table[name][row])
        posterior = path.at(row)
        predictor = Predictor("ising-path", scaled=True, curve=True)
        for outcome in _mixtures(predictor, posterior, (posterior.logit_scale,), path.seconds, config, data):
            yield replace(outcome, mark=mark)
        _, scaled = _median(Predictor("ising-path", curve=True), posterior, path.seconds, data)
        yield scaled


def _deterministic(config: RunConfig, method: Method, data: Data, progress: bool) -> Iterator[Outcome]:
    yield from _plug_in(Predictor("deterministic"), fit_deterministic(config, data, progress), data)


def _dropout(config: RunConfig, method: Method, data: Data, progress: bool) -> Iterator[Outcome]:
    network = config.network.model_copy(update={"dropout": method.rate})
    result = fit_deterministic(config.model_copy(update={"network": network}), data, progress)
    yield from _plug_in(Predictor(f"dropout {method.rate:g}"), result, data)


def _dropconnect(config: RunConfig, method: Method, data: Data, progress: bool) -> Iterator[Outcome]:
    result = fit_deterministic(config, data, progress, dropconnect=method.rate)
    yield from _plug_in(Predictor(f"dropconnect {method.rate:g}"), result, data)


def _sparse_vd(config: RunConfig, method: Method, data: Data, progress: bool) -> Iterator[Outcome]:
    network = build_network(config)
    model = IsingViT(network, LogUniform(network.weight_sites()))
    result = fit(SparseVariationalDropout(model), data.train, data.validation, config.fit, progress)
    yield from _posterior(Predictor("sparse-vd"), result, config, data)


def _ensemble(config: RunConfig, method: Method, data: Data, progress: bool) -> Iterator[Outcome]:
    result = fit_ensemble(config.model_copy(update={"members": method.members}), data, progress, jobs=1)
    test, validation = _plug_in_probs(result.posterior, data)
    predictor = Predictor(f"ensemble of {method.members}")
    outcome = _point(predictor, test, validation, data, result.seconds, density=float(method.members))
    yield outcome
    yield _scaled(outcome, validation, data)


def _opponent(name: Name, train: Opponent) -> Callable[[RunConfig, Method, Data, bool], Iterator[Outcome]]:
    """Outcomes with the setting of least scaled NLL of the validation images; the time is that of all settings."""

    def run(config: RunConfig, method: Method, data: Data, progress: bool) -> Iterator[Outcome]:
        device, seconds = config.fit.torch_device(), 0.0
        data = Data(data.train.to(device), data.validation.to(device), data.test.to(device))
        best: list[Outcome] | None = None
        for candidate in train(config, data, progress):
            seconds += candidate.seconds
            try:
                pair = _candidate(Predictor(name), candidate, config, data)
            except TrainingError:  # of predictions that are not finite: this setting has diverged
                continue
            if best is None or pair[1].validation_nll < best[1].validation_nll:
                best = pair
        if best is None:
            raise TrainingError(f"method {name}: training has diverged with each of its settings")
        for outcome in best:
            yield replace(outcome, seconds=seconds)

    return run


def _candidate(predictor: Predictor, candidate: Candidate, config: RunConfig, data: Data) -> list[Outcome]:
    """Outcomes without and with scaled logits, as for our posteriors."""
    seed, device = config.fit.seed, config.fit.torch_device()
    images, labels = data.validation.images, data.validation.labels
    scale, _ = calibration(lambda: candidate.draws(DRAWS, seed), DRAWS, images, labels, device)
    test, validation = (
        predictions(lambda: candidate.draws(config.draws, seed), config.draws, part.images, (1.0, scale), 0.9, device)
        for part in (data.test, data.validation)
    )
    return [
        _point(replace(predictor, scaled=scaled), at_test.probs, at_validation.probs, data, 0.0, mark=candidate.setting)
        for scaled, at_test, at_validation in zip((False, True), test, validation, strict=True)
    ]


def _magnitude_pruning(config: RunConfig, method: Method, data: Data, progress: bool) -> Iterator[Outcome]:
    whole = fit_deterministic(config, data, progress)
    settings = plain(config.fit).model_copy(update={"steps": max(1, config.fit.steps // 4)})
    for density in method.densities:
        masks = magnitude_masks(whole.posterior, density)
        guide = copy.deepcopy(whole.posterior.guide)
        guide.model.fix_masks(masks)
        result = fit(guide, data.train, data.validation, settings, progress)
        test, validation = _plug_in_probs(result.posterior, data)
        share = sum(float(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
        seconds = whole.seconds + result.seconds
        predictor = Predictor("magnitude-pruning", curve=True)
        yield _scaled(_point(predictor, test, validation, data, seconds, density=share), validation, data)


_METHODS: dict[str, Callable[[RunConfig, Method, Data, bool], Iterator[Outcome]]] = {
    "ising": _ising,
    "ising-mixture": _ising_mixture,
    "ising-path": _ising_path,
    "deterministic": _deterministic,
    "dropout": _dropout,
    "dropconnect": _dropconnect,
    "sparse-vd": _sparse_vd,
    "ensemble": _ensemble,
    "magnitude-pruning": _magnitude_pruning,
    "ivon": _opponent("ivon", ivon),
    "laplace": _opponent("laplace", laplace),
    "swag": _opponent("swag", swag),
}


def magnitude_masks(posterior: Posterior, density: float) -> dict[str, Tensor]:
    """Masks that keep the largest weights of the network, a share ``density`` of all, by site name."""
    weights = posterior.mean_weights({})
    every = torch.cat([weight.abs().flatten() for weight in weights.values()])
    keep = max(1, round(density * len(every)))
    threshold = every.kthvalue(len(every) - keep + 1).values
    return {name: (weight.abs() >= threshold).to(weight.dtype) for name, weight in weights.items()}


def _nll(probs: Tensor, labels: Tensor) -> float:
    return float(nll(probs, labels.cpu()).mean())


def _posterior(predictor: Predictor, result: FitResult, config: RunConfig, data: Data) -> Iterator[Outcome]:
    """Outcomes of the posterior predictive, without and with scaled logits."""
    posterior = result.posterior.calibrate(data.validation)
    plain, scaled = _mixtures(predictor, posterior, (1.0, posterior.logit_scale), result.seconds, config, data)
    yield plain
    yield replace(scaled, predictor=replace(predictor, scaled=True))


def _mixtures(
    predictor: Predictor, posterior: Posterior, scales: Sequence[float], seconds: float, config: RunConfig, data: Data
) -> list[Outcome]:
    """Outcomes of the posterior predictive at logit scales, from the same passes."""
    test, validation = (
        posterior.predict_at(scales, part.images, config.draws, seed=config.fit.seed)
        for part in (data.test, data.validation)
    )
    shares, temperature = posterior.densities(), posterior.model.temperature
    densities = shares["median_density"], shares["expected_density"]
    losses = [_nll(prediction.probs, data.validation.labels) for prediction in validation]
    return [
        Outcome(predictor, prediction.probs, loss, *densities, temperature, seconds)
        for prediction, loss in zip(test, losses, strict=True)
    ]


def _plug_in_probs(posterior: Posterior, data: Data) -> tuple[Tensor, Tensor]:
    """Probabilities of the test and of the validation images, by the network with the posterior mean weights."""
    return posterior.predict_plug_in(data.test.images), posterior.predict_plug_in(data.validation.images)


def _median(predictor: Predictor, posterior: Posterior, seconds: float, data: Data) -> Iterator[Outcome]:
    """Outcomes of the median-probability model, without and with scaled logits."""
    test, validation = _plug_in_probs(posterior, data)
    loss, density = _nll(validation, data.validation.labels), posterior.densities()["median_density"]
    temperature = posterior.model.temperature
    outcome = Outcome(replace(predictor, median=True), test, loss, density, density, temperature, seconds)
    yield outcome
    yield _scaled(outcome, validation, data)


def _scaled(outcome: Outcome, validation: Tensor, data: Data) -> Outcome:
    """The outcome with its logits scaled to suit the validation images, whose probabilities are ``validation``."""
    labels = data.validation.labels
    tiny = torch.finfo(validation.dtype).tiny  # with a larger floor, overconfident networks would be scaled too little
    of_test, of_validation = (probs.clamp_min(tiny).log() for probs in (outcome.probs, validation))
    scale = best_logit_scale(of_validation, labels)
    test, validation = (scale_logits(each, scale).exp() for each in (of_test, of_validation))
    predictor = replace(outcome.predictor, scaled=True)
    return replace(outcome, predictor=predictor, probs=test, validation_nll=_nll(validation, labels))


def _plug_in(predictor: Predictor, result: FitResult, data: Data) -> Iterator[Outcome]:
    """Outcomes of the network with the posterior mean weights, without and with scaled logits."""
    test, validation = _plug_in_probs(result.posterior, data)
    outcome = _point(predictor, test, validation, data, result.seconds)
    yield outcome
    yield _scaled(outcome, validation, data)


def _point(
    predictor: Predictor,
    test: Tensor,
    validation: Tensor,
    data: Data,
    seconds: float,
    density: float = 1.0,
    mark: str = "",
) -> Outcome:
    return Outcome(predictor, test, _nll(validation, data.validation.labels), density, density, 1.0, seconds, mark)
