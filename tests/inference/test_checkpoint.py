"""Checkpoints: a fit that was interrupted ends with the same bits as one that was not."""

import os
import random
import signal
import threading
from functools import partial

import numpy as np
import pytest
import torch

from pyro_isingvit import (
    FitConfig,
    InputError,
    InterruptedFitError,
    LikelihoodGuided,
    MeanField,
    StorageError,
    fit,
)
from pyro_isingvit.guides import ScoreFunction
from pyro_isingvit.inference import checkpoint as checkpoint_module
from pyro_isingvit.inference import search as search_module
from pyro_isingvit.inference import state
from pyro_isingvit.inference.events import CheckpointSaved, StepTaken, WentBack
from tests.conftest import QUICK, pair

STEPS = 40


class KilledError(Exception):
    """The end of a process, as far as a test can tell."""


@pytest.fixture(autouse=True)
def _short_trials(monkeypatch):
    monkeypatch.setattr(search_module, "LEAST", 4)


def settings(**changes):
    chosen = {"temperature": "auto", "steps": STEPS, "pilot": 0.4, "fine_tune": 0.2, "batch_size": 25}
    return FitConfig(**QUICK | chosen | changes)


def killer(steps):
    """A listener that ends the fit in a step, before a checkpoint is saved of it."""
    taken = iter(range(1, 10**6))

    def listen(event):
        if isinstance(event, StepTaken) and next(taken) == steps:
            raise KilledError

    return listen


def fitted(stripes, folder=None, family=LikelihoodGuided, listeners=(), config=None, interval=0.0, **options):
    config = config or settings()
    saving = {} if folder is None else {"checkpoint": folder, "interval": interval}
    torch.manual_seed(0)  # initial weights of the guide's own
    validation = stripes if config.model_dump()["temperature"] != 0.01 else None
    return fit(pair(family)[1], stripes, validation, config, False, listeners, **saving, **options)


def assert_same(result, other):
    for part in ("guide", "model"):
        states = [getattr(each.posterior, part).state_dict() for each in (result, other)]
        for name, value in states[0].items():
            assert torch.equal(value, states[1][name]), name
    assert result.posterior.logit_scale == other.posterior.logit_scale
    assert result.posterior.model.temperature == other.posterior.model.temperature
    logs = [each.history.drop(columns="seconds") for each in (result, other)]
    assert logs[0].equals(logs[1])
    if result.trials is not None:
        assert result.trials.equals(other.trials)


KNOWN = []
"""The fit that was not interrupted, once it was made; the images are the same in all tests."""


@pytest.fixture
def whole(stripes):
    if not KNOWN:
        KNOWN.append(fitted(stripes))
    return KNOWN[0]


@pytest.mark.parametrize("step", [1, 9, 17, 24, 37, 50])
def test_a_fit_goes_on_to_the_same_bits(step, stripes, whole, tmp_path):
    """Killed in the pilot, in each of the trials, in the Ising phase, or in fine-tuning."""
    with pytest.raises(KilledError):
        fitted(stripes, tmp_path, listeners=[killer(step)])
    assert_same(fitted(stripes, tmp_path, resume=True), whole)


def test_a_fit_goes_on_again_and_again(stripes, whole, tmp_path):
    deaths, result = 0, None
    while result is None:
        try:
            result = fitted(stripes, tmp_path, listeners=[killer(9)], resume=True)
        except KilledError:
            deaths += 1
    assert deaths > 3
    assert_same(result, whole)


@pytest.mark.parametrize(
    "family",
    [
        MeanField,
        partial(LikelihoodGuided, estimator="hessian_diagonal"),
        partial(LikelihoodGuided, refresh_every=7),
        partial(ScoreFunction, baseline="neural"),
    ],
)
def test_what_a_guide_keeps_beside_its_state_goes_on_too(family, stripes, tmp_path):
    config = settings(temperature=1e-2, fine_tune=0.0)
    expected = fitted(stripes, family=family, config=config)
    with pytest.raises(KilledError):
        fitted(stripes, tmp_path, family, [killer(25)], config)
    assert_same(fitted(stripes, tmp_path, family, config=config, resume=True), expected)


def test_generators_of_users_code_go_on_too():
    def numbers():
        return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002

    states = state.generators(torch.device("cpu"))
    expected = numbers()
    assert numbers() != expected
    state.set_generators(states, torch.device("cpu"))
    assert numbers() == expected


def test_a_finished_fit_is_not_trained_again(stripes, whole, tmp_path):
    fitted(stripes, tmp_path)
    events = []
    assert_same(fitted(stripes, tmp_path, listeners=[events.append], resume=True), whole)
    assert not any(isinstance(event, StepTaken) for event in events)
    assert [event.step for event in events if isinstance(event, WentBack)][-1] == STEPS


def test_checkpoints_come_at_intervals_and_the_last_few_are_kept(stripes, tmp_path):
    events = []
    fitted(stripes, tmp_path / "often", listeners=[events.append])
    saved = sum(isinstance(event, CheckpointSaved) for event in events)
    assert saved == sum(isinstance(event, StepTaken) for event in events)
    assert len(list((tmp_path / "often").iterdir())) == checkpoint_module.KEPT
    events.clear()
    fitted(stripes, tmp_path / "rarely", listeners=[events.append], interval=1000)
    phases = 1 + 5 + 2  # each ends with one
    assert sum(isinstance(event, CheckpointSaved) for event in events) <= phases


def test_the_one_before_is_taken_if_the_last_is_damaged(stripes, whole, tmp_path):
    with pytest.raises(KilledError):
        fitted(stripes, tmp_path, listeners=[killer(30)])
    _, last = sorted(tmp_path.iterdir())
    data = bytearray(last.read_bytes())
    data[-100] ^= 1
    last.write_bytes(data)
    with pytest.warns(UserWarning, match="was changed or damaged since it was written"):
        result = fitted(stripes, tmp_path, resume=True)
    assert_same(result, whole)
    for path in tmp_path.iterdir():
        path.write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(InputError, match=r"no checkpoint .* whole"):
        fitted(stripes, tmp_path, resume=True)


def test_checkpoints_of_another_fit_are_refused(stripes, tmp_path):
    fitted(stripes, tmp_path)
    for change, message in (
        ({"config": settings(steps=41)}, r"config\.steps is 41 and was 40"),
        ({"family": MeanField}, r"guide\.guide\.class is 'MeanField' and was 'LikelihoodGuided'"),
    ):
        with pytest.raises(InputError, match=f"is of another fit: {message}"):
            fitted(stripes, tmp_path, resume=True, **change)
    with pytest.raises(InputError, match="is of another fit: train is"):
        fitted(stripes[torch.arange(50)], tmp_path, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": True}, "resume=True with checkpoint=None"),
        ({"checkpoint": "there"}, "holds checkpoints: resume=True goes on from them"),
        ({"checkpoint": "new", "interval": float("nan")}, "interval=nan: seconds between checkpoints"),
        ({"checkpoint": "new", "interval": -1.0}, "interval=-1.0: seconds"),
        ({"checkpoint": "new", "interval": "1"}, "interval='1': seconds"),
    ],
)
def test_what_cannot_be_asked_for(options, message, stripes, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "00000000.safetensors").write_bytes(b"")
    if "checkpoint" in options:
        options = options | {"checkpoint": tmp_path / options["checkpoint"]}
    with pytest.raises(InputError, match=message):
        fit(pair()[1], stripes, stripes, settings(), False, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_before_it_is_obeyed(number, stripes, whole, tmp_path):
    def stop(event):
        if isinstance(event, StepTaken) and event.step == 12:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    if before == signal.SIG_IGN:
        pytest.skip("ignored here: a shell runs this in the background")
    with pytest.raises(InterruptedFitError, match=r"stopped at step 12, pilot phase; go on from the checkpoint in"):
        fitted(stripes, tmp_path, listeners=[stop], interval=1000)
    assert signal.getsignal(number) is before
    assert_same(fitted(stripes, tmp_path, resume=True), whole)


def test_in_another_thread_signals_are_left_alone(stripes, whole, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(fitted(stripes, tmp_path)))
    thread.start()
    thread.join()
    assert_same(results[0], whole)


def test_a_full_disk_costs_a_checkpoint_and_not_the_fit(stripes, whole, tmp_path, monkeypatch):
    def full(*_):
        raise StorageError(f"{tmp_path}: cannot be written (No space left on device)")

    monkeypatch.setattr(checkpoint_module, "write_tensors", full)
    with pytest.warns(UserWarning, match="No space left on device.*the fit goes on without it"):
        result = fitted(stripes, tmp_path, interval=1000)
    assert_same(result, whole)


@pytest.mark.parametrize("step", [5, 50])
def test_an_interrupt_leaves_masks_as_they_were(step, stripes):
    """In the pilot they are fixed on, in fine-tuning at the median."""
    _, guide = pair()
    with pytest.raises(KilledError):
        fit(guide, stripes, stripes, settings(), False, [killer(step)])
    assert guide.model.fixed_masks is None
