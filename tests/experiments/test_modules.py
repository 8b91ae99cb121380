"""Runs of other networks, from the command line."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

from pyro_isingvit import InputError, ViTConfig, read, split
from pyro_isingvit.experiments import RunConfig, open_fit
from pyro_isingvit.experiments.modules import ModuleConfig, make_module
from pyro_isingvit.experiments.opponents import laplace, swag

GEOMETRY = ViTConfig(image_size=32, patch_size=8, channels=1, classes=3)

SOURCE = """
from torch import nn

def small(classes, channels):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes)
    )

def normalised(classes, channels):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes)
    )

def linear(classes, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(image_size[0] * image_size[1], classes))

def nothing():
    return 3
"""


def test_a_network_from_a_file_is_fitted_evaluated_and_reported(data, isingvit, tmp_path):
    (tmp_path / "net.py").write_text(SOURCE)
    quick = "--train 20 --validation 10 --test 10 --steps 20 --batch-size 5 --temperature 0.01 --members 1 --device cpu"
    code, _, said = isingvit("fit", "--dataset", data, "--network", "net.py:small", "--out", "run", *quick.split())
    assert code == 0, said
    before = json.loads((tmp_path / "run" / "metrics.json").read_text())
    code, _, said = isingvit("evaluate", "run")
    assert code == 2
    assert "is code, 'net.py:small', and no code is run because a folder names it; give it again" in said
    again = "--network", str(tmp_path / "net.py") + ":small"
    code, out, said = isingvit("evaluate", "run", *again)
    assert code == 0, said
    assert f"{before['ising']['nll']:.4f}" in out
    assert f"{before['deterministic']['nll']:.4f}" in out
    code, _, said = isingvit("report", "run", *again)
    assert code == 0, said
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Sequential, 2 roles of weights" in page
    assert "Attention rollout" not in page
    code, out, said = isingvit("prune", "run", "--out", "small", "--format", "torch", *again)
    assert code == 0, said
    figures = json.loads((tmp_path / "small" / "metrics.json").read_text())
    assert figures["after"]["scores"] == pytest.approx(figures["before"]["scores"], abs=1e-5)
    assert f"{figures['after']['scores']['nll']:.4f}" in out
    assert {path.name for path in (tmp_path / "small").iterdir()} == {
        "pruned.safetensors",
        "metrics.json",
        "network.pt2",
    }
    exported = torch.export.load(tmp_path / "small" / "network.pt2").module()
    assert exported(torch.rand(3, 1, 4, 4)).shape == (3, read(str(data)).classes)
    code, _, said = isingvit("prune", "run", "--out", "small", "--overwrite", *again)
    assert (code, (tmp_path / "small" / "network.pt2").exists()) == (0, False), said
    code, _, said = isingvit("prune", "run", "--out", "other", "--level", "hidden", *again)
    assert (code, said.splitlines()) == (
        2,
        [f"isingvit: level=['hidden']: of a ViT, and the run's network is '{again[1]}'; leave it out"],
    )
    (tmp_path / "net.py").write_text(SOURCE.replace("nn.ReLU()", "nn.Tanh()"))
    code, _, said = isingvit("predict", "run", "x.png", *again)
    assert (code, "no such file or folder" in said) == (2, True)
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    code, _, said = isingvit("predict", "run", "x.png", *again)
    assert (code, "is not as it was in the fit; restore it" in said) == (2, True)


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:vit_tiny_patch16_224", "torchvision:resnet18"])
def test_networks_of_libraries_have_the_geometry_of_the_images(name):
    network = make_module(ModuleConfig(name=name), GEOMETRY).eval()
    assert network(torch.rand(2, 1, 32, 32)).shape == (2, 3)
    assert network.unknown == network.uncoupled == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("keras:resnet", r"network='keras:resnet': give one of \['timm:NAME'"),
        ("timm:no_such_model", "timm has no such model"),
        ("torchvision:no_such_model", "torchvision has no such model"),
        ("missing.py:make", "no file 'missing.py'"),
        ("net.py:none", "'net.py' has no function 'none'"),
        ("net.py:nothing", "made int, not a torch module"),
        ("net.py:wide", "wide takes 'width' without a default; it may take"),
    ],
)
def test_what_there_is_not_is_refused_by_name(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(SOURCE + "\n\ndef wide(classes, width):\n    return 0\n")
    with pytest.raises(InputError, match=message):
        make_module(ModuleConfig(name=name), GEOMETRY)


def test_the_last_block_alone():
    parts = {"include": ("blocks.11.*", "head"), "exclude": ("*.attn.*",), "train": "masked"}
    network = make_module(ModuleConfig(name="timm:vit_tiny_patch16_224", **parts), GEOMETRY)
    assert [site.name for site in network.weight_sites()] == ["blocks.11.mlp.fc1", "blocks.11.mlp.fc2", "head"]
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {site.name for site in network.weight_sites()}


def test_a_rate_of_dropout_is_that_of_all_its_layers_or_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(SOURCE)
    half = GEOMETRY.model_copy(update={"dropout": 0.5})
    network = make_module(ModuleConfig(name="timm:vit_tiny_patch16_224"), half)
    rates = [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)]
    assert len(rates) > 12
    assert set(rates) == {0.5}
    with pytest.raises(InputError, match=r"network='net.py:small': has no dropout layer, and dropout=0.5"):
        make_module(ModuleConfig(name="net.py:small"), half)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (laplace, "laplace: knows the last layer of a ViT alone, and the network is 'net.py:normalised'"),
        (swag, "swag: the network has batch normalisation"),
    ],
)
def test_opponents_that_cannot_take_a_module_say_so(method, message, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(SOURCE)
    everything = read(str(data))
    config = RunConfig(
        dataset=str(data),
        train=20,
        validation=10,
        test=10,
        network=ViTConfig(image_size=4, patch_size=4, channels=1, classes=everything.classes),
        module={"name": "net.py:normalised"},
        fit={"steps": 4, "batch_size": 5, "temperature": 0.01, "device": "cpu"},
    )
    with pytest.raises(InputError, match=message):
        next(method(config, split(everything, 20, 10, 10), False))


def test_masks_of_whole_units_are_fitted_cut_and_read_again(data, isingvit, tmp_path):
    (tmp_path / "net.py").write_text(SOURCE)
    quick = "--train 20 --validation 10 --test 10 --steps 20 --batch-size 5 --temperature 0.01 --members 1 --device cpu"
    network = "--network", str(tmp_path / "net.py") + ":small"
    code, _, said = isingvit("fit", "--dataset", data, *network, "--structured", "--out", "run", *quick.split())
    assert code == 0, said
    posterior = open_fit("run", network=network[1])[2].posterior
    assert {name: tuple(mask.shape) for name, mask in posterior.median_masks().items()} == {
        "0": (4, 1, 1, 1),
        "4": (1, 4, 1),
    }
    assert isingvit("prune", "run", "--out", "small", "--format", "torch", *network)[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pretrained",), "--pretrained and --around are of other networks"),
        (("--network", "net"), "network='net': give one of ['timm:NAME'"),
        (("--network", "net.py:small", "--dim", 8), "--dim=8: of a ViT, and --network='net.py:small'; leave one out"),
        (("--network", "net.py:small", "--select"), "select=True: of the patches of a ViT"),
        (
            ("--network", "net.py:linear", "--structured"),
            "structured=True: every unit of this network",
        ),
        (("--network", "net.py:small", "--around", "one"), "module.around"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, data, isingvit, tmp_path):
    (tmp_path / "net.py").write_text(SOURCE)
    code, _, said = isingvit("fit", "--dataset", data, "--train", 20, "--members", 1, *options)
    assert (code, len(said.strip().splitlines())) == (2, 1)
    assert message in said
