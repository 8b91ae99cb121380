"""What the tests share: a tiny network, images whose label can be learned in seconds, how to fit them, a small plan."""

import sys

import numpy as np
import pytest
import torch

from pyro_isingvit import (
    FitConfig,
    Images,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    Posterior,
    ViT,
    ViTConfig,
    export,
    fit,
    prune,
)
from pyro_isingvit.cli import main
from pyro_isingvit.diagnostics import findings
from pyro_isingvit.experiments import RunConfig, run

torch.set_num_threads(1)  # tiny tensors: a second thread only waits, and on a busy machine for long
findings.CHECK_DRAWS, findings.LOO_DRAWS = 100, 40  # of reports, where 400 take long

TINY = ViTConfig(image_size=4, patch_size=2, classes=3, dim=4, depth=2, heads=2, mlp_ratio=2)

QUICK = {"steps": 60, "batch_size": 20, "learning_rate": 2e-2, "temperature": 1e-2, "device": "cpu"}

QUICK_RUN = (
    "--train",
    "100",
    "--test",
    "50",
    "--steps",
    "60",
    "--members",
    "1",
    "--temperature",
    "auto",
    "--dim",
    "8",
    "--mlp-ratio",
    "2",
    "--device",
    "cpu",
)
"""Options of `isingvit fit`."""

PLAN = """
name: small
seeds: [0, 1]
set: {fit.steps: 40, test: 60, validation: 60, draws: 3, fit.device: cpu, network.dim: 8, network.mlp_ratio: 2}
blocks:
  - dataset: digits
    train: 60
    method: [ising, {name: dropout, rate: 0.3}, deterministic]
"""


def pair(family=LikelihoodGuided, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ViT(TINY)
    model = IsingViT(network, IsingSpikeSlab(network.weight_sites(), coupling=0.5))
    return model, family(model, **options)


def quick_fit(stripes, family=LikelihoodGuided, validation=None, **settings):
    return fit(pair(family)[1], stripes, validation, FitConfig(**QUICK | settings), progress=False)


def small_config(data, **fit):
    settings = {"steps": 6, "batch_size": 10, "temperature": 1e-3, "device": "cpu"} | fit
    return RunConfig(
        dataset=str(data),
        train=20,
        validation=10,
        test=10,
        draws=3,
        network=ViTConfig(image_size=4, patch_size=2, classes=3, dim=4, depth=1, heads=2, mlp_ratio=2),
        fit=FitConfig(**settings),
    )


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def tiny_network() -> ViT:
    return ViT(TINY)


@pytest.fixture
def tiny_model(tiny_network: ViT) -> IsingViT:
    return IsingViT(tiny_network, IsingSpikeSlab(tiny_network.weight_sites(), coupling=0.5), num_data=60)


def striped(names=()):
    """Sixty noisy 4x4 images: class k has row k bright."""
    labels = torch.arange(60) % 3
    images = 0.3 * torch.rand(60, 1, 4, 4)
    images[torch.arange(60), 0, labels] += 0.6
    return Images(images, labels, 3, names=names)


@pytest.fixture
def stripes() -> Images:
    return striped()


@pytest.fixture
def plan_file(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


@pytest.fixture
def isingvit(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: arguments to (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["isingvit", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A file of sixty images."""
    path = tmp_path_factory.mktemp("data") / "few.npz"
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4), np.uint8)
    np.savez(path, images=images, labels=np.arange(60) % 3)
    return path


@pytest.fixture(scope="session")
def finished(data, tmp_path_factory):
    """The folder of a finished run; it is not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(small_config(data), folder, progress=False)
    return folder


@pytest.fixture(scope="session")
def exported(finished, tmp_path_factory):
    """An exported network; it is not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "small"
    export(prune(Posterior.load(finished), density=0.5), folder)
    return folder
