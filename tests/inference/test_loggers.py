"""Loggers hear what the history says, in curves that go forward."""

import os

import pytest
import torch
from lightning_fabric.loggers import CSVLogger, TensorBoardLogger

from pyro_isingvit import FitConfig, InterruptedFitError, fit, fit_mixture
from pyro_isingvit.files import read_table
from pyro_isingvit.inference import trainer
from pyro_isingvit.inference.events import RowLogged, StepTaken
from pyro_isingvit.inference.loggers import LoggerListener
from tests.conftest import QUICK, pair

SEARCH = QUICK | {"temperature": "auto", "steps": 40, "pilot": 0.5, "fine_tune": 0.25}


class Notes:
    """A logger that remembers, with the interface that all have."""

    def __init__(self):
        self.settings, self.rows, self.ends = [], [], []

    def log_hyperparams(self, params):
        self.settings.append(params)

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def finalize(self, status):
        self.ends.append(status)


def curves(rows):
    """Steps and values by name."""
    found = {}
    for step, numbers in rows:
        for name, value in numbers.items():
            found.setdefault(name, []).append((step, value))
    return found


def of_events(folder):
    """The same from the files of TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_curves_are_those_of_the_history_and_of_each_trial(stripes, tmp_path, monkeypatch):
    """Those of trials stay apart, as each begins again where the pilot phase ended. Files hold the same numbers."""
    monkeypatch.setattr(trainer, "APART", 1)
    notes = Notes()
    loggers = notes, TensorBoardLogger(tmp_path / "tb", "mine"), CSVLogger(tmp_path / "csv", "mine")
    listeners = [LoggerListener(logger, {"fit": {"seed": 0}}) for logger in loggers]
    result = fit(pair()[1], stripes, stripes, FitConfig(**SEARCH), False, listeners)
    found, history = curves(notes.rows), result.history
    check_files(found, tmp_path)
    for name in history.columns.drop(["step", "phase"]):
        assert found.pop(name) == list(zip(history["step"], history[name], strict=True))
    temperatures = {f"trial-{temperature:.2g}" for temperature in result.trials["temperature"]}
    assert {name.partition("/")[0] for name in found} == temperatures
    assert len(temperatures) == len(result.trials) > 1
    for name, curve in found.items():
        steps = [step for step, _ in curve]
        assert steps == sorted(set(steps)), name
        assert (min(steps), max(steps)) == (21, 30), name  # from the end of the pilot phase, through the Ising phase
    assert notes.settings == [{"fit": {"seed": 0}}]
    assert notes.ends == ["success"]


def check_files(expected, folder):
    """Check that the files of TensorBoard and CSV have the curves."""
    found = of_events(folder / "tb" / "mine" / "version_0")
    assert found.keys() - expected.keys() == {"hp_metric"}  # TensorBoard's own, for tables of settings
    table = read_table(folder / "csv" / "mine" / "version_0" / "metrics.csv")
    for name, curve in expected.items():
        steps, values = map(list, zip(*curve, strict=True))
        assert [step for step, _ in found[name]] == steps
        assert [value for _, value in found[name]] == torch.tensor(values, dtype=torch.float32).tolist()
        own = table[["step", name]].dropna()
        assert own["step"].tolist() == steps
        assert own[name].tolist() == pytest.approx(values, rel=1e-12)


def test_an_interrupted_fit_goes_on_in_a_log_of_its_own(stripes, tmp_path):
    """Both together have every row, and the status says which has ended."""
    notes = [Notes(), Notes(), Notes()]
    options = {"checkpoint": tmp_path, "resume": True, "interval": 0.0}

    def stop(event):
        if isinstance(event, StepTaken) and event.step == 47:
            raise InterruptedFitError("stopped", 15)

    def go_on(logger, *others):
        listeners = [LoggerListener(logger, {"seed": 0}), *others]
        return fit(pair()[1], stripes, None, FitConfig(**QUICK), False, listeners, **options)

    with pytest.raises(InterruptedFitError):
        go_on(notes[0], stop)
    history = go_on(notes[1]).history
    assert [each.ends for each in notes] == [["failed"], ["success"], []]
    both = curves([*notes[0].rows, *notes[1].rows])
    assert both["loss"] == list(zip(history["step"], history["loss"], strict=True))
    go_on(notes[2])
    assert (notes[2].settings, notes[2].rows, notes[2].ends) == ([], [], [])  # nothing was left to do


def test_members_of_a_mixture_have_listeners_of_their_own(stripes, tmp_path):
    """They are made in the process of each member."""

    def listeners(member):
        def write(event):
            if isinstance(event, RowLogged):
                with (tmp_path / f"{member}").open("a") as file:
                    file.write(f"{os.getpid()} {event.row['step']} {event.row['loss']}\n")

        return [write]

    config = FitConfig(**QUICK)
    result = fit_mixture(lambda: pair()[1], 2, stripes, None, config, False, jobs=2, listeners=listeners)
    every = {os.getpid()}
    for member in range(2):
        lines = (tmp_path / f"{member}").read_text().splitlines()
        processes, steps, losses = zip(*map(str.split, lines), strict=True)
        history = result.member(member).history
        assert [int(step) for step in steps] == history["step"].tolist()
        assert [float(loss) for loss in losses] == history["loss"].tolist()
        every |= set(processes)
    assert len(every) == 3
