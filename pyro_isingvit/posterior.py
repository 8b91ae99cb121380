"""The fitted posterior: draws, predictions, inclusion probabilities, calibration, and storage."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from . import saved
from .data import Images
from .data.images import check_images, checked_pixels
from .data.streams import Unlabelled
from .draws import BATCH, Draw, check_draws, draw_seed, evaluating, guide_draw, mask_draw, network_logits
from .errors import InputError, check_positive
from .files import home
from .guides import Guide
from .models import IsingViT
from .models.likelihoods import Likelihood, require_classes
from .prediction import Prediction, calibration, predictions
from .targets import TargetPrediction, target_predictions, target_scores

DRAWS = 200
"""Number of draws of masks for quantities that have no closed form."""


@dataclass(frozen=True, repr=False)
class Posterior:
    """An approximate posterior over the masks and weights of a network.

    `fit` returns a posterior that owns its tensors, so that later changes of the network, model or guide leave it
    unchanged. `Posterior.of` makes one from any guide.

    Attributes:
        guides: the variational distribution, with its model; or those of the members of a mixture with equal weights,
            see `members` and `fit_mixture`.
        logit_scale: factor on the logits of the posterior predictive, see `calibrate`. Training, the prior,
            log-likelihoods and the median-probability model do not use it.
        names: names of the classes, in order, which predictions have too; empty if they have none.

    Raises:
        InputError: if there are no guides.
    """

    guides: tuple[Guide, ...]
    logit_scale: float = 1.0
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, guide: Guide, logit_scale: float = 1.0, names: tuple[str, ...] = ()) -> Self:
        """The posterior of a guide as it is now: a copy, in evaluation mode."""
        guide = copy.deepcopy(guide)
        guide.eval()
        guide.model.eval()
        return cls((guide,), logit_scale, names)

    def __post_init__(self) -> None:
        if not self.guides:
            raise InputError("guides=(): a posterior needs at least one guide; see Posterior.of")

    def __repr__(self) -> str:
        model, members = self.model, len(self.guides)
        of = f"{members} {type(self.guides[0]).__name__}s" if members > 1 else type(self.guides[0]).__name__
        return (
            f"Posterior({of}, {type(model.prior).__name__}, {type(model.network).__name__}, temperature "
            f"{model.temperature:.3g}, logit scale {self.logit_scale:.3g})"
        )

    @property
    def guide(self) -> Guide:
        """The variational distribution.

        Raises:
            InputError: if this is a mixture.
        """
        if len(self.guides) > 1:
            raise InputError(f"posterior: a mixture of {len(self.guides)} guides; use each of posterior.members")
        return self.guides[0]

    @property
    def members(self) -> tuple[Self, ...]:
        """The posterior of each member of a mixture; of another posterior, itself. They share tensors with it."""
        return tuple(replace(self, guides=(guide,)) for guide in self.guides)

    @property
    def model(self) -> IsingViT:
        """The model whose posterior this is; of a mixture, that of its first member."""
        return self.guides[0].model

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        return self.model.prior.zero.device

    def to(self, device: torch.device | str) -> Self:
        """A copy on another device."""
        guides = copy.deepcopy(self.guides)
        for guide in guides:
            guide.to(device)
            guide.model.to(device)
        return replace(self, guides=guides)

    def draws(self, draws: int, seed: int = 0) -> Iterator[Draw]:
        """Independent draws of all masks and weights. The t-th draw depends on ``seed`` and t alone.

        Those of a mixture go round its members. They are made one at a time, as an iterator, since all together may not
        fit into memory; ``list`` keeps them.

        Raises:
            InputError: if ``draws`` is below 1, or a mixture has more members.
        """
        self._check_draws(draws)
        return (guide_draw(self.guides[t % len(self.guides)], draw_seed(seed, t)) for t in range(draws))

    def mask_draws(self, draws: int, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        """Independent draws of all masks alone, by site name; arguments and errors are those of `draws`."""
        self._check_draws(draws)
        return (mask_draw(self.guides[t % len(self.guides)], draw_seed(seed, t)) for t in range(draws))

    def predict(self, images: Unlabelled, draws: int = 50, interval: float = 0.9, seed: int = 0) -> Prediction:
        """Average the network's predictions over draws of masks and weights.

        The t-th draw is the same for all images. Beyond the result, memory depends neither on the number of images nor
        on that of draws or classes.

        Args:
            images: (n, channels, height, width) within [0, 1], on any device; or a map-style torch `Dataset` of images,
                or of tuples that begin with one, or a `DataLoader` of it, which are read in order and in parts.
            draws: number of draws; for a mixture, rounded up to as many for each member.
            interval: mass of the credible intervals, within (0, 1).
            seed: seed of the draws.

        Returns:
            The prediction, on the CPU.

        Raises:
            InputError: if a value is out of range, or a `ViT` is given images of another size.
        """
        return self.predict_at((self.logit_scale,), images, draws, interval, seed)[0]

    def predict_at(
        self, scales: Sequence[float], images: Unlabelled, draws: int = 50, interval: float = 0.9, seed: int = 0
    ) -> list[Prediction]:
        """The prediction at each of some logit scales, from the same draws and passes.

        Args:
            scales: logit scales, in place of that of the posterior; 1 is the posterior before calibration.
            images, draws, interval, seed: see `predict`.

        Raises:
            InputError: see `predict`.
        """
        require_classes(self.model.likelihood, "predict", "; use predict_targets")
        if isinstance(scales, int | float | str):
            raise InputError(f"scales={scales!r}: give a sequence of logit scales, e.g. (1.0,)")
        scales = [float(scale) for scale in scales]
        for scale in scales:
            check_positive("scales", scale, "(1.0,)")
        found = predictions(*self._average(draws, seed), images, scales, interval, self.device, len(self.guides))
        return [replace(prediction, names=self.names) for prediction in found]

    def predict_targets(
        self, images: Unlabelled, draws: int = 50, interval: float = 0.9, seed: int = 0
    ) -> TargetPrediction:
        """Predict numbers, or several labels of each image; see `Regression` and `SeveralLabels`.

        Args:
            images, draws, seed: see `predict`.
            interval: mass of the intervals, within (0, 1).

        Raises:
            InputError: if a value is out of range, or labels are classes.
        """
        return target_predictions(*self._average(draws, seed), images, self._likelihoods, interval, self.device, seed)

    def target_scores(
        self, held_out: Images, draws: int = 50, interval: float = 0.9, seed: int = 0
    ) -> dict[str, float]:
        """Scores of `predict_targets` on labelled images, which the posterior was not trained on.

        Returns:
            ``nll``, the mean negative log density of the labels of an image under the average over draws, in nats; the
            error of the predicted means: ``rmse`` of numbers, ``accuracy`` of labels; and, of numbers, ``coverage``,
            the share that lies within the predictive interval, with ``width``, its mean.

        Raises:
            InputError: see `predict_targets`; also if labels are of another kind or number than those of the fit.
        """
        check_images("held_out", held_out)
        likelihood = self.model.likelihood
        if held_out.kind != likelihood.kind:
            raise InputError(f"held_out.labels: {held_out.kind}; {type(likelihood).__name__} is of {likelihood.kind}")
        return target_scores(*self._average(draws, seed), held_out, self._likelihoods, interval, self.device, seed)

    def predict_plug_in(self, images: Tensor) -> Tensor:
        """Probabilities (n, classes) of the median-probability model with posterior mean weights, on the CPU.

        For a mixture, the mean over its members.
        """
        require_classes(self.model.likelihood, "predict_plug_in", "; use plug_in_outputs")
        images = checked_pixels(images)
        probs = [self._plug_in(guide, images).softmax(-1) for guide in self.guides]
        return probs[0] if len(probs) == 1 else torch.stack(probs).mean(0)

    def plug_in_outputs(self, images: Tensor) -> Tensor:
        """Outputs (n, outputs) of the median-probability model with posterior mean weights, on the CPU.

        Raises:
            InputError: if this is a mixture.
        """
        return self._plug_in(self.guide, checked_pixels(images))

    def network(self) -> nn.Module:
        """The median-probability model with posterior mean weights, as a plain network in evaluation mode.

        Raises:
            InputError: if this is a mixture.
        """
        network = copy.deepcopy(self.model.network)
        weights = self._median_weights(self.guide)
        network.load_state_dict(network.state_dict() | weights)
        return network.requires_grad_(True).eval()

    def inclusion_probabilities(self, temperature: float | None = None) -> dict[str, Tensor]:
        """Posterior probability of each mask being 1, by site name; for a mixture, the mean over its members.

        Args:
            temperature: None for the masks of the fit, with which the posterior predicts. A number reads off, from the
                means and the curvature at the end of the fit, what the evidence at that temperature would include; see
                `LikelihoodGuided.evidence`. docs/inclusion.md shows how far either can be trusted.

        Raises:
            InputError: if ``temperature`` is not positive, or the guide has no estimate of the evidence.
        """
        if temperature is not None:
            check_positive("temperature", temperature, "1.0")
        every = []
        for guide in self.guides:
            with evaluating(guide.model, guide):
                each = guide.inclusion_probabilities() if temperature is None else guide.inclusion_at(temperature)
            every.append(each)
        if len(every) == 1:
            return every[0]
        return {name: torch.stack([probs[name] for probs in every]).mean(0) for name in every[0]}

    def mean_weights(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Posterior mean of every weight given masks, by site name.

        Raises:
            InputError: if this is a mixture.
        """
        with evaluating(self.guide.model, self.guide):
            return self.guide.mean_weights(dict(masks))

    def median_masks(self) -> dict[str, Tensor]:
        """Masks of the median-probability model, by site name: 1 where the inclusion probability is at least one half.

        If the masks of the model are fixed, these are returned.

        Raises:
            InputError: if this is a mixture.
        """
        fixed = self.guide.model.fixed_masks
        if fixed is not None:
            return {name: mask.clone() for name, mask in fixed.items()}
        return {name: (p >= 0.5).to(p.dtype) for name, p in self.inclusion_probabilities().items()}

    def densities(self) -> dict[str, float]:
        """Number of weights that are kept, relative to that of one network; empty if there are no masks.

        A share, within [0, 1]; for a mixture, the sum over its members, as all of them are needed to predict.

        Returns:
            ``expected_density``, the mean inclusion probability, and ``median_density``, that of the median-probability
            model.
        """
        expected = median = 0.0
        total = sum(site.numel for site in self.model.sites)
        for member in self.members:
            probabilities = member.inclusion_probabilities()
            if not probabilities:
                return {}
            for site in self.model.sites:
                full = probabilities.get(site.name, torch.ones(())).expand(site.shape)  # without masks, all are kept
                expected, median = expected + float(full.sum()), median + float((full >= 0.5).sum())
        return {"expected_density": expected / total, "median_density": median / total}

    def calibrate(self, held_out: Images, draws: int = 20, seed: int = 0) -> Self:
        """The same posterior with the logit scale that suits held-out images, see `logit_scale.most_probable_scale`.

        A fit with a `TemperatureSearch` is already calibrated, on the validation images.

        Args:
            held_out: images that the posterior was not trained on.
            draws: number of draws; for a mixture, rounded up to as many for each member.
            seed: seed of the draws.

        Raises:
            InputError: if ``draws`` is below 1, or the number of classes is not that of the network.
            TrainingError: if the predictions are not finite.
        """
        return self._calibrate(held_out, draws, seed)[0]

    def calibrate_and_predict(self, held_out: Images, draws: int = 20, seed: int = 0) -> tuple[Self, Tensor]:
        """The calibrated posterior, and its probabilities (n, classes) of the held-out images; see `calibrate`."""
        calibrated, logits = self._calibrate(held_out, draws, seed)
        if logits is None:
            return calibrated, calibrated.predict(held_out.images, draws, seed=seed).probs
        return calibrated, (calibrated.logit_scale * logits).softmax(-1).mean(0).cpu()

    def _calibrate(self, held_out: Images, draws: int, seed: int) -> tuple[Self, Tensor | None]:
        require_classes(self.model.likelihood, "calibrate")
        check_images("held_out", held_out)
        classes = network_logits(self.model, held_out.images[:1], {}).shape[-1]
        if classes != held_out.classes:
            raise InputError(f"held_out.classes={held_out.classes}: the network has {classes}")
        scale, logits = calibration(*self._average(draws, seed), held_out.images, held_out.labels, self.device)
        return replace(self, logit_scale=scale), logits

    def save(self, folder: str | Path) -> None:
        """Write ``posterior.json``, which describes network, prior and guide, and ``posterior.safetensors``. No pickle.

        Raises:
            InputError: if the folder already holds a posterior.
        """
        saved.write(home(folder), self.guides, self.logit_scale, self.names)

    @classmethod
    def load(cls, folder: str | Path, guide: Guide | None = None) -> Self:
        """Read what `save` wrote, onto the CPU.

        Args:
            folder: a folder that `save` wrote.
            guide: a guide built as for the fit, with its model; needed if network, prior or guide is a class of your
                own. It is compared with the saved description, and copied.

        Raises:
            InputError: if a file is missing, damaged or of another format, the guide differs from the saved one, or a
                class of your own is needed and ``guide`` is not given.
        """
        return cls(*saved.read(home(folder), guide))

    @property
    def _likelihoods(self) -> list[Likelihood]:
        return [guide.model.likelihood for guide in self.guides]

    def _average(self, draws: int, seed: int) -> tuple[Callable[[], Iterator[Draw]], int]:
        """Makes the draws of an average, and their number, rounded up to as many of each member."""
        check_draws(draws)
        even = -(-draws // len(self.guides)) * len(self.guides)
        return partial(self.draws, even, seed), even

    def _check_draws(self, draws: int) -> None:
        check_draws(draws)
        if draws < len(self.guides):
            raise InputError(f"draws={draws}: a mixture of {len(self.guides)} members needs at least one of each")

    def _plug_in(self, guide: Guide, images: Tensor) -> Tensor:
        weights = self._median_weights(guide)
        each = [network_logits(guide.model, batch, weights).cpu() for batch in images.split(BATCH)]
        return torch.cat(each)

    def _median_weights(self, guide: Guide) -> dict[str, Tensor]:
        fixed = guide.model.fixed_masks
        with evaluating(guide.model, guide):
            return guide.mean_weights(guide.median_masks() if fixed is None else dict(fixed))
