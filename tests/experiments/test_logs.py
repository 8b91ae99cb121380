"""Logs of runs lie beside them, grow when runs go on, and are in nobody's way."""

import importlib.util
from pathlib import Path

import pytest

from pyro_isingvit import InputError, TrainingError
from pyro_isingvit.experiments import logs, run, runs
from pyro_isingvit.experiments.logs import Kind, check_logs, log_listeners
from pyro_isingvit.experiments.reading import evaluate
from pyro_isingvit.experiments.runs import resume_run
from pyro_isingvit.files import read_table
from tests.conftest import small_config
from tests.inference.test_loggers import of_events

QUICKLY = {"compare": False, "progress": False}


def test_a_run_logs_what_its_history_says(data, tmp_path):
    """Overwriting it adds to its logs, which are not in its folder."""
    for version in range(2):
        run(small_config(data, seed=version), tmp_path / "run", overwrite=True, log=["csv", "tensorboard"], **QUICKLY)
        history = evaluate(tmp_path / "run").result.history
        table = read_table(tmp_path / "logs" / "csv" / "run" / "ising" / f"version_{version}" / "metrics.csv")
        assert table["loss"].tolist() == history["loss"].tolist()
        assert table["step"].tolist() == history["step"].tolist()
        found = of_events(tmp_path / "logs" / "tensorboard" / "run" / "ising" / f"version_{version}")
        assert [value for _, value in found["nll"]] == pytest.approx(history["nll"].tolist(), rel=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "run"]


def test_a_run_that_goes_on_still_logs(data, tmp_path, monkeypatch):
    """What was finished before has no second log."""

    def broken(*arguments, **options):
        raise TrainingError("loss=nan")

    monkeypatch.setattr(runs, "fit_deterministic", broken)
    with pytest.raises(TrainingError):
        run(small_config(data), tmp_path / "run", progress=False, log=["csv"])
    monkeypatch.undo()
    resume_run(tmp_path / "run", progress=False)
    files = (tmp_path / "logs").rglob("*.csv")
    assert {path.relative_to(tmp_path / "logs" / "csv" / "run").parts[:2] for path in files} == {
        ("ising", "version_0"),
        ("deterministic", "version_0"),
    }


def test_each_fit_has_a_logger_of_its_own(data, tmp_path, monkeypatch):
    made = []
    kind = Kind(lambda place, name: made.append((place, name)), (), "")
    monkeypatch.setattr(logs, "KINDS", {"one": kind, "other": kind})
    config = small_config(data)
    assert len(log_listeners(["one", "other"], tmp_path / "run", "ising of selected", config)(None)) == 2
    assert len(log_listeners(["one"], tmp_path / "run", "ensemble", config)(2)) == 1
    assert made == [(tmp_path / "logs", f"run/{name}") for name in ("ising-of-selected",) * 2 + ("ensemble-2",)]


def test_loggers_that_cannot_be_used_are_refused_before_anything_is_done(data, tmp_path, monkeypatch):
    for out, log, message in (
        ("run", ["csv", "paper"], r"log='paper': choose of \['tensorboard', 'csv', 'wandb', 'mlflow'\]"),
        ("logs", ["csv"], "logs' is where the logs of runs are put; choose another folder"),
    ):
        with pytest.raises(InputError, match=message):
            run(small_config(data), tmp_path / out, log=log, **QUICKLY)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"log='wandb': needs lightning; pip install 'pyro-isingvit\[wandb\]'"):
        check_logs(["wandb"], Path("run"))
    assert not list(tmp_path.iterdir())
