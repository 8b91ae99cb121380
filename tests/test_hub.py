"""Uploads to a hub and downloads from it, with a server on loopback in its place."""

import json
import sys

import pytest
import torch
import yaml

import pyro_isingvit as iv
from pyro_isingvit import hub
from pyro_isingvit.pruning import load
from tests.conftest import QUICK_RUN, pair
from tests.hub_server import hub_server


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with hub_server() as running:
        yield running


def front_of(card):
    """The metadata of a model card, and its text."""
    _, front, text = card.decode().split("---\n", 2)
    return yaml.safe_load(front), text


def test_a_posterior_comes_back_with_the_same_predictions(server, tmp_path, stripes):
    posterior = iv.Posterior.of(pair()[1])
    posterior.save(tmp_path / "saved")
    where = {"endpoint": server.address}
    said = hub.push(tmp_path / "saved", "me/stripes", license="mit", token="hf_secret", **where)
    assert said == f"{server.address}/me/stripes/commit/{'0' * 40}"
    assert set(server.repos["me/stripes"]) == {"README.md", "posterior.json", "posterior.safetensors"}
    front, text = front_of(server.repos["me/stripes"]["README.md"])
    assert (front["license"], front["library_name"]) == ("mit", "pyro-isingvit")
    assert "prior `IsingSpikeSlab`" in text
    assert 'hub.pull("me/stripes", "stripes")' in text
    folder = hub.pull("me/stripes", tmp_path / "back", **where)
    assert {path.name for path in folder.iterdir()} == {"README.md", "posterior.json", "posterior.safetensors"}
    same = iv.Posterior.load(folder)
    assert torch.equal(same.predict(stripes.images, 5).probs, posterior.predict(stripes.images, 5).probs)
    with pytest.raises(iv.InputError, match=r"folder='.*back' exists: choose another"):
        hub.pull("me/stripes", tmp_path / "back", **where)


def test_the_card_of_a_run_has_its_scores_and_data_and_damage_is_seen(server, tmp_path, isingvit):
    code, _, said = isingvit("fit", "--out", "run", *QUICK_RUN, "--no-compare", "--temperature", 1e-3, "--steps", 20)
    assert code == 0, said
    where = {"endpoint": server.address}
    (tmp_path / "run" / "figures").mkdir()
    for shown in ("report.html", "figures/samples.png"):  # of `isingvit report`, with images of the data set
        (tmp_path / "run" / shown).write_bytes(b"images")
    hub.push(tmp_path / "run", "me/run", license="apache-2.0", **where)
    assert not {"report.html", "figures/samples.png"} & set(server.repos["me/run"])
    text = front_of(server.repos["me/run"]["README.md"])[1]
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert f"| ising | {scores['ising']['accuracy']:.4f} | {scores['ising']['nll']:.4f} |" in text
    assert json.loads((tmp_path / "run" / "run.json").read_text())["images"] in text
    server.repos["me/run"]["net.py"] = b"print('code')"
    folder = hub.pull("me/run", tmp_path / "back", **where)
    assert not (folder / "net.py").exists()
    code, out, said = isingvit("evaluate", folder)
    assert code == 0, said
    assert f"{scores['ising']['nll']:.4f}" in out
    server.repos["me/run"]["posterior.safetensors"] += b"x"
    with pytest.raises(iv.InputError, match=r"repo='me/run': .*posterior.safetensors"):
        hub.pull("me/run", tmp_path / "again", **where)
    assert not (tmp_path / "again").exists()


def test_a_pruned_network_comes_back(server, tmp_path, stripes):
    network = iv.prune(iv.Posterior.of(pair()[1]))
    iv.export(network, tmp_path / "small")
    where = {"endpoint": server.address}
    hub.push(tmp_path / "small", "me/small", license="apache-2.0", **where)
    assert "needs torch alone" in front_of(server.repos["me/small"]["README.md"])[1]
    again = load(hub.pull("me/small", tmp_path / "back", **where))
    assert torch.equal(again(stripes.images), network.eval()(stripes.images))


def test_what_cannot_be_is_one_line(server, tmp_path, monkeypatch):
    where = {"endpoint": server.address}
    (tmp_path / "empty").mkdir()
    with pytest.raises(iv.InputError, match=r"run='.*empty': no run.json there"):
        hub.push(tmp_path / "empty", "me/x", license="mit", **where)
    with pytest.raises(iv.InputError, match=r"repo='me/none': .*Repository Not Found"):
        hub.pull("me/none", tmp_path / "x", **where)
    with pytest.raises(iv.InputError, match=r"repo='a/b/c': "):
        hub.pull("a/b/c", tmp_path / "x", **where)
    iv.Posterior.of(pair()[1]).save(tmp_path / "saved")
    server.locked = True
    with pytest.raises(iv.InputError, match=r"repo='me/x': the hub refuses \(.*403.*\); see 'hf auth login'"):
        hub.push(tmp_path / "saved", "me/x", license="mit", **where)
    server.repos["me/other"] = {"model.bin": b"1"}
    with pytest.raises(iv.InputError, match=r"repo='me/other': run='\.': no run.json there"):
        hub.pull("me/other", tmp_path / "x", **where)
    assert not (tmp_path / "x").exists()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(iv.InputError, match=r"needs huggingface_hub; pip install 'pyro-isingvit\[hub\]'"):
        hub.pull("me/other", tmp_path / "x", **where)


def test_a_hub_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ConnectionError, match="repo='me/x': the hub cannot be reached"):
        hub.pull("me/x", tmp_path / "x", endpoint="http://127.0.0.1:9")
