"""Bad arguments in Python."""

import math

import numpy as np
import pytest
import torch

import pyro_isingvit as iv
from pyro_isingvit import priors
from pyro_isingvit.inference.search import TemperatureSearch
from tests.conftest import TINY, pair

NAN, INF = math.nan, math.inf


def sites():
    return iv.ViT(TINY).weight_sites()


def model():
    return pair()[0]


def images(pixels=None, labels=None, classes=3, **more):
    pixels = torch.rand(6, 1, 4, 4) if pixels is None else pixels
    labels = torch.arange(len(pixels)) % 3 if labels is None else labels
    return iv.Images(pixels, labels, classes, **more)


def posterior():
    return iv.Posterior.of(pair()[1])


def vit(**settings):
    return lambda: iv.ViTConfig(**settings)


def fitting(**settings):
    return lambda: iv.FitConfig(**settings)


def ising(**settings):
    return lambda: iv.IsingSpikeSlab(sites(), **settings)


def guided(**settings):
    return lambda: iv.LikelihoodGuided(model(), **settings)


def predict(pixels=None, **settings):
    return lambda: posterior().predict(torch.rand(2, 1, 4, 4) if pixels is None else pixels, **settings)


def parts():
    network = iv.ViT(TINY)
    return network, iv.IsingSpikeSlab(network.weight_sites())


def cold_model():
    cold = model()
    cold.temperature = 0
    cold(torch.rand(2, 1, 4, 4))


def fit_with(likelihood, labels=None):
    network = iv.ViT(TINY if labels is None else TINY.model_copy(update={"classes": 1}))
    ising = iv.IsingViT(network, iv.IsingSpikeSlab(network.weight_sites()), likelihood=likelihood)
    given = images(labels=labels, classes=3 if labels is None else 1)
    iv.fit(iv.LikelihoodGuided(ising), given, config=iv.FitConfig(steps=2, temperature=1.0, device="cpu"))


CASES = {
    "no image size": (vit(image_size=0), "image_size.*0: .* greater than or equal to 1"),
    "size of three": (vit(image_size=(8, 8, 8)), "image_size"),
    "size as text": (vit(image_size="big"), "image_size"),
    "huge image": (vit(image_size=10**9), "image_size"),
    "patch does not fit": (vit(image_size=8, patch_size=3), "patch_size=3 does not divide image_size=8"),
    "no dim": (vit(dim=0), "dim=0"),
    "huge dim": (vit(dim=10**12), "dim=1000000000000"),
    "huge depth": (vit(depth=10**12), "depth=1000000000000"),
    "too many weights": (vit(dim=2**15, depth=1000), "weights are more than"),
    "heads do not fit": (vit(dim=32, heads=5), "heads=5 does not divide dim=32"),
    "no depth": (vit(depth=0), "depth=0"),
    "mlp of nothing": (vit(mlp_ratio=0), "mlp_ratio=0"),
    "mlp of nan": (vit(mlp_ratio=NAN), "mlp_ratio=nan"),
    "no class": (vit(classes=0), "classes=0"),
    "classes of a float": (vit(classes=2.5), "classes=2.5"),
    "no channel": (vit(channels=0), "channels=0"),
    "all dropped": (vit(dropout=1), "dropout=1"),
    "no spread": (vit(pixel_std=0), "pixel_std=0"),
    "unknown stem": (vit(stem="resnet"), "stem='resnet'"),
    "unknown pooling": (vit(pooling="max"), "pooling='max'"),
    "unknown name": (vit(width=3), "width=3"),
    "no steps": (fitting(steps=0), "steps=0"),
    "endless steps": (fitting(steps=10**12), "steps=1000000000000"),
    "steps of nan": (fitting(steps=NAN), "steps=nan"),
    "no batch": (fitting(batch_size=0), "batch_size=0"),
    "no rate": (fitting(learning_rate=0), "learning_rate=0"),
    "rate of nan": (fitting(learning_rate=NAN), "learning_rate=nan"),
    "rate of infinity": (fitting(learning_rate=INF), "learning_rate=inf"),
    "no warmup": (fitting(warmup=0), "warmup=0"),
    "negative pilot": (fitting(pilot=-0.1), "pilot=-0.1"),
    "phases overlap": (fitting(pilot=0.7, fine_tune=0.7), "pilot=0.7 and fine_tune=0.7 are more than 1 together"),
    "cold": (fitting(temperature=0), "temperature=0: give a positive number, 'auto' or 'sparsest'"),
    "hot": (fitting(temperature="hot"), "temperature='hot'"),
    "temperature of nan": (fitting(temperature=NAN), "temperature=nan"),
    "all kept": (fitting(target_density=1), "target_density=1"),
    "no clip": (fitting(clip=0), "clip=0"),
    "unknown augmentation": (fitting(augment="mirror"), "augment='mirror': choose one of"),
    "negative seed": (fitting(seed=-1), "seed=-1"),
    "huge seed": (fitting(seed=2**40), "seed=1099511627776"),
    "unknown precision": (fitting(precision="float64"), "precision='float64'"),
    "unknown device": (lambda: iv.FitConfig(device="abacus").torch_device(), "device='abacus': not available here"),
    "no factors": (lambda: TemperatureSearch(factors=()), "factors="),
    "falling factors": (lambda: TemperatureSearch(factors=(2, 1)), "factors=.*must rise"),
    "no share": (lambda: TemperatureSearch(share=0), "share=0"),
    "no draws of a search": (lambda: TemperatureSearch(draws=0), "draws=0"),
    "slab of no width": (ising(slab_scale=0), "slab_scale=0: must be a positive number"),
    "slab of nan": (ising(slab_scale=NAN), "slab_scale=nan"),
    "slab of infinity": (ising(slab_scale=INF), "slab_scale=inf"),
    "slab of text": (ising(slab_scale="wide"), "slab_scale='wide'"),
    "spike too wide": (ising(spike_scale=2.0), "spike_scale=2.0: must lie within"),
    "nothing included": (ising(inclusion=0), "inclusion=0: a prior probability lies strictly between 0 and 1"),
    "all included": (ising(inclusion=1), "inclusion=1"),
    "inclusion of nan": (ising(inclusion=NAN), "inclusion=nan"),
    "inclusion nowhere": (ising(inclusion={"nowhere": 0.2}), "no site .*nowhere"),
    "coupling of nan": (ising(coupling=NAN), "coupling=nan: must be finite"),
    "coupling of infinity": (ising(coupling=INF), "coupling=inf: must be finite"),
    "unknown weighting": (ising(weighting="heavy"), "weighting='heavy'"),
    "no concentration": (lambda: priors.HierarchicalSpikeSlab(sites(), concentration=0), "concentration=0"),
    "no global scale": (lambda: priors.RegularisedHorseshoe(sites(), global_scale=NAN), "global_scale=nan"),
    "scale of nothing": (guided(initial_scale=0), "initial_scale=0"),
    "scale of nan": (guided(initial_scale=NAN), "initial_scale=nan"),
    "logit of infinity": (guided(initial_logit=INF), "initial_logit=inf"),
    "rate of one": (guided(rate=1), "rate=1"),
    "never refreshed": (guided(refresh_every=0), "refresh_every=0"),
    "unknown estimator": (guided(estimator="guess"), "estimator='guess': choose one of"),
    "density of two": (guided(target_density=2), "target_density=2"),
    "mask temperature of nothing": (guided(mask_temperature=0.0), "mask_temperature=0.0: must be positive"),
    "mask temperature of nan": (guided(mask_temperature=NAN), "mask_temperature=nan"),
    "mask temperature nowhere": (guided(mask_temperature={"x": 1.0}), "no masks at"),
    "no rank": (lambda: iv.guides.LowRank(model(), rank=0), "rank=0: must be an integer from 1"),
    "rank of a half": (lambda: iv.guides.LowRank(model(), rank=1.5), "rank=1.5"),
    "no relaxation": (lambda: iv.guides.Relaxed(model(), relaxation=NAN), "relaxation=nan"),
    "no mask rate": (lambda: iv.MeanField(model(), mask_rate=-1), "mask_rate=-1"),
    "pixels of nan": (lambda: images(torch.full((3, 1, 4, 4), NAN)), "images"),
    "pixels to 255": (lambda: images(255 * torch.rand(3, 1, 4, 4)), "images"),
    "negative pixels": (lambda: images(-torch.rand(3, 1, 4, 4)), "images"),
    "pixels of yes and no": (lambda: images(torch.ones(3, 1, 4, 4, dtype=torch.bool)), "images"),
    "pixels of integers": (lambda: images(torch.ones(3, 1, 4, 4, dtype=torch.int64)), "images"),
    "two dimensions": (lambda: images(torch.rand(3, 16)), "images"),
    "a list of images": (lambda: images([1, 2, 3], torch.arange(3)), "images"),
    "labels of floats": (lambda: images(labels=torch.rand(6)), "labels"),
    "too few labels": (lambda: images(labels=torch.arange(3)), "labels"),
    "a label too high": (lambda: images(labels=torch.arange(6)), "labels"),
    "a negative label": (lambda: images(labels=torch.arange(6) % 3 - 1), "labels"),
    "labels of a billion": (lambda: images(classes=10**9), "classes=1000000000"),
    "too few names": (lambda: images(names=("a",)), "names=.*1 names for classes=3"),
    "no training image": (lambda: iv.split(images(), 0), "train=0: need at least one"),
    "too many": (lambda: iv.split(images(), 100), "train=100"),
    "test of true": (lambda: iv.split(images(), 2, True), "test=True"),
    "train of a float": (lambda: iv.split(images(), 2.0), "train=2.0"),
    "unknown data set": (lambda: iv.read("imagenet"), "dataset='imagenet': unknown; choose one of"),
    "no root": (lambda: iv.read("mnist"), "data_root=None"),
    "a root that is not there": (lambda: iv.read("mnist", "/nowhere"), "data_root='/nowhere'"),
    "no size": (lambda: iv.read("digits", image_size=0), "image_size=0"),
    "size of true": (lambda: iv.read("digits", image_size=True), "image_size=True"),
    "too white": (lambda: iv.read("folder", ".", background=256), "background=256"),
    "home of nobody": (lambda: iv.read("~nobody-at-all/x.npz"), "~nobody-at-all"),
    "no file": (lambda: iv.read("nowhere.npz"), "nowhere.npz"),
    "predict nan": (predict(torch.full((2, 1, 4, 4), NAN)), "images"),
    "predict 255": (predict(255 * torch.rand(2, 1, 4, 4)), "images"),
    "predict nothing": (predict(torch.empty(0, 1, 4, 4)), "images"),
    "predict arrays": (predict(np.zeros((2, 1, 4, 4))), "images"),
    "predict other sizes": (predict(torch.rand(2, 1, 8, 8)), "images"),
    "predict channels last": (predict(torch.rand(2, 4, 4, 1)), "images"),
    "one scale": (lambda: posterior().predict_at(1.0, torch.rand(2, 1, 4, 4)), "scales=1.0: give a sequence"),
    "prediction at nan": (
        lambda: posterior().predict_at([NAN], torch.rand(2, 1, 4, 4)),
        "scales=nan: must be a positive",
    ),
    "turned about": (lambda: posterior().predict_at([-1.0], torch.rand(2, 1, 4, 4)), "scales=-1.0"),
    "no draw": (predict(draws=0), "draws=0: must be an integer from 1"),
    "half a draw": (predict(draws=1.5), "draws=1.5"),
    "a true draw": (predict(draws=True), "draws=True"),
    "endless draws": (predict(draws=10**12), "draws=1000000000000"),
    "no interval": (predict(interval=0), "interval=0"),
    "interval of nan": (predict(interval=NAN), "interval=nan"),
    "calibrated on other classes": (lambda: posterior().calibrate(images(classes=5)), "held_out.classes=5"),
    "inclusion at nothing": (lambda: posterior().inclusion_probabilities(0.0), "temperature=0.0"),
    "inclusion at nan": (lambda: posterior().inclusion_probabilities(NAN), "temperature=nan"),
    "no guide": (lambda: iv.Posterior(()), r"guides=\(\)"),
    "loaded from nowhere": (lambda: iv.Posterior.load("nowhere"), "folder='nowhere': no posterior.json"),
    "loaded for a model": (lambda: iv.Posterior.load(".", model()), "guide=IsingNetwork"),
    "fit of a model": (lambda: iv.fit(model(), images()), "guide=IsingNetwork"),
    "fit to pairs": (lambda: iv.fit(pair()[1], [1]), "train=list"),
    "fit of settings": (lambda: iv.fit(pair()[1], images(), None, {}), "config=dict"),
    "search without images": (lambda: iv.fit(pair()[1], images()), "temperature: a search"),
    "fit to other classes": (lambda: iv.fit(pair()[1], images(classes=5), images(classes=5)), "train.classes=5"),
    "exported model": (lambda: iv.export(model(), "x"), "network=IsingNetwork: give a CompactViT"),
    "pruned by nothing": (lambda: iv.prune(posterior(), level="layer"), "level='layer'|layer"),
    "pruned to nothing": (lambda: iv.prune(posterior(), density=0.0), "density=0.0"),
    "pruned to nan": (lambda: iv.prune(posterior(), density=NAN), "density=nan"),
    "pruned to text": (lambda: iv.prune(posterior(), density="0.3"), "density='0.3': give a share"),
    "pruned at level five": (lambda: iv.prune(posterior(), level=5), "level=5: choose of"),
    "pruned at no threshold": (lambda: iv.prune(posterior(), threshold=None), "threshold=None: must lie"),
    "exported as letters": (
        lambda: iv.export(iv.prune(posterior()), "x", "torch"),
        r"formats='torch': give a seq.*'torch',",
    ),
    "calibrated on a tensor": (
        lambda: iv.diagnostics.conformal(posterior(), torch.rand(2, 1, 4, 4)),
        "calibration=Tensor",
    ),
    "half a decoy": (lambda: iv.data.digits_decoys(2.5), "decoys=2.5"),
    "no image of a member": (
        lambda: iv.fit_mixture(lambda: pair()[1], 1, images(), share=1e-6, config=iv.FitConfig(temperature=1.0)),
        "share=1e-06 of 6 images is none",
    ),
    "weights of two classes": (lambda: fit_with(iv.Classes((1, 5))), r"weights=\(1.0, 5.0\): train has 3 classes"),
    "numbers in thousands": (
        lambda: fit_with(iv.Regression(), 1000 * torch.rand(6, 1)),
        "train.labels: number 0 has mean",
    ),
    "one number for all": (lambda: fit_with(iv.Regression(), torch.ones(6, 1)), "tells no images apart"),
    "no data": (lambda: iv.IsingViT(*parts(), num_data=-3), "num_data=-3"),
    "no temperature": (cold_model, "temperature=0: must be a positive number"),
    "pruned at one": (lambda: iv.prune(posterior(), threshold=1.0), "threshold=1.0"),
    "pruned at nan": (lambda: iv.prune(posterior(), threshold=NAN), "threshold=nan"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attempt, message = CASES[name]
    with pytest.raises(iv.InputError, match=message) as caught:
        attempt()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
