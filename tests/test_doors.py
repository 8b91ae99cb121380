"""What is put in: each argument is checked where it enters, and the message names it and the fix."""

import io
import pickle

import numpy as np
import pyro
import pytest
import torch

from pyro_isingvit import (
    FitConfig,
    Images,
    InputError,
    IsingSpikeSlab,
    IsingViT,
    Posterior,
    ViT,
    fit,
    from_dataset,
    split,
)
from pyro_isingvit.diagnostics import metrics
from pyro_isingvit.diagnostics.calibration import reliability_table
from pyro_isingvit.guides import ScoreFunction
from tests.conftest import QUICK, TINY, pair, quick_fit

PIXELS, LABELS = torch.rand(6, 1, 4, 4), torch.arange(6) % 3


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS.numpy(), r"images=ndarray: give a tensor .*torch\.from_numpy"),
        (PIXELS > 0.5, r"type torch\.bool: .*\.float\(\) booleans"),
        ((255 * PIXELS).long(), r"type torch\.int64: .*torch\.uint8"),
        (255 * PIXELS, r"images within \[.*\]: rescale"),
        (PIXELS * float("nan"), r"images\[0\] holds NaN or infinity: remove or repair 6 image"),
        (PIXELS[:0], r"there is no pixel"),
        (PIXELS[:, 0], r"need \(n, channels, height, width\)"),
        (Images(PIXELS, LABELS, 3), "images=Images: give a tensor"),
    ],
)
@pytest.mark.parametrize("call", ["predict", "predict_plug_in", "Images"])
def test_images_have_one_door(images, message, call):
    posterior = Posterior.of(pair()[1])
    with pytest.raises(InputError, match=message):
        Images(images, LABELS, 3) if call == "Images" else getattr(posterior, call)(images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_any_precision_are_stored_as_float32(dtype):
    images = Images(PIXELS.to(dtype), LABELS, 3)
    assert images.images.dtype == torch.float32
    assert "6 of 1x4x4" in images.fingerprint
    assert images.resized(2).shape == (1, 2, 2)
    posterior = Posterior.of(pair()[1])
    assert torch.equal(posterior.predict(PIXELS.to(dtype), 2).probs, posterior.predict(images.images, 2).probs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Images(PIXELS, LABELS.tolist(), 3), "labels=list: give a tensor of integers"),
        (lambda: Images(PIXELS, LABELS, 10**9), r"classes=1000000000: give a positive integer, at most 1,000,000"),
        (lambda: Images(PIXELS, LABELS, float("nan")), "classes=nan: give a positive integer"),
        (lambda: from_dataset([(PIXELS[0], 0, "id")]), r"dataset\[0\]=tuple: give pairs"),
        (lambda: split(Images(PIXELS, LABELS, 3), 2.0), r"train=2\.0: give a number of images, as an integer"),
        (lambda: split(Images(PIXELS, LABELS, 3), 2, True), "test=True: give a number"),
        (lambda: split(Images(PIXELS[:1], LABELS[:1], 3), 1), "there are only 1 images; give more images"),
        (lambda: metrics(torch.rand(0, 3), torch.zeros(0, dtype=torch.long)), "labels: there is none"),
    ],
)
def test_other_doors(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_fit_switches_gradients_on(stripes):
    with torch.no_grad():
        assert quick_fit(stripes, steps=5).posterior.predict(stripes.images, 2).probs.isfinite().all()
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_a_fit_in_double_precision(stripes, kind):
    pixels = (stripes.images * 255).byte() if kind == torch.uint8 else stripes.images
    torch.set_default_dtype(torch.float64)
    try:
        result = quick_fit(Images(pixels, stripes.labels, 3), steps=5)
        assert result.posterior.predict(pixels, 2).probs.isfinite().all()
    finally:
        torch.set_default_dtype(torch.float32)


def test_model_and_guide_can_be_pickled_after_svi(stripes):
    model, guide = pair()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.TraceGraph_ELBO())
    svi.step(stripes.images, stripes.labels)
    again = pickle.loads(pickle.dumps(guide))
    torch.save(model, io.BytesIO())
    for name, value in guide.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    other = pyro.infer.SVI(again.model, again, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.TraceGraph_ELBO())
    other.step(stripes.images, stripes.labels)
    assert not torch.equal(again.loc["encoder_up"], guide.loc["encoder_up"])


def test_a_confidence_of_one_is_in_the_last_bin():
    probs, labels = torch.tensor([[0.95, 0.05], [1.0, 0.0]]), torch.tensor([0, 1])
    found, table = metrics(probs, labels), reliability_table(probs, labels)
    gaps = (table.confidence - table.accuracy).abs()
    assert found["ece"] == pytest.approx(np.average(gaps, weights=table.images), abs=1e-6)
    assert found["mce"] == pytest.approx(gaps.max(), abs=1e-6)


@pytest.mark.parametrize("change", [{"depth": 1}, {"dim": 1, "heads": 1}])
@pytest.mark.parametrize("baseline", ["decaying_average", "neural"])
def test_baselines_where_a_dimension_has_size_one(stripes, change, baseline):
    network = ViT(TINY.model_copy(update=change))
    guide = ScoreFunction(IsingViT(network, IsingSpikeSlab(network.weight_sites())), baseline)
    fit(guide, stripes, config=FitConfig(**QUICK | {"steps": 4}), progress=False)
    assert any(bool(offset.any()) for offset in guide.offset.values())
