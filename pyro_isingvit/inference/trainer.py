"""The training loop of a fit."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import pandas as pd
import pyro
import torch
from torch import Tensor, nn

from ..data import Images
from ..draws import guide_draw
from ..errors import TrainingError
from ..guides import Guide
from ..network.stem import as_floats
from ..posterior import Posterior
from ..scores import mean_scores
from .config import FitConfig
from .elbo import TraceGraph_ELBO
from .events import Event, Listener, PhaseStarted, RowLogged, StepTaken, WentBack

LOGS = 50
"""Approximate number of rows of the history of a fit."""

LOGGED_IMAGES = 1000
"""Largest number of validation (else training) images that accuracy and NLL of each row are computed on."""

DRAWN_IMAGES = 8
"""Number of images that one draw predicts at each row, to see that draws are finite."""


@dataclass(frozen=True)
class Snapshot:
    """A state of training: states of model, guide and optimiser, and counters and rows of the `Trainer`."""

    states: Sequence[dict[str, Any]]
    step: int
    position: float
    stride: float
    rows: tuple[dict[str, Any], ...]


class Trainer:
    """One optimiser and its progress through the steps of a fit."""

    def __init__(
        self,
        guide: Guide,
        train: Images,
        validation: Images | None,
        config: FitConfig,
        listeners: Sequence[Listener] = (),
    ) -> None:
        device, model = train.images.device, guide.model
        self.model, self.guide, self.train, self.config = model, guide, train, config
        self.step, self.started, self.seconds = 0, time.perf_counter(), 0.0
        self.position, self.stride = 0.0, 1.0  # on the schedule of the learning rate; increment per step
        self.rows: list[dict[str, Any]] = []
        model.num_data = len(train)
        guide.forget()
        self.loss = TraceGraph_ELBO()(model, guide)
        rate = config.learning_rate
        shared = [p for p in model.parameters() if p.requires_grad]
        groups = [*guide.parameter_groups(rate), *([{"params": shared, "lr": rate}] if shared else [])]
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.Adam(groups, fused=True)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        held_out = train if validation is None else validation.to(device)
        self.watched = held_out[torch.arange(min(LOGGED_IMAGES, len(held_out)), device=device)]
        precision = getattr(torch, config.precision)
        self.autocast = partial(torch.autocast, device.type, precision, enabled=precision != torch.float32)
        self.batches = _batches(len(train), config.batch_size, device)
        self.listeners = tuple(listeners)
        self._largest = torch.zeros((), device=device)  # norm of the gradients since the last row
        self._good = self.snapshot()

    def tell(self, event: Event) -> None:
        """Call all listeners with an event."""
        for listener in self.listeners:
            listener(event)

    @property
    def temperature(self) -> float:
        """Temperature of the posterior that is trained; during a fit it is set here alone."""
        return self.model.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.model.temperature = value

    @property
    def history(self) -> pd.DataFrame:
        """The rows logged so far, see `FitResult`."""
        return pd.DataFrame(self.rows)

    def run_pilot(self) -> None:
        """Run the pilot phase, with all masks on that are not held off."""
        steps = round(self.config.pilot * self.config.steps)
        if steps:
            self.model.fix_masks(self.guide.pilot_masks())
            self.run(steps, "pilot")
        self.model.fix_masks(None)

    def run(self, steps: int, phase: str, after_step: Callable[[], None] | None = None) -> None:
        """Train for some steps at the current temperature; add rows to the history at intervals and at the end."""
        config, every = self.config, math.ceil(self.config.steps / LOGS)
        scale = self.temperature / len(self.train)  # from nats of all data to nats per image
        total, count = torch.zeros((), device=self.train.images.device), 0
        self.tell(PhaseStarted(phase, self.temperature, steps))
        for i in range(steps):
            batch = next(self.batches)
            images, labels = self.train.images[batch], self.train.labels[batch]
            if config.augment is not None:
                images = config.augment(as_floats(images))
            with pyro.validation_enabled(i == 0), self.autocast():
                loss = self.loss(images, labels)
            loss.backward()
            for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * config.rate_at(self.position)
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            norm = scale * nn.utils.get_total_norm(gradients)
            self._largest = torch.maximum(self._largest, norm)  # NaN if either is
            if norm.device.type == "cpu":  # elsewhere once a row, as reading it would hold up the device
                self._check_gradients(phase)
            torch._foreach_mul_(gradients, scale * (config.clip / (norm + 1e-6)).clamp_max(1.0))
            self.optimizer.step()
            self.optimizer.zero_grad()
            # After the step, which is also when the guide would call it itself (see `Guide.learn`).
            self.guide.learn()
            self.step += 1
            self.position += self.stride
            total, count = total + loss.detach() * scale, count + 1
            self.tell(StepTaken(self.step))
            if after_step is not None:
                after_step()
            if self.step % every == 0 or i == steps - 1:
                self._log(phase, float(total) / count)
                total, count = torch.zeros_like(total), 0

    @property
    def _parts(self) -> tuple[Any, ...]:
        return self.model, self.guide, self.optimizer

    def snapshot(self) -> "Snapshot":
        """A copy of the current state of training."""
        states = [copy.deepcopy(part.state_dict()) for part in self._parts]
        return Snapshot(states, self.step, self.position, self.stride, tuple(self.rows))

    def go_back(self, snapshot: "Snapshot") -> None:
        """Restore a snapshot, except for temperature, random state, and the time of a guide's next update."""
        for part, state in zip(self._parts, snapshot.states, strict=True):
            part.load_state_dict(copy.deepcopy(state))
        self.guide.forget()
        self.optimizer.zero_grad()
        self._largest, self._good = torch.zeros_like(self._largest), snapshot
        self.step, self.position, self.stride = snapshot.step, snapshot.position, snapshot.stride
        self.rows = list(snapshot.rows)
        self.tell(WentBack(self.step))

    def _check_gradients(self, phase: str) -> None:
        if not math.isfinite(float(self._largest)):
            named = [*self.guide.named_parameters(), *self.model.named_parameters()]
            found = [name for name, p in named if p.grad is not None and not bool(p.grad.isfinite().all())]
            self._stop(phase, f"no finite gradient{_of(found)}")

    def _check_state(self, phase: str) -> None:
        """Whether everything that the guide and the model hold is finite, and a draw from the guide."""
        states = self.guide.state_dict() | self.model.state_dict()
        found = [name for name, x in states.items() if x.is_floating_point() and not bool(x.isfinite().all())]
        if found:
            self._stop(phase, f"no finite value{_of(found)}")
        draw = guide_draw(self.guide, self.step)
        found = [name for name, weight in draw.weights.items() if not bool(weight.isfinite().all())]
        if found or not bool(draw.logits(self.watched.images[:DRAWN_IMAGES]).isfinite().all()):
            self._stop(phase, f"no finite {'weights' if found else 'logits'} in a draw{_of(found)}")

    def _stop(self, phase: str, what: str) -> NoReturn:
        """Restore the last state that was checked, and raise an error that says what happened."""
        config, step, temperature = self.config, self.step, self.temperature
        self.go_back(self._good)
        other = " or use precision='float32'" if config.precision != "float32" else ""
        raise TrainingError(
            f"{what} at step {step}, {phase} phase, temperature={temperature:g}: lower "
            f"learning_rate={config.learning_rate} or clip={config.clip}{other}; model and guide are as "
            f"they were at step {self.step}"
        )

    def _log(self, phase: str, loss: float) -> None:
        self._check_gradients(phase)
        self.guide.forget()
        self._check_state(phase)
        if not math.isfinite(loss):
            self._stop(phase, f"loss={loss}")
        posterior, labels = Posterior((self.guide,)), self.watched.labels.cpu()
        scores = mean_scores(posterior.predict_plug_in(self.watched.images), labels)
        if not math.isfinite(scores["nll"]):
            self._stop(phase, f"nll={scores['nll']} of the watched images")
        row = {
            "step": self.step,
            "phase": phase,
            "temperature": self.temperature,
            "loss": loss,
            "accuracy": scores["accuracy"],
            "nll": scores["nll"],
            **posterior.densities(),
            "seconds": time.perf_counter() - self.started,
        }
        self.rows.append(row)
        self._good = self.snapshot()
        self.tell(RowLogged(row))


def _of(names: Sequence[str]) -> str:
    """The first few names of tensors, for an error message."""
    return f" of {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}" if names else ""


def _batches(total: int, size: int, device: torch.device) -> Iterator[Tensor]:
    """Endless minibatches of indices, all of one size: one permutation per epoch, without a last incomplete batch."""
    size = min(size, total)
    while True:
        yield from torch.randperm(total, device=device)[: total - total % size].split(size)
