"""A small network on disk: the same predictions without Pyro, in torch, ONNX and Python alone; and refusals."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch

import pyro_isingvit as iv
from pyro_isingvit.pruning import compact
from tests.pruning.networks import CONFIG, IMAGES, PLAIN, WITH_STEM, network_of, posterior_of


@pytest.fixture(scope="module")
def network():
    return iv.prune(posterior_of(), ("hidden", "head_dim", "patch"), density=0.5)


@pytest.fixture(scope="module")
def ensemble():
    return iv.pruning.prune_draws(posterior_of(iv.StructuredSpikeSlab), draws=3, density=0.5)


@pytest.fixture(scope="module", params=["network", "ensemble"])
def exported(request, tmp_path_factory):
    """A network, and a folder with all its files."""
    one = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp(request.param) / "small"
    iv.export(one, folder, ["torch", "onnx"])
    return one, folder


def test_there_and_back(exported):
    network, folder = exported
    again = compact.load(folder)
    assert again.config == network.config
    assert torch.equal(again(IMAGES), network(IMAGES))
    assert not again.training


@pytest.mark.parametrize("config", [CONFIG, PLAIN, WITH_STEM])
def test_every_kind_of_layer_comes_back(config, tmp_path):
    """Uneven heads, one that looks at all tokens alike, a layer that is gone."""
    whole = network_of(config, 2)
    weights = {name: p.detach().clone() for name, p in whole.named_parameters()}
    weights["encoder.key"][0, 1], weights["encoder.value"][0, 0, 1:], weights["encoder.up"][1] = 0, 0, 0
    network = iv.pruning.shrink(whole, weights)
    assert network.config.layers[0].heads[-1][1] == 0
    iv.export(network, tmp_path / "small", ["onnx"])
    assert torch.equal(compact.load(tmp_path / "small")(IMAGES), network(IMAGES))
    assert (run_onnx(tmp_path / "small") - network(IMAGES)).abs().max() < 1e-5


def run_onnx(folder):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(folder / "network.onnx", providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": IMAGES.numpy()})[0])


def test_onnx_says_the_same(exported):
    """Of a batch of another size than the one it was traced with."""
    network, folder = exported
    logits = run_onnx(folder)
    assert (logits - network(IMAGES)).abs().max() < 1e-5
    assert torch.equal(logits.argmax(-1), network(IMAGES).argmax(-1))


WITHOUT_PYRO = """
import sys
for name in ("pyro", "pyro_isingvit", "safetensors", "numpy", "pydantic"):
    sys.modules[name] = None  # an import of it fails
import torch
from compact import load
images = torch.load("images.pt")
torch.save((load(".")(images), torch.export.load("network.pt2").module()(images)), "logits.pt")
"""


def test_a_folder_works_without_pyro(exported):
    """In a process that can import neither Pyro nor this package, from the folder's own files."""
    network, folder = exported
    torch.save(IMAGES, folder / "images.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYRO], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded, program = torch.load(folder / "logits.pt")
    assert (loaded - network(IMAGES)).abs().max() < 1e-6
    assert (program - network(IMAGES)).abs().max() < 1e-6


def test_tensors_are_read_as_the_library_reads_them(exported):
    _, folder = exported
    path = folder / "weights.safetensors"
    ours, theirs = compact.read_safetensors(path.read_bytes(), path), safetensors.torch.load_file(path)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(network, tmp_path):
    iv.export(network, tmp_path / "small")
    return tmp_path / "small"


def change(folder, **changes):
    """Write other facts, and the digests that they would have."""
    path, weights = folder / "config.json", (folder / "weights.safetensors").read_bytes()
    facts = json.loads(path.read_text()) | {"weights": hashlib.sha256(weights).hexdigest()} | changes
    del facts["sha256"]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(facts | {"sha256": digest}))


def edit(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"pixel_mean": 0.5', '"pixel_mean": 0.4'))


def cut_off(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def one_bit(folder):
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def another_network(folder):
    other = iv.prune(posterior_of(), density=0.25)
    tensors = {name: value.contiguous() for name, value in other.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / "weights.safetensors")


def far_patch(folder):
    path = folder / "weights.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors | {"patch_index": tensors["patch_index"] + 99}, path)


def with_digest(damage):
    """Damage of the weights by one who also writes their digest."""

    def damaged(folder):
        damage(folder)
        change(folder)

    return damaged


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"no config\.json there; give a folder"),
        (lambda f: (f / "weights.safetensors").unlink(), r"no weights\.safetensors there"),
        (lambda f: (f / "config.json").write_text("{"), "not JSON"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "not JSON"),
        (lambda f: change(f, format="gguf"), "no network of format 'pyro_isingvit.compact'"),
        (lambda f: change(f, version=99), "version=99, and this code reads 4"),
        (lambda f: change(f, layers=[{"block": 0}]), "does not describe a network"),
        (lambda f: change(f, colour="red"), "does not describe a network"),
        (lambda f: change(f, dim=-1), "does not describe a network"),
        (lambda f: change(f, patch_size=[0, 4]), "does not describe a network"),
        (lambda f: change(f, stem="convolutions", patch_size=[1, 1]), "patch_size=1 does not allow"),
        (lambda f: change(f, pooling="max"), "does not describe a network"),
        (lambda f: change(f, pixel_std="0.5"), "does not describe a network"),
        (lambda f: change(f, pixel_std=float("inf")), "does not describe a network"),
        (lambda f: change(f, layers=[{"block": 0, "heads": [[-1, 4, 4]], "hidden": 0}]), "does not describe a network"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "not JSON"),
        (edit, r"config\.json: was changed or damaged"),
        (one_bit, r"weights\.safetensors: not the weights of config\.json, or damaged"),
        (cut_off, r"weights\.safetensors: not the weights of config\.json, or damaged"),
        (another_network, r"weights\.safetensors: not the weights of config\.json, or damaged"),
        (with_digest(far_patch), "patch_index is out of range"),
        (with_digest(cut_off), r"weights\.safetensors: cannot be read"),
        (with_digest(lambda f: (f / "weights.safetensors").write_bytes(b"PK")), "cannot be read"),
        (with_digest(another_network), r"not the weights of config\.json"),
    ],
)
def test_a_damaged_folder_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(compact.LoadError, match=message):
        compact.load(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(compact.LoadError, match="nowhere"):
        compact.load(tmp_path / "nowhere")


def test_export_refuses(network, folder, tmp_path, monkeypatch):
    with pytest.raises(iv.InputError, match=r"formats='tflite': choose of \['torch', 'onnx'\]"):
        iv.export(network, tmp_path / "new", ["tflite"])
    with pytest.raises(iv.InputError, match="exists: choose another, or overwrite=True"):
        iv.export(network, folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(iv.InputError, match="is not only an exported network"):
        iv.export(network, tmp_path / "mine", overwrite=True)
    (tmp_path / "mine" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(iv.InputError, match="is not only an exported network"):
        iv.export(network, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(iv.InputError, match=r"thesis\.txt is a file"):
        iv.export(network, tmp_path / "mine" / "thesis.txt" / "small")
    monkeypatch.setattr(sys.modules[iv.export.__module__], "find_spec", lambda name: None)
    with pytest.raises(iv.InputError, match=r"needs onnx and onnxscript: pip install 'pyro-isingvit\[onnx\]'"):
        iv.export(network, tmp_path / "new", ["onnx"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "small"]  # nothing left over


def test_export_replaces_its_own(network, folder):
    other = iv.prune(posterior_of(), density=0.25)
    iv.export(other, folder, overwrite=True)
    assert torch.equal(compact.load(folder)(IMAGES), other(IMAGES))
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(iv.InputError, match="is not only an exported network"):
        iv.export(network, folder, overwrite=True)
    assert (folder / "thesis.txt").exists()


def test_images_of_another_size(network):
    with pytest.raises(ValueError, match=r"images of shape \(6, 1, 9, 9\)"):
        network(torch.rand(6, 1, 9, 9))


def test_bytes_are_images_too(network):
    pixels = (IMAGES * 255).byte()
    assert (network(pixels) - network(pixels.float() / 255)).abs().max() < 1e-6
