"""Weights & Biases and MLflow hold the history of a run, where they are installed: ``.[wandb,mlflow]``."""

import json
import struct

import pytest

from pyro_isingvit.experiments import run
from pyro_isingvit.experiments.reading import evaluate
from tests.conftest import small_config

QUICKLY = {"compare": False, "progress": False}
BLOCK, HEADER, WHOLE, LAST = 32768, 7, 1, 4
"""Of a LevelDB log: size of a block, of a header in it, and kinds of pieces that end a record."""


def records(content):
    """The records of a LevelDB log, which begins with a header of the file."""
    place, record = HEADER, b""
    while place + HEADER <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        record += content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (WHOLE, LAST):
            yield record
            record = b""


def of_wandb(file):
    """Settings and rows of numbers in a file of a run of Weights & Biases."""
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    every = [proto.Record.FromString(content) for content in records(file.read_bytes())]
    settings = [item for record in every for part in (record.run.config, record.config) for item in part.update]
    rows = [values(record.history.item) for record in every]
    return values(settings), [row for row in rows if row]


def values(items):
    """Values of a protocol buffer's items by name."""
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def test_weights_and_biases_offline(data, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    pytest.importorskip("lightning")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(small_config(data), tmp_path / "run", log=["wandb"], **QUICKLY)
    history = evaluate(tmp_path / "run").result.history
    (file,) = (tmp_path / "logs").rglob("*.wandb")
    settings, rows = of_wandb(file)
    for name in ("loss", "nll"):
        assert [row[name] for row in rows] == pytest.approx(history[name].tolist(), rel=1e-12)
    assert [row["trainer/global_step"] for row in rows] == history["step"].tolist()
    assert settings["train"] == 20


@pytest.mark.filterwarnings("default")  # of libraries that it uses
def test_mlflow_in_a_file(data, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("lightning")
    run(small_config(data), tmp_path / "run", log=["mlflow"], **QUICKLY)
    history = evaluate(tmp_path / "run").result.history
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'logs' / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("isingvit").experiment_id])
    for name in ("loss", "nll"):
        curve = client.get_metric_history(found.info.run_id, name)
        assert [point.step for point in curve] == history["step"].tolist()
        assert [point.value for point in curve] == pytest.approx(history[name].tolist(), rel=1e-12)
    assert found.info.status == "FINISHED"
    assert found.data.params["train"] == "20"
