"""A run that selects input features first: what it writes, what it reads back, what it says."""

import json
from dataclasses import replace

import pytest
import torch

from pyro_isingvit import InputError, Posterior
from pyro_isingvit.data import Images
from pyro_isingvit.experiments import RunConfig, evaluate, report, run
from pyro_isingvit.experiments.console import show_run
from pyro_isingvit.experiments.fits import build
from pyro_isingvit.experiments.images import load
from pyro_isingvit.experiments.methods import Method, outcomes


def config_of(**settings):
    network = {"image_size": 4, "patch_size": 2, "channels": 2, "classes": 3, "dim": 16, "heads": 2, "mlp_ratio": 2}
    fit = {"steps": 600, "batch_size": 20, "learning_rate": 1e-2, "temperature": 1e-2, "device": "cpu"}
    prior = {"structured": True}
    return RunConfig(
        **{"train": 200, "test": 100, "validation": 100, "network": network, "fit": fit, "prior": prior} | settings
    )


@pytest.fixture(scope="module")
def everything():
    """Class k has row k of the first channel bright; the second channel is noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 3
    images = 0.3 * torch.rand(400, 2, 4, 4, generator=generator)
    images[torch.arange(400), 0, labels] += 0.6
    return Images(images, labels, 3)


@pytest.fixture(scope="module")
def folder(everything, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "selected"
    config = config_of(select=True, dataset=str(out.parent / "bars.npz"))
    import numpy as np

    np.savez(out.parent / "bars.npz", images=everything.images.numpy(), labels=everything.labels.numpy())
    run(config, out, compare=False, progress=False)
    return out


def test_only_the_informative_channel_is_selected(folder):
    selection = Posterior.load(folder / "selection")
    chosen = selection.median_masks()["patch_embed"].view(2, 4)
    assert selection.model.temperature == 1
    assert chosen[0].any()
    assert not chosen[1].any()


def test_the_folder_holds_the_selection(folder, capsys):
    assert (folder / "features.png").exists()
    selection = Posterior.load(folder / "selection")
    assert set(selection.inclusion_probabilities()) == {"patch_embed"}
    again = evaluate(folder)
    assert again.selection is not None
    assert json.loads((folder / "metrics.json").read_text())["ising"]["nll"] == pytest.approx(
        again.scores["ising"]["nll"]
    )
    show_run(again)
    said = capsys.readouterr().out
    assert "Input features selected: " in said
    assert "in channel 1" in said
    assert "Probabilities: of what is selected" in said
    assert "The network predicts from" in said
    page = report(folder, draws=3, progress=False).read_text()
    assert "Which inputs matter" in page
    assert (folder / "figures" / "features.png").exists()
    assert page.count("Probabilities: of what is selected") == 1


def test_what_is_held_is_what_was_selected(folder):
    config, selection = config_of(), Posterior.load(folder / "selection")
    for structured in (True, False):
        prior = config.prior.model_copy(update={"structured": structured})
        guide = build(config.model_copy(update={"prior": prior}), selection)
        held = guide.inclusion_probabilities()["patch_embed"]
        assert torch.allclose(held, selection.inclusion_probabilities()["patch_embed"], atol=1e-3)
        assert guide.mask_shapes["encoder.up"] == ((2, 32, 1) if structured else (2, 32, 16))


def test_a_selection_of_nothing_is_not_held(everything, tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    noise = replace(everything, images=torch.rand(400, 2, 4, 4, generator=generator))
    config = config_of(select=True)
    quick = config.fit.model_copy(update={"steps": 300})
    finished = run(config.model_copy(update={"fit": quick}), tmp_path / "run", noise, compare=False, progress=False)
    assert finished.selection is not None
    assert not finished.selection.posterior.median_masks()["patch_embed"].any()
    assert not finished.result.posterior.guide.held
    show_run(finished)
    said = capsys.readouterr().out
    assert "Input features selected: 0 of 8." in said
    assert "No feature has the evidence to be selected" in said


def test_a_study_refuses_a_selection(everything):
    config = config_of(select=True)
    with pytest.raises(InputError, match="select=True: a study"):
        next(outcomes(config, Method(name="ising"), load(config, everything)))


def test_only_pixels_can_be_selected():
    network = {"image_size": 8, "patch_size": 4, "stem": "convolutions"}
    with pytest.raises(InputError, match="select=True with stem='convolutions'"):
        RunConfig(network=network, select=True)
