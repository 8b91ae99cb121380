"""Half precision: the scale of the loss that float16 needs."""

import pytest
import torch
from torch.nn import CosineSimilarity

from pyro_isingvit import FitConfig, InputError, TraceGraph_ELBO, fit
from pyro_isingvit.draws import seeded
from pyro_isingvit.inference.precision import autocast_of, backward_of
from pyro_isingvit.inference.traced import eager_step
from tests.conftest import QUICK, pair


def gradients(precision, images, labels, scaled=True):
    """Gradients of parameters, and of the weights that the guide sees, of a step at a cold temperature."""
    model, guide = pair()
    model.num_data, model.temperature = 1000, 1e-5
    config, plain = FitConfig(precision=precision), torch.Tensor.backward
    loss, backward = TraceGraph_ELBO()(model, guide), backward_of(config, guide, plain) if scaled else plain
    with seeded(torch.device("cpu"), 3):
        eager_step(loss, autocast_of(config, torch.device("cpu")), images, labels, backward)
    named = {name: p.grad for name, p in loss.named_parameters() if p.grad is not None}
    return named | {f"{name} as it enters": w.grad for name, w in guide.seen.weights.items()}


def test_gradients_in_float16_are_those_in_float32_to_its_rounding(stripes):
    """The loss is 10 ** 8 times that of an image, so that its own gradients exceed the range of float16."""
    images, labels = stripes.images[:20], stripes.labels[:20]
    full, half = gradients("float32", images, labels), gradients("float16", images, labels)
    assert full.keys() == half.keys()
    for name, gradient in full.items():
        if name.endswith("key_bias"):  # zero but for rounding, as all keys of a token change its looks alike
            continue
        cosine = CosineSimilarity(0)(gradient.flatten(), half[name].flatten())
        assert float(cosine) > 0.999, name
        assert float(half[name].norm() / gradient.norm()) == pytest.approx(1, abs=0.01), name
    without = gradients("float16", images, labels, scaled=False)
    assert not all(bool(gradient.isfinite().all()) for gradient in without.values())


def test_estimators_that_read_the_backward_pass_are_refused(stripes):
    guide = pair(estimator="levenberg_marquardt")[1]
    with pytest.raises(InputError, match=r"precision='float16': .* use estimator='squared_gradient', or precision="):
        fit(guide, stripes, config=FitConfig(**QUICK, precision="float16"), progress=False)
