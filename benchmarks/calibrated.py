"""Scores of a posterior on test images, as trained and calibrated."""

from typing import Any

import pyro_isingvit as iv
from pyro_isingvit.diagnostics.calibration import metrics


def scores(posterior: iv.Posterior, scale: float, data: iv.data.Data, draws: int) -> dict[str, Any]:
    """Scores at a logit scale, the NLL without it, and the share of the weights that is kept."""
    raw, scaled = posterior.predict_at((1.0, scale), data.test.images, draws)
    of_test = metrics(scaled.probs, data.test.labels)
    return {
        "accuracy": of_test["accuracy"],
        "raw NLL": metrics(raw.probs, data.test.labels)["nll"],
        "NLL": of_test["nll"],
        "ECE": of_test["ece"],
        "weights": posterior.densities().get("median_density", float(len(posterior.guides))),
    }
