"""What happens during a fit: who is told, and when a guide learns."""

import pyro
import pytest
import torch

from pyro_isingvit import FitConfig, MeanField, TraceGraph_ELBO, fit
from pyro_isingvit.inference import events
from tests.conftest import QUICK, pair


def steps_by(train_step, data, guide, learns):
    """Twenty steps on the same batches and random numbers, and whether `learn` is called after each."""
    torch.manual_seed(1)
    for i in range(20):
        torch.manual_seed(100 + i)
        batch = torch.arange(20) + 20 * (i % 3)
        train_step(data.images[batch], data.labels[batch])
        if learns:
            guide.learn()


def test_a_guide_learns_alike_under_svi_and_by_hand_once_from_each_pass(stripes):
    """Under `pyro.infer.SVI`, which does not call `learn`, a pass is learned when the guide next runs."""
    guides = []
    for learns in (False, True):
        model, guide = pair(refresh_every=3)
        model.num_data, model.temperature = 60, 0.1
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), pyro.infer.TraceGraph_ELBO())
        steps_by(svi.step, stripes, guide, learns)
        guides.append(guide)
    assert guides[0].seen is not None
    assert guides[1].seen is None
    guides[0].learn()
    for name, value in guides[0].state_dict().items():
        assert torch.equal(value, guides[1].state_dict()[name]), name
    before = {name: value.clone() for name, value in guides[0].state_dict().items()}
    guides[0].learn()  # nothing left
    assert all(torch.equal(value, before[name]) for name, value in guides[0].state_dict().items())


def test_the_last_batch_of_a_fit_is_learned_in_it(stripes):
    guide = pair()[1]
    learned = []
    guide.learn = lambda: learned.append(guide.seen is not None) or type(guide).learn(guide)
    fit(guide, stripes, config=FitConfig(**QUICK), progress=False)
    assert learned.count(True) == QUICK["steps"]
    assert guide.seen is None


def test_what_is_forgotten_is_not_learned(stripes):
    model, guide = pair()
    model.num_data = 60
    TraceGraph_ELBO()(model, guide)(stripes.images, stripes.labels).backward()
    before = {name: value.clone() for name, value in guide.estimator.state_dict().items()}
    guide.forget()
    guide.learn()
    assert all(torch.equal(value, before[name]) for name, value in guide.estimator.state_dict().items())


def test_events_tell_how_a_fit_goes(stripes):
    """Steps are counted through the phases, back at each temperature that is tried; rows are those of the history."""
    told = []
    settings = QUICK | {"temperature": "auto", "steps": 80, "pilot": 0.5, "fine_tune": 0.25}
    result = fit(pair()[1], stripes, stripes, FitConfig(**settings), False, [told.append])
    assert told[0] == events.Started(80)
    assert told[-1] == events.Stopped(80)
    phases = [event for event in told if isinstance(event, events.PhaseStarted)]
    assert [phase.phase for phase in phases][:2] == ["pilot", "trial"]
    assert [phase.phase for phase in phases].count("trial") == len(result.trials)
    assert phases[-1] == events.PhaseStarted("fine-tune", result.posterior.model.temperature, 20)
    step = 0
    for event in told:
        if isinstance(event, events.StepTaken):
            step += 1
            assert event.step == step
        elif isinstance(event, events.WentBack):
            step = event.step
    assert step == 80
    rows = [event.row for event in told if isinstance(event, events.RowLogged)]
    assert rows[-1]["step"] == 80
    assert all(row in rows for row in result.history.to_dict("records"))


def test_a_fit_that_breaks_off_is_stopped_for_listeners_too(stripes):
    told = []

    def interrupt(event):
        told.append(event)
        if isinstance(event, events.StepTaken) and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(pair()[1], stripes, None, FitConfig(**QUICK), False, [interrupt])
    assert told[-1] == events.Stopped(3, finished=False)


def test_nothing_of_a_fit_is_left_lying_on_its_model(stripes):
    """A plain Pyro guide for the model of a fitted guide teaches that guide nothing."""
    guide = pair()[1]
    fit(guide, stripes, config=FitConfig(**QUICK), progress=False)
    other = MeanField(guide.model)
    trace = pyro.poutine.trace(lambda *_: other.eval()()).get_trace()
    guide.model.follow(None)
    pyro.poutine.replay(guide.model, trace=trace)(stripes.images, stripes.labels).sum().backward()
    assert guide.seen is None


def test_every_listener_hears_the_end(stripes):
    told = []

    def broken(event):
        if isinstance(event, events.StepTaken | events.Stopped):
            raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        fit(pair()[1], stripes, None, FitConfig(**QUICK), False, [told.append, broken, told.append])
    assert told.count(events.Stopped(1, finished=False)) == 2
