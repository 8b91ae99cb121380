"""Image files are predicted as training reads them, and without the data set."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_isingvit import InputError, Posterior, read
from pyro_isingvit.experiments import predict, predict_files, run
from pyro_isingvit.experiments.predict import FilePredictor
from pyro_isingvit.experiments.reading import evaluate
from tests.conftest import small_config

NAMES = ("cat", "dog", "emu")

DENSE = {"steps": 40, "learning_rate": 2e-2, "target_density": 0.9}
"""Settings of a fit whose predictions depend on the pixels."""


def pictures(root):
    """Eight images of each class, some brighter: of other sizes and modes, transparent, turned, and of 16 bits."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for i in range(8):
            colours = rng.integers(0, 100, (5 + i, 7 - k, 4), dtype=np.uint8) + np.uint8(70 * k)
            image = Image.fromarray(colours)
            if i == 0:
                image.convert("RGB").quantize(4).save(root / name / "palette.png", transparency=1)
            elif i == 1:
                tags = image.getexif()
                tags[0x0112] = 6
                image.convert("RGB").save(root / name / "turned.jpg", exif=tags)
            elif i == 2:
                Image.fromarray(colours[..., 0].astype(np.uint16) * 256 + 7).save(root / name / "deep.png")
            elif i == 3:
                image.convert("LA").save(root / name / "grey.png")
            else:
                image.save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory):
    """The images of a folder as they were read, and a run on them whose data set is gone; the files are elsewhere."""
    top = tmp_path_factory.mktemp("pictures")
    root = pictures(top / "root")
    config = small_config("folder", **DENSE)
    changes = {"data_root": str(root), "image_size": 4, "background": 40, "train": 12, "validation": 6, "test": 6}
    changes["network"] = config.network.model_copy(update={"channels": 3})
    run(config.model_copy(update=changes), top / "run", compare=False, progress=False)
    everything = read("folder", root, image_size=4, background=40)
    return top / "run", shutil.move(root, top / "moved"), everything


@pytest.fixture(scope="module")
def of_greys(data, tmp_path_factory):
    """A run on grey images of 4 x 4 pixels."""
    folder = tmp_path_factory.mktemp("greys") / "run"
    run(small_config(data, **DENSE), folder, compare=False, progress=False)
    return folder


def tensors(rows):
    return torch.tensor([list(row.probs.values()) for row in rows])


def test_files_are_read_as_in_training(of_pictures):
    folder, root, everything = of_pictures
    rows = list(predict_files(folder, [root], device="cpu"))
    assert [row.path for row in rows] == sorted(root.glob("*/*"))
    assert {tuple(row.probs) for row in rows} == {NAMES}
    expected = Posterior.load(folder).predict(everything.images, 3)
    assert len(expected.probs.unique(dim=0)) == len(rows)  # they depend on the pixels
    assert torch.equal(tensors(rows), expected.probs)
    assert [row.label for row in rows] == expected.classes
    for i, row in enumerate(rows):
        label = NAMES.index(row.label)
        assert (row.lower, row.upper) == (float(expected.lower[i, label]), float(expected.upper[i, label]))
        assert row.probability == max(row.probs.values())
        assert row.entropy == pytest.approx(-sum(p * math.log(p) for p in row.probs.values()), rel=1e-5)
        assert row.mutual_information == float(expected.mutual_information[i])
        assert not row.error


def test_predictions_repeat_the_scores_of_the_run(of_greys, tmp_path):
    """Its test images, which were in an archive, as files; their NLL and accuracy are those in metrics.json."""
    again = evaluate(of_greys)
    test, files = again.data.test, []
    for i, image in enumerate(test.images):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(image[0].numpy()).save(files[-1])
    rows = list(predict_files(of_greys, files, device="cpu"))
    nll = [-math.log(row.probs[str(label)]) for row, label in zip(rows, test.labels.tolist(), strict=True)]
    assert sum(nll) / len(nll) == pytest.approx(again.scores["ising"]["nll"], rel=1e-5)
    right = [row.label == str(label) for row, label in zip(rows, test.labels.tolist(), strict=True)]
    assert sum(right) / len(right) == pytest.approx(again.scores["ising"]["accuracy"])


def test_colours_and_sizes_fit_a_run_of_small_grey_images(of_greys, tmp_path):
    """As Pillow makes them grey, and resized as image folders are."""
    rng = np.random.default_rng(1)
    colours = Image.fromarray(rng.integers(0, 256, (9, 6, 3), dtype=np.uint8))
    (tmp_path / "folder" / "a").mkdir(parents=True)
    colours.save(tmp_path / "colours.png")
    colours.convert("L").save(tmp_path / "folder" / "a" / "grey.png")
    (row,) = predict_files(of_greys, tmp_path / "colours.png", draws=5, device="cpu")
    small = read("folder", tmp_path / "folder", image_size=4).images
    posterior = Posterior.load(of_greys)
    first, turned = (posterior.predict(each, 5).probs for each in (small, small.flip(-1)))
    assert not torch.equal(first, turned)
    assert torch.equal(tensors([row]), first)


def test_damaged_files_are_named_in_their_place(of_pictures, tmp_path):
    folder, root, _ = of_pictures
    good = root / "cat" / "4.png"
    (tmp_path / "broken.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "text.png").write_text("no image")
    rows = list(predict_files(folder, [tmp_path / "broken.png", good, tmp_path / "text.png"], device="cpu"))
    assert [bool(row.error) for row in rows] == [True, False, True]
    assert "text.png': not an image, or damaged" in rows[2].error
    assert (rows[0].label, rows[0].probs) == ("", {})
    assert math.isnan(rows[0].probability)
    (alone,) = predict_files(folder, [good], device="cpu")
    assert rows[1].probs == pytest.approx(alone.probs, rel=1e-6)
    assert all(row.error for row in predict_files(folder, [tmp_path / "text.png"], device="cpu"))


def test_files_are_read_a_part_ahead_and_no_further(of_pictures, monkeypatch):
    folder, root, _ = of_pictures
    together = list(predict_files(folder, root, device="cpu"))
    opened, original = [], predict.read_sized
    monkeypatch.setattr(predict, "read_sized", lambda path, *rest: opened.append(path) or original(path, *rest))
    monkeypatch.setattr(predict, "MOST_FILES", 5)
    rows = predict_files(folder, root, device="cpu")
    first = next(rows)
    assert len(opened) <= 10
    apart = [first, *rows]
    assert len(opened) == len(set(opened)) == len(apart) == 24
    assert [row.path for row in apart] == [row.path for row in together]
    assert tensors(apart) == pytest.approx(tensors(together), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws=0: must be an integer from 1"),
        ({"interval": 1.0}, r"interval=1\.0: must lie strictly between 0 and 1"),
        ({"device": "tpu"}, "device='tpu': not available here"),
    ],
)
def test_impossible_values_are_refused_before_anything_is_read(of_greys, options, message):
    with pytest.raises(InputError, match=message):
        FilePredictor(of_greys, **options)


def test_images_of_other_channels_are_no_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 2, 4, 4), np.uint8)
    np.savez(tmp_path / "two.npz", images=images, labels=np.arange(60) % 3)
    config = small_config(tmp_path / "two.npz")
    network = config.network.model_copy(update={"channels": 2})
    run(config.model_copy(update={"network": network}), tmp_path / "run", compare=False, progress=False)
    with pytest.raises(InputError, match="its network takes images of 2 channels, and image files have 1 or 3"):
        FilePredictor(tmp_path / "run")


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "predict.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert "steps=300" in code
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("steps=300", "steps=20"), "predict.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("pictures/bright/") for line in lines) == 40
