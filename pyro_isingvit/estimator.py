"""A sparse Vision Transformer as a scikit-learn classifier."""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, Self

import numpy as np
import torch
from joblib import effective_n_jobs
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .data import Augment, Images
from .draws import check_draws
from .errors import InputError
from .guides import LikelihoodGuided
from .inference.config import FitConfig
from .inference.mixture import fit_mixture
from .inference.search import TemperatureSearch
from .models import IsingSpikeSlab, IsingViT
from .network import ViT, ViTConfig
from .network.vit import default_patch

MOST_SEED = 2**32 - 1
"""Largest seed that is drawn from a random state."""

Shape = tuple[int, int, int]
"""Height, width and channels of an image."""


class IsingClassifier(ClassifierMixin, BaseEstimator):
    """A Vision Transformer with the Ising prior on its masks, fitted by `fit_mixture`, for images given as arrays.

    Images are arrays (n, height, width) or (n, height, width, channels); or flat (n, features), with `image_shape`.
    Their values are brought to [0, 1] by the smallest and the largest value among the images of `fit`; later values
    outside are clipped. Labels are of any kind that scikit-learn's classifiers take.

    Args:
        image_shape: height and width, or height, width and channels, of images that are given flat; one of these may
            be -1, which stands for what follows from the number of features. Without it, flat images are taken as
            square and grey.
        inclusion: prior inclusion probability of each weight, within (0, 1).
        coupling: strength J of the Ising interaction; 0 switches it off.
        temperature: temperature of the posterior, a positive number; or ``"auto"``, which searches for it on images
            that are held out, see `FitConfig`.
        steps, batch_size, learning_rate, pilot, augment: see `FitConfig`.
        patch_size: height and width of a patch, one number for both or two; None for the largest that divides the image
            into more than three patches along each side.
        dim, depth, heads, mlp_ratio: geometry of the network, see `ViTConfig`.
        members: number of members of a mixture of posteriors, see `fit_mixture`.
        draws: number of draws from the posterior behind each prediction.
        validation_fraction: share of the images, within [0, 1), that `fit` holds out, at random and from each class
            alike, to search for the temperature and to choose the logit scale, see `Posterior.calibrate`. With 0 the
            temperature has to be a number, and the logit scale is 1.
        device: ``"cpu"``, ``"cuda"``, ... or ``"auto"``: a GPU if there is one.
        n_jobs: number of processes that fit members at a time; None for 1, unless joblib's context says otherwise.
        random_state: seed, or generator, of everything random in `fit`; None draws the seed from numpy's global one.
        verbose: whether to show a progress bar.

    Attributes:
        posterior_: the fitted `Posterior`, which the rest of the package takes, with images as `to_images` makes them.
        result_: the `FitResult`, with the log of the fit.
        classes_: the labels, sorted; columns of `predict_proba`.
        image_shape_: height, width and channels of the images.
        pixel_range_: the smallest and the largest value among the images of `fit`.
        n_features_in_: number of values of an image.
        feature_names_in_: names of these, where `fit` was given a data frame.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> IsingClassifier(patch_size=4).fit(X[:1000], y[:1000]).score(X[1000:], y[1000:])
    """

    def __init__(
        self,
        *,
        image_shape: Sequence[int] | None = None,
        inclusion: float = 0.2,
        coupling: float = 1.0,
        temperature: float | str | TemperatureSearch = "auto",
        steps: int = 3000,
        batch_size: int = 50,
        learning_rate: float = 4e-3,
        pilot: float = 0.4,
        augment: Augment | str | None = None,
        patch_size: int | tuple[int, int] | None = None,
        dim: int = 32,
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: float = 8,
        members: int = 1,
        draws: int = 50,
        validation_fraction: float = 0.2,
        device: str = "auto",
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.image_shape = image_shape
        self.inclusion = inclusion
        self.coupling = coupling
        self.temperature = temperature
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.pilot = pilot
        self.augment = augment
        self.patch_size = patch_size
        self.dim = dim
        self.depth = depth
        self.heads = heads
        self.mlp_ratio = mlp_ratio
        self.members = members
        self.draws = draws
        self.validation_fraction = validation_fraction
        self.device = device
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803
        """Fit the posterior to labelled images.

        Args:
            X: images, see the class.
            y: labels, (n,).

        Raises:
            InputError: if an argument of the constructor is out of range, or the images do not fit it.
            TrainingError: see `fit_mixture`.
        """
        check_draws(self.draws)
        flat, labels, shape = self._flat(X, fitting=True, labels=y)
        check_classification_targets(labels)
        self.image_shape_ = self._shape_of(flat.shape[1], shape)
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        self.pixel_range_ = float(flat.min()), float(flat.max())
        seed = int(check_random_state(self.random_state).randint(MOST_SEED, dtype=np.uint32))
        names = tuple(map(str, self.classes_))
        images = Images(self._pixels(flat), torch.from_numpy(numbers), len(self.classes_), names=names)
        train, held_out = self._parts(images, seed)
        config = self._config(seed)
        result = fit_mixture(
            self._guide,
            self.members,
            train,
            held_out,
            config,
            progress=bool(self.verbose),
            jobs=effective_n_jobs(self.n_jobs),
        )
        if held_out is not None and result.trials is None:
            result = replace(result, posterior=result.posterior.calibrate(held_out))
        self.result_, self.posterior_ = result, result.posterior
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:  # noqa: N803
        """Predicted probabilities, (n, classes), averaged over draws from the posterior; the same at each call.

        Args:
            X: images of the shape of those of `fit`, in any of the forms that it takes.
        """
        pixels = self._checked(X)
        probs: NDArray[np.float32] = self.posterior_.predict(pixels, self.draws).probs.numpy()
        return probs

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """The most probable label of each image, (n,); see `predict_proba`."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def to_images(self, X: ArrayLike, y: ArrayLike) -> Images:  # noqa: N803
        """Labelled images as `posterior_` and the functions of `pyro_isingvit.diagnostics` take them.

        Args:
            X: images, see `predict_proba`.
            y: labels, (n,).

        Raises:
            InputError: if there are other labels than those of `fit`.
        """
        pixels, labels = self._checked(X), np.asarray(y)
        numbers = np.searchsorted(self.classes_, labels).clip(max=len(self.classes_) - 1)
        if (unknown := self.classes_[numbers] != labels).any():
            raise InputError(f"y: {labels[unknown][0]!r} is none of the labels of fit, {self.classes_.tolist()[:10]}")
        return Images(pixels, torch.from_numpy(numbers), len(self.classes_), names=self.posterior_.names)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _checked(self, X: ArrayLike) -> torch.Tensor:  # noqa: N803
        """Images (n, channels, height, width) within [0, 1], of the shape of those of `fit`."""
        check_is_fitted(self)
        flat, _, shape = self._flat(X, fitting=False)
        if shape is not None and shape != self.image_shape_:
            raise InputError(f"X of images of shape {shape}: IsingClassifier was fitted to {self.image_shape_}")
        return self._pixels(flat)

    def _flat(
        self, images: ArrayLike, fitting: bool, labels: ArrayLike | None = None
    ) -> tuple[NDArray[np.float32], NDArray[Any], Shape | None]:
        """Checked images (n, features) and labels, and the shape of an image where it is that of the array."""
        array: Any = images if hasattr(images, "shape") else np.asarray(images)
        shape = None
        if len(array.shape) in (3, 4):
            height, width, channels = (*array.shape[1:], 1)[:3]
            shape, array = (height, width, channels), np.asarray(array).reshape(len(array), -1)
        if not fitting:
            return validate_data(self, array, reset=False, dtype=np.float32), np.empty(0), shape
        flat, found = validate_data(self, array, labels, dtype=np.float32)
        return flat, found, shape

    def _shape_of(self, features: int, shape: Shape | None) -> Shape:
        """Height, width and channels of images: those of the array, which have to be those given, or those given."""
        if self.image_shape is None:
            side = round(features**0.5)
            if shape is None and side**2 != features:
                raise InputError(
                    f"X of {features} features: no square grey images; give image_shape=(height, width), or "
                    "(height, width, channels)"
                )
            return shape or (side, side, 1)
        wanted = f"image_shape={self.image_shape!r}"
        try:
            sizes = np.empty((1, features), bool).reshape(1, *self.image_shape).shape[1:]
        except (TypeError, ValueError):
            raise InputError(f"{wanted}: does not hold the {features} features of X; -1 fits one side") from None
        if len(sizes) not in (2, 3):
            raise InputError(f"{wanted}: give (height, width), or (height, width, channels)")
        height, width, channels = (*sizes, 1)[:3]
        if shape not in (None, (height, width, channels)):
            raise InputError(f"{wanted}: X has images of shape {shape}; leave image_shape out")
        return height, width, channels

    def _pixels(self, flat: NDArray[np.float32]) -> torch.Tensor:
        """Images (n, channels, height, width) within [0, 1]."""
        low, high = self.pixel_range_
        scaled = ((flat - low) / ((high - low) or 1.0)).clip(0, 1).astype(np.float32)
        return torch.from_numpy(scaled.reshape(-1, *self.image_shape_)).permute(0, 3, 1, 2).contiguous()

    def _parts(self, images: Images, seed: int) -> tuple[Images, Images | None]:
        """Images to train on, and to hold out."""
        share: Any = self.validation_fraction
        temperature: Any = self.temperature
        if not isinstance(share, Real) or not 0 <= float(share) < 1:
            raise InputError(f"validation_fraction={share!r}: must lie within [0, 1), e.g. 0.2")
        if share == 0:
            if not isinstance(temperature, Real):
                raise InputError(
                    f"validation_fraction=0 with temperature={temperature!r}: the search needs images to choose "
                    "on; give validation_fraction=0.2, or a number as the temperature"
                )
            return images, None
        classes = images.classes
        held, fewest = round(float(share) * len(images)), int(images.labels.bincount().min())
        if fewest < 2 or not classes <= held <= len(images) - classes:
            raise InputError(
                f"validation_fraction={share}: of {len(images)} images of {classes} classes, {fewest} of the rarest, "
                "it cannot hold out at least one of each and leave one; give more images, another share, or 0 and a "
                "number as the temperature"
            )
        train, held_out = train_test_split(
            np.arange(len(images)), test_size=held, stratify=images.labels.numpy(), random_state=seed
        )
        return images[torch.from_numpy(train)], images[torch.from_numpy(held_out)]

    def _config(self, seed: int) -> FitConfig:
        names = ("steps", "batch_size", "learning_rate", "pilot", "temperature", "augment", "device")
        return FitConfig(seed=seed, **{name: getattr(self, name) for name in names})

    def _guide(self) -> LikelihoodGuided:
        height, width, channels = self.image_shape_
        patch = (default_patch(height), default_patch(width)) if self.patch_size is None else self.patch_size
        names = ("dim", "depth", "heads", "mlp_ratio")
        geometry: dict[str, Any] = {name: getattr(self, name) for name in names}
        geometry |= {"image_size": (height, width), "channels": channels, "patch_size": patch}
        network = ViT(ViTConfig(classes=len(self.classes_), **geometry))
        prior = IsingSpikeSlab(network.weight_sites(), inclusion=self.inclusion, coupling=self.coupling)
        return LikelihoodGuided(IsingViT(network, prior))
