"""Numbers that are not finite, put into a fit: an error that names them, and the last good state is kept."""

import math

import pytest
import torch

from pyro_isingvit import FitConfig, TrainingError, fit
from pyro_isingvit.inference.events import StepTaken
from tests.conftest import QUICK, pair

STEPS = {"pilot": (1, 5, 10), "ising": (11, 20, 32), "fine-tune": (33, 36, 40)}
"""First, middle and last step of each phase."""

CONFIG = FitConfig(**QUICK | {"steps": 40, "pilot": 0.25, "fine_tune": 0.2})


def into_gradient(guide, model, value, due, patch):
    parameter, calls = guide.loc["encoder_up"], [0]

    def poison(gradient):
        calls[0] += 1
        return torch.full_like(gradient, value) if calls[0] == due else gradient

    parameter.register_hook(poison)
    return lambda event: None


def into(tensors):
    """A listener that fills a tensor of guide or model after a step."""

    def start(guide, model, value, due, patch):
        def listen(event):
            if event == StepTaken(due):
                tensors(guide, model).data.fill_(value)

        return listen

    return start


def into_rate(guide, model, value, due, patch):
    """Of all optimisers, whatever the schedule says."""
    now, take = [0], torch.optim.Adam.step

    def step(optimizer, *arguments):
        for group in optimizer.param_groups if now[0] == due - 1 else ():
            group["lr"] = torch.tensor(value) if torch.is_tensor(group["lr"]) else value
        return take(optimizer, *arguments)

    def listen(event):
        if isinstance(event, StepTaken):
            now[0] = event.step

    patch.setattr(torch.optim.Adam, "step", step)
    return listen


PLACES = {
    "learning rate": into_rate,
    "gradient": into_gradient,
    "mean": into(lambda guide, model: guide.loc["encoder_up"]),
    "scale": into(lambda guide, model: guide.log_scale["patch_embed"]),
    "logit": into(lambda guide, model: guide.logit["encoder_down"]),
    "curvature": into(lambda guide, model: guide.estimator.squares.sums["encoder_up"]),
    "bias": into(lambda guide, model: model.network.position),
}


def finite(guide, model):
    states = guide.state_dict() | model.state_dict()
    return all(bool(x.isfinite().all()) for x in states.values() if x.is_floating_point())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("phase", STEPS)
def test_no_posterior_is_silently_without_finite_numbers(stripes, place, value, phase):
    for step in STEPS[phase]:
        model, guide = pair()
        try:
            with pytest.MonkeyPatch.context() as patch:
                listener = PLACES[place](guide, model, value, step, patch)
                result = fit(guide, stripes, config=CONFIG, progress=False, listeners=[listener])
        except TrainingError as error:
            said = str(error)
            assert all(part in said for part in (" at step ", "phase, temperature=", "lower learning_rate="))
        else:
            assert value == 1e30, f"{place}={value} at step {step} was not noticed"
            assert result.posterior.predict(stripes.images, 3).probs.isfinite().all()
        assert finite(guide, model), f"{place}={value} at step {step} left something that is not finite"


def test_the_last_good_state_is_that_of_the_last_row(stripes):
    model, guide = pair()
    kept = []

    def listen(event):
        if event == StepTaken(20):
            kept.append({name: x.clone() for name, x in guide.state_dict().items()})
        if event == StepTaken(30):
            guide.loc["encoder_up"].data.fill_(math.nan)

    with pytest.raises(TrainingError, match=r"no finite .*encoder_up at step 30, ising .* at step 20"):
        fit(guide, stripes, config=CONFIG, progress=False, listeners=[listen])
    assert all(torch.equal(x, kept[0][name]) for name, x in guide.state_dict().items())
    assert model.temperature == CONFIG.temperature
