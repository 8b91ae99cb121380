"""The training loop of a fit."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import pandas as pd
import pyro
import torch
from torch import Tensor, nn

from ..data import Images
from ..data.batches import Batches
from ..data.streams import Labelled, in_memory
from ..draws import guide_draw
from ..errors import InputError, InterruptedFitError, TrainingError
from ..guides import Guide
from ..network.stem import as_floats
from ..posterior import Posterior
from ..scores import mean_scores
from .checkpoint import Checkpoints
from .compiled import CompiledStep
from .config import FitConfig
from .elbo import TraceGraph_ELBO
from .events import CheckpointSaved, Event, Listener, PhaseStarted, RowLogged, StepTaken, WentBack
from .precision import autocast_of, backward_of
from .ranks import Ranks, seed_of
from .rates import with_rates
from .signals import Told
from .state import Snapshot, State, attributes, generators, set_attributes, set_generators
from .traced import eager_step

LOGS = 50
"""Approximate number of rows of the history of a long fit."""

APART = 10
"""Least number of steps between two rows, each of which costs as much as a few steps."""

LOGGED_IMAGES = 1000
"""Largest number of validation (else training) images that accuracy and NLL of each row are computed on."""

LOGGED_SHARE = 0.25
"""The same as a share of the images that are trained on between two rows, so that rows cost little of a fit."""

LEAST_LOGGED = 100
"""Number of images that are used however few are trained on."""

TOGETHER = 10
"""Steps after which several processes agree whether they were told to stop."""

DRAWN_IMAGES = 8
"""Number of images that one draw predicts at each row, to see that draws are finite."""


class Trainer:
    """One optimiser and its progress through the steps of a fit.

    A fit is a sequence of calls of `run` and `remember`. After an interruption the same calls are made again: those
    that were done before the checkpoint return at once, and the one that was under way goes on from there.
    """

    def __init__(
        self,
        guide: Guide,
        train: Labelled,
        validation: Images | None,
        config: FitConfig,
        ranks: Ranks,
        listeners: Sequence[Listener] = (),
        checkpoints: Checkpoints | None = None,
        told: Told | None = None,
    ) -> None:
        device, model = ranks.device, guide.model
        self.model, self.guide, self.train, self.config, self.ranks = model, guide, train, config, ranks
        self.step, self.started, self.seconds = 0, time.perf_counter(), 0.0
        self.position, self.stride = 0.0, 1.0  # on the schedule of the learning rate; increment per step
        self.rows: list[dict[str, Any]] = []
        model.num_data = len(train)
        guide.forget()
        guide.averaging = ranks.average if ranks.size > 1 else None
        rate = config.learning_rate
        shared = [p for p in model.parameters() if p.requires_grad]
        groups = [*guide.parameter_groups(rate), *([{"params": shared, "lr": rate}] if shared else [])]
        groups = with_rates(groups, guide, config.rates)
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.Adam(groups, fused=True)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        logged = max(LEAST_LOGGED, round(LOGGED_SHARE * self.every * config.batch_size))
        held_out = in_memory(train if validation is None else validation, LOGGED_IMAGES, config.seed).to(device)
        self.watched = held_out[torch.arange(min(LOGGED_IMAGES, logged, len(held_out)), device=device)]
        autocast, loss = autocast_of(config, device), TraceGraph_ELBO()(model, guide)
        self.gradients: Callable[[Tensor, Tensor], Tensor] = (
            CompiledStep(loss, autocast)
            if config.compile
            else partial(eager_step, ranks.wrap(loss), autocast, backward=backward_of(config, guide, ranks.backward))
        )
        self.batches = Batches(train, config.batch_size, config.seed, device, ranks.rank, ranks.size)
        self.listeners = tuple(listeners)
        self.checkpoints, self.told = checkpoints, told or Told()
        self._done: list[str] = []  # calls of `run` that have ended
        self._past: set[str] = set()  # those of them that ended before the checkpoint that the fit goes on from
        self._memory: dict[str, Any] = {}  # see `remember`
        self._resumed: State | None = None  # a checkpoint from which a call of `run` has yet to go on
        self._largest = torch.zeros((), device=device)  # norm of the gradients since the last row
        self._good = self.snapshot()

    def tell(self, event: Event) -> None:
        """Call all listeners with an event."""
        for listener in self.listeners:
            listener(event)

    @property
    def every(self) -> int:
        """Number of steps between two rows of the history."""
        return max(APART, math.ceil(self.config.steps / LOGS))

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

    def run_pilot(self) -> int:
        """Run the pilot phase, with all masks on that are not held off. Returns its number of steps."""
        steps = round(self.config.pilot * self.config.steps)
        if steps:
            self.model.fix_masks(self.guide.pilot_masks())
            self.run(steps, "pilot")
        self.model.fix_masks(None)
        return steps

    def run(
        self, steps: int, phase: str, after_step: Callable[[], None] | None = None, name: str | None = None
    ) -> None:
        """Train for some steps at the current temperature; add rows to the history at intervals and at the end.

        Args:
            steps: number of steps.
            phase: name of the phase, see `PhaseStarted`.
            after_step: called after each step.
            name: by which a checkpoint knows this call, if a phase is run several times.
        """
        config, every, name = self.config, self.every, name or phase
        if name in self._past:
            return
        total, count, first = torch.zeros((), device=self.ranks.device), 0, 0
        if self._resumed is not None:
            total, count, first = self._go_on(name)
        scale = self.temperature / len(self.train)  # from nats of all data to nats per image
        self.tell(PhaseStarted(phase, self.temperature, steps))
        for i in range(first, steps):
            images, labels = next(self.batches)
            if config.augment is not None:
                images = config.augment(as_floats(images))
            with pyro.validation_enabled(i == 0):
                loss = self.gradients(images, labels)
            for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * config.rate_at(self.position)
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            if config.compile:  # otherwise they were averaged as they were computed
                self.ranks.average(gradients)
            norm = scale * nn.utils.get_total_norm(gradients)
            self._largest = torch.maximum(self._largest, norm)  # NaN if either is
            if norm.device.type == "cpu":  # elsewhere once a row, as reading it would hold up the device
                self._check_gradients(phase)
            torch._foreach_mul_(gradients, scale * (config.clip / (norm + 1e-6)).clamp_max(1.0))
            self.optimizer.step()
            self.optimizer.zero_grad()
            del gradients  # not beside those of the next step
            # After the step, which is also when the guide would call it itself (see `Guide.learn`).
            self.guide.learn()
            self.step += 1
            self.position += self.stride
            total, count = total + loss * scale, count + 1
            self.tell(StepTaken(self.step))
            if after_step is not None:
                after_step()
            if self.step % every == 0 or i == steps - 1:
                self.ranks.average([total])
                self._log(phase, float(total) / count)
                total, count = torch.zeros_like(total), 0
            if self.checkpoints is not None:
                self._keep(phase, name, {"taken": i + 1, "total": total, "count": count}, i == steps - 1)
        self._done.append(name)

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make()`` returns; after an interruption, what it returned before. Checkpoints have to hold it.

        Of several processes, all get what the first has made.
        """
        if name not in self._memory:
            self._memory[name] = self.ranks.same(make())
        return self._memory[name]

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one: in the next call of `run` that was not done before it."""
        assert self.checkpoints is not None
        state = self.ranks.same(self.checkpoints.load() if self.ranks.first else None)
        if state is not None:
            self._resumed, self._done, self._memory = state, state["done"], state["memory"]
            self._past = set(self._done)
            self.started -= state["seconds"]

    def settle(self) -> None:
        """Average what the guides of several processes have gathered since the last update of the masks."""
        self.ranks.average([p for p in self.guide.parameters() if not p.requires_grad])

    def _keep(self, phase: str, name: str, where: State, last: bool) -> None:
        """Write a checkpoint if it is time to, or if the process was told to stop, which is then obeyed."""
        assert self.checkpoints is not None
        stop = self.told.signal or 0
        if self.ranks.size > 1:  # all stop after the same step
            stop = self.ranks.most(stop) if last or self.step % TOGETHER == 0 else 0
        if not (stop or last or self.checkpoints.due):
            return
        self._check_gradients(phase)
        self._check_state(phase)
        self._good = self.snapshot()
        saved = True
        if self.ranks.first:
            saved = self.checkpoints.save(
                where
                | {
                    "now": vars(self._good),
                    "fixed_masks": self.model.fixed_masks,
                    "attributes": [attributes(part) for part in (self.model, self.guide)],
                    "generators": generators(self.ranks.device),
                    "images": self.batches.taken * self.batches.size,
                    "run": name,
                    "done": self._done,
                    "memory": self._memory,
                    "seconds": time.perf_counter() - self.started,
                }
            )
            self.tell(CheckpointSaved(self.step))
        if stop:
            where_to = f"go on from the checkpoint in {self.checkpoints.folder}" if saved else "no checkpoint was saved"
            raise InterruptedFitError(f"stopped at step {self.step}, {phase} phase; {where_to}", stop)

    def _go_on(self, name: str) -> tuple[Tensor, int, int]:
        """Take up the state of a checkpoint; returns sum and number of losses since the last row, and the next step."""
        state, device = self._resumed, self.ranks.device
        assert state is not None
        if state["run"] != name:
            raise InputError(f"checkpoint: of another fit, in its phase {state['run']!r}, not {name!r}; fit again")
        self._resumed = None
        self.go_back(Snapshot(**state["now"]))
        masks = state["fixed_masks"]
        self.model.fix_masks(None if masks is None else {key: mask.to(device) for key, mask in masks.items()})
        for part, values in zip((self.model, self.guide), state["attributes"], strict=True):
            set_attributes(part, values)
        set_generators(state["generators"], device)
        if self.ranks.size > 1:  # not the draws of the first process in all
            torch.manual_seed(seed_of(self.ranks, self.config.seed, self.step))
        self.batches.taken = state["images"] // self.batches.size
        return state["total"].to(device), state["count"], state["taken"]

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
        self.rows = [dict(row) for row in snapshot.rows]
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
        if self.model.likelihood.kind == "classes":
            scores = mean_scores(posterior.predict_plug_in(self.watched.images), labels)
        else:
            outputs = posterior.plug_in_outputs(self.watched.images).to(self.ranks.device)
            with torch.no_grad():
                scores = self.model.likelihood.scores(outputs, self.watched.labels)
        if not math.isfinite(scores["nll"]):
            self._stop(phase, f"nll={scores['nll']} of the watched images")
        row: dict[str, Any] = {
            "step": self.step,
            "phase": phase,
            "temperature": self.temperature,
            "loss": loss,
            **{name: scores[name] for name in ("accuracy", "rmse", "nll") if name in scores},
            **posterior.densities(),
            "seconds": time.perf_counter() - self.started,
        }
        self.rows.append(row)
        self._good = self.snapshot()
        self.tell(RowLogged(row))


def _of(names: Sequence[str]) -> str:
    """The first few names of tensors, for an error message."""
    return f" of {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}" if names else ""
