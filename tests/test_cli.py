"""The command line from end to end on small runs, and its refusals."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_isingvit import FitResult, InputError
from pyro_isingvit.experiments.reading import evaluate
from pyro_isingvit.files import sealed
from tests.conftest import QUICK_RUN
from tests.data.test_data import write_cifar100


def test_a_run_folder_holds_everything(isingvit, tmp_path):
    code, out, _ = isingvit("fit", *QUICK_RUN, "--seed", 3)
    assert code == 0
    for word in ("ising", "median network", "deterministic", "accuracy", "ECE", "kept"):
        assert word in out
    assert "…" not in out
    folder = tmp_path / "runs" / "digits"
    assert {path.name for path in folder.iterdir()} == {
        "deterministic",
        "fit.json",
        "history.csv",
        "inclusion.png",
        "metrics.json",
        "posterior.json",
        "posterior.safetensors",
        "run.json",
        "training.png",
        "trials.csv",
        "trials.png",
    }
    facts = json.loads((folder / "run.json").read_text())
    assert facts["seed"] == facts["config"]["fit"]["seed"] == 3
    assert facts["versions"].keys() >= {"python", "torch", "pyro-ppl"}
    for picture in ("inclusion.png", "training.png", "trials.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_a_mixture_from_end_to_end(isingvit, tmp_path):
    """Beside an ensemble of as many networks, of which the deterministic network is the first; report and pruning."""
    options = *QUICK_RUN, "--members", 2, "--temperature", 1e-3, "--out"
    code, out, _ = isingvit("fit", *options, "run")
    assert code == 0
    assert "…" not in out
    said = " ".join(out.split())
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(scores) == ["ising", "median network", "deterministic", "ensemble"]
    for words in (
        f"ising, 2 members {scores['ising']['accuracy']:.2%}",
        f"their medians {scores['median network']['accuracy']:.2%}",
        f"ensemble of 2 {scores['ensemble']['accuracy']:.2%}",
        f"the 2 members keep {scores['ising']['density']:.0%} of the weights of one network; the ensemble has 200%",
        "from 50 test images",
    ):
        assert words in said
    again = evaluate("run")
    assert again.scores == scores
    assert len(again.result.posterior.guides) == len(again.ensemble.posterior.guides) == 2
    isingvit("fit", *options, "one", "--members", 1)
    alone, first = evaluate("one").deterministic.posterior, again.deterministic.posterior
    assert torch.equal(alone.predict_plug_in(again.data.test.images), first.predict_plug_in(again.data.test.images))
    assert alone.logit_scale == first.logit_scale
    assert isingvit("report", "run")[0] == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "How the members of the mixture agree" in page
    assert isingvit("prune", "run", "--out", "small")[0] == 0
    assert json.loads((tmp_path / "small" / "config.json").read_text())["members"] == 2


def test_a_run_whose_images_have_changed_is_not_evaluated(isingvit, tmp_path):
    """Parted anew, images that it was trained on would be among those it is tested on."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (61, 8, 8), np.uint8), np.arange(61) % 3
    np.savez(tmp_path / "mine.npz", images=images[:60], labels=labels[:60])
    fit = "fit", "--dataset", "mine.npz", "--train", 20, "--test", 20, "--steps", 5, "--dim", 8, "--temperature", 1e-3
    assert isingvit(*fit, "--no-compare", "--out", "run")[0] == 0
    (tmp_path / "moved").mkdir()
    (tmp_path / "mine.npz").rename(tmp_path / "moved" / "mine.npz")
    assert isingvit("evaluate", "run", "--data-root", "moved")[0] == 0
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    code, _, err = isingvit("evaluate", "run")
    assert code == 2
    assert "was fitted on other images (60 of 1x8x8, " in err
    assert "give the data_root of those, or fit again" in err
    assert isingvit("evaluate", "run", "--data-root", "moved")[0] == 0


@pytest.mark.parametrize("stem", ["patches", "convolutions"])
def test_evaluate_repeats_the_figures_of_the_run(isingvit, tmp_path, stem):
    isingvit("fit", *QUICK_RUN, "--no-compare", "--temperature", 1e-3, "--stem", stem, "--out", "mine")
    written = json.loads((tmp_path / "mine" / "metrics.json").read_text())
    assert written.keys() == {"ising", "median network"}
    code, out, _ = isingvit("evaluate", "mine")
    assert code == 0
    assert f"{written['ising']['accuracy']:.2%}" in out
    assert evaluate("mine").scores == written
    config = evaluate("mine").config
    assert config.network.stem == stem
    assert FitResult.load("mine").posterior.model.temperature == 1e-3


def test_report_goes_into_the_run_folder(isingvit, tmp_path):
    isingvit("fit", *QUICK_RUN, "--no-compare", "--temperature", 1e-3, "--out", "mine")
    code, out, _ = isingvit("report", "mine", "--draws", 2)
    assert code == 0
    assert out.endswith("Report: mine/report.html\n")
    assert "</html>" in (tmp_path / "mine" / "report.html").read_text()
    code, _, err = isingvit("report", "nowhere")
    assert code == 2
    assert err == "isingvit: run='nowhere': no run.json there; give a folder that 'isingvit fit' made\n"
    code, _, err = isingvit("report", "mine", "--draws", 0)
    assert code == 2
    assert "draws=0: must be an integer" in err


def test_an_existing_run_is_kept_unless_told_otherwise(isingvit, tmp_path):
    isingvit("fit", *QUICK_RUN, "--no-compare", "--temperature", 1e-3)
    before = (tmp_path / "runs" / "digits" / "fit.json").read_text()
    code, _, err = isingvit("fit", *QUICK_RUN, "--no-compare", "--temperature", 1e-2)
    assert code == 2
    assert err == "isingvit: --out='runs/digits' exists: give another folder or --overwrite\n"
    assert (tmp_path / "runs" / "digits" / "fit.json").read_text() == before
    code, _, _ = isingvit("fit", *QUICK_RUN, "--no-compare", "--temperature", 1e-2, "--overwrite")
    assert code == 0
    assert json.loads((tmp_path / "runs" / "digits" / "fit.json").read_text())["config"]["temperature"] == 1e-2


def test_what_is_no_run_is_never_overwritten(isingvit, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("all of it")
    code, _, err = isingvit("fit", *QUICK_RUN, "--out", "precious", "--overwrite")
    assert code == 2
    assert "no run of this version wrote 'thesis.txt', so it is not overwritten" in err
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "all of it"


def test_own_images_from_a_file(isingvit, tmp_path):
    labels = np.arange(120) % 3
    images = np.random.default_rng(0).random((120, 12, 12), dtype=np.float32) / 2
    images[np.arange(120), labels] += 0.5
    np.savez(tmp_path / "stripes.npz", images=images, labels=labels)
    code, _, _ = isingvit("fit", "--dataset", "stripes.npz", "--steps", 40, "--no-compare", "--augment", "none")
    assert code == 0
    config = json.loads((tmp_path / "runs" / "stripes" / "run.json").read_text())["config"]
    assert config["network"]["image_size"] == [12, 12]
    assert config["network"]["classes"] == 3


def test_settings_from_a_file(isingvit, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "train: 90\ntest: 40\nmembers: 1\nfit: {steps: 30, temperature: 0.01, seed: 5}\nprior: {structured: true}\n"
    )
    code, _, err = isingvit("fit", "--config", "mine.yaml", "--steps", 20, "--no-compare", "--out", "first")
    assert (code, err) == (0, "")
    config = evaluate(tmp_path / "first").config
    assert (config.train, config.test, config.prior.structured) == (90, 40, True)
    assert (config.fit.steps, config.fit.temperature, config.fit.seed) == (20, 0.01, 5)
    assert config.network.mlp_ratio == 8  # the recipe's
    again = ("--config", "first/run.json", "--no-compare", "--out", "second")
    assert isingvit("fit", *again)[0] == 0
    assert evaluate(tmp_path / "second").config == config
    first, second = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("first", "second"))
    for method, scores in first.items():
        assert {k: v for k, v in scores.items() if k != "seconds"} == {
            k: v for k, v in second[method].items() if k != "seconds"
        }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "--config='own.yaml': 'stepz' is no setting; there are"),
        ("- 3", "--config='own.yaml': settings have names"),
        ("fit: {stepz: 3}", "stepz"),
        ("train: many", "train='many'"),
        ("a: [", "--config='own.yaml': not YAML that can be read"),
    ],
)
def test_settings_that_are_none_are_refused(isingvit, tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text)
    code, out, err = isingvit("fit", "--config", "own.yaml")
    assert code == 2
    assert message in err
    assert not out
    assert not (tmp_path / "runs").exists()
    assert "no such file" in isingvit("fit", "--config", "none.yaml")[2]
    assert "--config with --resume" in isingvit("fit", "--config", "own.yaml", "--resume", "x")[2]


def test_a_folder_of_images_from_end_to_end(isingvit, tmp_path):
    rng = np.random.default_rng(0)
    for name, colour in (("blue", 2), ("green", 1), ("red", 0)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 120, (14, 12, 3), dtype=np.uint8)
            pixels[..., colour] += 120
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    arguments = (
        "--dataset",
        "folder",
        "--data-root",
        "pictures",
        "--image-size",
        8,
        "--balanced",
        "--train",
        60,
        "--validation",
        20,
    )
    code, _, err = isingvit("fit", *arguments, "--steps", 300, "--learning-rate", 0.005, "--precision", "bfloat16")
    assert (code, err) == (0, "")
    scores = json.loads((tmp_path / "runs" / "folder" / "metrics.json").read_text())
    assert scores["ising"]["accuracy"] > 0.9
    config = json.loads((tmp_path / "runs" / "folder" / "run.json").read_text())["config"]
    assert (config["network"]["channels"], config["network"]["image_size"], config["balanced"]) == (3, [8, 8], True)
    assert evaluate(tmp_path / "runs" / "folder").scores["ising"] == scores["ising"]


@pytest.mark.filterwarnings("ignore:.* classes .* have no training image")
def test_an_official_test_set_and_cifar100(isingvit, tmp_path, monkeypatch):
    write_cifar100(tmp_path / "root", monkeypatch)
    small = ("--train", 100, "--validation", 50, "--steps", 20, "--dim", 8, "--heads", 2, "--no-compare")
    arguments = ("--dataset", "cifar-100", "--data-root", "root", "--test", "official", *small)
    code, out, _ = isingvit("fit", *arguments, "--augment", "none")
    assert code == 0
    assert "cifar-100: 100 training, 50 validation and 200 test images" in out
    config = evaluate(tmp_path / "runs" / "cifar-100").config
    assert (config.test, config.network.classes) == ("official", 100)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "root")
    write_cifar100(tmp_path / "root", monkeypatch, inverted=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"cifar-100.: had other test images \(200 of 3x32x32, \w+, not 200 of"):
        evaluate(tmp_path / "runs" / "cifar-100")


@pytest.mark.parametrize(
    ("command", "default"), [("fit", "runs/DATASET"), ("prune", "hidden and head_dim"), ("study", "studies/NAME")]
)
def test_help_names_defaults(isingvit, monkeypatch, command, default):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = isingvit(command, "--help")
    assert code == 0
    assert default in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "mnits"], "dataset='mnits': unknown; choose one of"),
        (["--dataset", "mnist"], "data_root=None: MNIST is read from files"),
        (["--dataset", "mnist", "--data-root", "nowhere"], "data_root='nowhere': no MNIST there"),
        (["--dataset", "cifar-100", "--data-root", "nowhere"], "data_root='nowhere': no CIFAR100 there"),
        (["--dataset", "none.npz"], "dataset='none.npz': no such file"),
        (["--dataset", "text.npz"], "dataset='text.npz': not an .npz file"),
        (["--epochs", "0"], "--epochs=0"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--patch-size", "3"], "patch_size=3 does not divide image_size=8; choose one of [1, 2, 4, 8]"),
        (["--target-density", "0"], "target_density=0"),
        (["--target-density", "2"], "target_density=2"),
        (["--train", "5000"], "train=5000"),
        (["--steps", "9", "--epochs", "9"], "--epochs=9 and --steps=9: give one"),
        (["--device", "tpu"], "device='tpu': not available here"),
        (["--temperature", "hot"], "temperature='hot': give a positive number, 'auto' or 'sparsest'"),
        (["--temperature", "-1"], "temperature='-1': give a positive number, 'auto' or 'sparsest'"),
        (["--seed", "20000000000000"], "seed=20000000000000: Input should be less than 4294967296"),
        (["--out", "text.npz/run"], "text.npz/run': no folder can be made there (Not a directory)"),
        (["--dataset", "label.npz"], "labels[2]=7: must lie within [0, 3)"),
        (["--test", "some"], "test='some'"),
        (["--test", "official"], "test='official': digits has no test set of its own"),
        (["--image-size", "0"], "image_size=0"),
        (["--augment", "much"], "augment='much': choose one of"),
        (["--precision", "float8"], "precision='float8'"),
        (["--dataset", "folder", "--data-root", "nowhere"], "data_root='nowhere': does not exist; give a folder"),
        (["--dataset", "nan.npz"], "images[1] holds NaN or infinity: remove or repair 1 image(s)"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(isingvit, tmp_path, arguments, message):
    images = np.zeros((4, 8, 8), np.float32)
    np.savez(tmp_path / "label.npz", images=images, labels=np.array([0, 1, 7, 2]), classes=3)
    images[1, 2, 3] = np.nan
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "nan.npz", images=images, labels=np.arange(4))
    code, out, err = isingvit("fit", *arguments)
    assert code == 2
    assert err.startswith("isingvit: ")
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "runs").exists()


FACTS = {"config": {"network": {}}, "seed": 0, "images": "", "classes": [], "versions": {}, "files": {}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no run.json there"),
        ("{", "not JSON"),
        ('{"config": {"network": {"dim": 0}}}', "of an earlier version"),
        (json.dumps(sealed({"config": {"network": {"dim": 0}}})), "seed: Field required|seed={"),
        (json.dumps(sealed(FACTS | {"config": {"network": {"dim": 0}}})), "dim=0: Input should be greater than"),
        (json.dumps(sealed(FACTS | {"seed": 3})), "seed=3, but its fit.seed=0"),
        (json.dumps(sealed(FACTS | {"files": {"gone.csv": ""}})), "gone.csv: missing; restore it, or fit again"),
    ],
)
def test_evaluate_refuses_what_is_no_run(isingvit, tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    code, _, err = isingvit("evaluate", tmp_path)
    assert code == 2
    assert re.search(message, err)
    assert err.count("\n") == 1


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(isingvit):
    code, _, err = isingvit("fit", *QUICK_RUN, "--steps", 200, "--temperature", 1e3, "--no-compare")
    assert code == 0
    (line,) = [line for line in err.splitlines() if "temperature=1000" in line]
    assert line.startswith("isingvit: warning: temperature=1000: the median network keeps no weight")
