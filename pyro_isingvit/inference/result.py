"""What `fit` returns: the fitted pair, its history, and how to predict, save and load."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pandas as pd
import safetensors.torch
from torch import Tensor

from ..data import Images
from ..errors import InputError
from ..guides import Guide
from ..models import IsingViT
from ..predict import Prediction, best_logit_scale, predict, predict_plug_in

FORMAT = 3
"""Version of what `FitResult.save` writes."""


@dataclass(frozen=True)
class FitResult:
    """A fitted model and guide.

    Attributes:
        model, guide: the pair.
        history: one row now and then: step, phase, temperature, loss (negative tempered ELBO times T, in
            nats per image), accuracy and nll of the plug-in network on validation (else training) images,
            expected_density, median_density, seconds since the start. Of what ``temperature="auto"`` tried, the
            training it stayed at.
        path: what ``temperature="auto"`` or ``"sparsest"`` tried first, one row a temperature, see
            `temperature.path_table`; None if it was given.
        seconds: that the fit took.
        config: how it was trained, `FitConfig` as JSON.
        finished: likewise, at the end of each Ising phase that it tried; ``chosen`` marks the one it stayed at.
        logit_scale: that the logits of the posterior predictive are multiplied by. Training, the median-probability
            model's network, prior and log-likelihood know nothing of it.
    """

    model: IsingViT
    guide: Guide
    history: pd.DataFrame
    path: pd.DataFrame | None
    seconds: float
    config: Mapping[str, Any] = field(default_factory=dict)
    finished: pd.DataFrame | None = None
    logit_scale: float = 1.0

    @property
    def temperature(self) -> float:
        """Temperature of the fitted posterior."""
        return self.model.temperature

    def calibrate(self, held_out: Images) -> Self:
        """The same posterior with the ``logit_scale`` that suits held-out images, see `predict.best_logit_scale`.

        ``temperature="auto"`` and ``"sparsest"`` did so with the validation images.
        """
        return replace(self, logit_scale=best_logit_scale(self.model, self.guide, held_out))

    def predict(self, images: Tensor, draws: int = 50, interval: float = 0.9, seed: int = 0) -> Prediction:
        """Posterior predictive of images (n, channels, height, width); see `pyro_isingvit.predict.predict`."""
        return predict(self.model, self.guide, images, draws, interval, seed=seed, logit_scale=self.logit_scale)

    def predict_plug_in(self, images: Tensor) -> Tensor:
        """Probabilities (n, classes) of the median-probability model with posterior mean weights."""
        return predict_plug_in(self.model, self.guide, images)

    def inclusion_probabilities(self) -> dict[str, Tensor]:
        """Posterior probability that each weight is in, by site name."""
        return self.guide.inclusion_probabilities()

    def densities(self) -> dict[str, float]:
        """Share of the weights that is in: ``expected_density`` (mean inclusion probability) and
        ``median_density`` (of the median-probability model). Empty for a guide without masks.
        """
        return densities(self.guide)

    def save(self, folder: str | Path) -> None:
        """Write ``posterior.safetensors``, ``fit.json``, ``history.csv``, ``path.csv`` and ``finished.csv``. No pickle.

        Raises:
            InputError: if the folder already holds a posterior.
        """
        folder = Path(folder)
        if (folder / "posterior.safetensors").exists():
            raise InputError(f"folder={str(folder)!r} holds a posterior already: choose another or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        parts = {"model": self.model.state_dict(), "guide": self.guide.state_dict()}
        if self.model.fixed_masks is not None:
            parts["fixed_masks"] = self.model.fixed_masks
        tensors = {
            f"{part}/{name}": tensor.detach().cpu().contiguous()
            for part, state in parts.items()
            for name, tensor in state.items()
        }
        facts = {
            "format": FORMAT,
            "temperature": self.model.temperature,
            "num_data": self.model.num_data,
            "logit_scale": self.logit_scale,
            "seconds": self.seconds,
            "config": dict(self.config),
        }
        (folder / "fit.json").write_text(json.dumps(facts, indent=2) + "\n")
        self.history.to_csv(folder / "history.csv", index=False)
        for name, table in (("path", self.path), ("finished", self.finished)):
            if table is not None:
                table.to_csv(folder / f"{name}.csv", index=False)
        safetensors.torch.save_file(tensors, folder / "posterior.safetensors")

    @classmethod
    def load(cls, folder: str | Path, model: IsingViT, guide: Guide) -> Self:
        """Read what `save` wrote into a model and guide built as they were then.

        Raises:
            InputError: if a file is missing, of another format, or does not fit the pair.
        """
        folder = Path(folder)
        for name in ("fit.json", "posterior.safetensors", "history.csv"):
            if not (folder / name).is_file():
                raise InputError(f"folder={str(folder)!r}: no {name} there; give a folder that FitResult.save wrote")
        try:
            facts = json.loads((folder / "fit.json").read_text())
        except json.JSONDecodeError as error:
            raise InputError(f"{folder / 'fit.json'}: not JSON ({error}); fit again") from None
        if facts.get("format") != FORMAT:
            problem = f"format={facts.get('format')!r}; this version reads {FORMAT}; fit again"
            raise InputError(f"{folder / 'fit.json'}: {problem}")
        try:
            tensors = safetensors.torch.load_file(folder / "posterior.safetensors")
        except safetensors.SafetensorError as error:
            raise InputError(f"{folder / 'posterior.safetensors'}: cannot be read ({error}); fit again") from None
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, key = name.partition("/")
            parts.setdefault(part, {})[key] = tensor
        try:
            model.load_state_dict(parts["model"])
            guide.load_state_dict(parts["guide"])
        except RuntimeError as error:
            raise InputError(
                f"folder={str(folder)!r} does not fit the model and guide given; build them as for the fit "
                f"({' '.join(str(error).split())[:200]})"
            ) from None
        device = next(guide.parameters()).device
        fixed = parts.get("fixed_masks")
        model.fix_masks(None if fixed is None else {name: mask.to(device) for name, mask in fixed.items()})
        model.temperature, model.num_data = facts["temperature"], facts["num_data"]
        tables = [folder / "path.csv", folder / "finished.csv"]
        path, finished = (pd.read_csv(table) if table.is_file() else None for table in tables)
        return cls(
            model,
            guide,
            pd.read_csv(folder / "history.csv"),
            path,
            facts["seconds"],
            facts["config"],
            finished,
            facts["logit_scale"],
        )


def densities(guide: Guide) -> dict[str, float]:
    """Share of the weights that is in, see `FitResult.densities`."""
    inside = guide.inclusion_probabilities()
    if not inside:
        return {}
    expected = median = total = 0.0
    for site in guide.model.sites:
        if site.name in inside:
            full = inside[site.name].expand(site.shape)
            expected, median = expected + float(full.sum()), median + float((full >= 0.5).sum())
        total += site.numel
    return {"expected_density": expected / total, "median_density": median / total}
