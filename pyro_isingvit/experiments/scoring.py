"""Metrics of the fits of a run on its test images."""

from collections.abc import Mapping

import torch

from ..data import Images
from ..inference.result import FitResult
from ..network.stem import as_floats
from ..scores import ISING, MEDIAN
from .recipes import RunConfig

Scores = dict[str, dict[str, float]]
"""Metrics by method."""


FOREIGN = 1000
"""Largest number of test images that are turned, to see whether a posterior tells them from the others."""


def score_fits(fits: Mapping[str, FitResult | None], test: Images, config: RunConfig) -> Scores:
    """Metrics on the test images of each fit that there is, and of the median-probability model."""
    from ..diagnostics.calibration import metrics  # torchmetrics takes seconds to import
    from ..diagnostics.shift import rotate, separation

    few = test.images[:FOREIGN]
    turned = rotate(as_floats(few), 90).clamp(0, 1)
    scores: Scores = {}
    for method, result in fits.items():
        if result is None:
            continue
        posterior = result.posterior
        draws = config.draws if method == ISING else len(posterior.guides)
        shares = posterior.densities() or dict.fromkeys(("median_density", "expected_density"), float(draws))
        density, expected = shares["median_density"], shares["expected_density"]
        inside, outside = (posterior.predict(images, draws, seed=config.fit.seed) for images in (test.images, turned))
        scores[method] = (
            metrics(inside.probs, test.labels)
            | separation(inside.entropy[:FOREIGN], outside.entropy)
            | {"density": density, "expected_density": expected, "seconds": result.seconds}
        )
        if method == ISING:
            probs, of_turned = posterior.predict_plug_in(test.images), posterior.predict_plug_in(turned)
            entropies = (torch.special.entr(each).sum(-1) for each in (probs[:FOREIGN], of_turned))
            scores[MEDIAN] = (
                metrics(probs, test.labels)
                | separation(*entropies)
                | {"density": density, "expected_density": density, "seconds": result.seconds}
            )
    return scores
