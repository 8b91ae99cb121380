"""Fits by several processes, here of one processor."""

import os
import signal

import pytest
import torch

from pyro_isingvit import FitConfig, InputError, IsingViT, LikelihoodGuided, TrainingError, fit
from pyro_isingvit.guides import PointEstimate
from pyro_isingvit.inference import ranks
from pyro_isingvit.inference.events import RowLogged
from pyro_isingvit.models import Flat
from tests.conftest import QUICK, pair


def settings(**changes):
    chosen = {"temperature": 0.01, "steps": 40, "pilot": 0.25, "batch_size": 12, "device": "cpu"}
    return FitConfig(**QUICK | chosen | changes)


def flat(model):
    return IsingViT(model.network, Flat(model.network.weight_sites()))


def test_the_loss_curve_of_two_processes_is_that_of_one(stripes):
    """Without draws, and with batches that are shared: the same to rounding. The model that was given is trained."""
    told = []
    one, other = (PointEstimate(flat(pair()[0])) for _ in range(2))
    alone = fit(one, stripes, config=settings(), progress=False)
    both = fit(other, stripes, config=settings(), progress=False, devices=2, listeners=[told.append])
    torch.testing.assert_close(
        torch.tensor(alone.history["loss"]), torch.tensor(both.history["loss"]), rtol=1e-4, atol=1e-6
    )
    for guide, result in ((one, alone), (other, both)):
        for name, value in result.posterior.guide.state_dict().items():
            assert torch.equal(guide.state_dict()[name], value)
    rows = [event.row for event in told if isinstance(event, RowLogged)]
    assert [row["loss"] for row in rows] == both.history["loss"].tolist()


class Reporting(LikelihoodGuided):
    """Writes the bits of logits and scales after every update, and dies once if it is the second process."""

    def __init__(self, model, folder: str = "") -> None:
        super().__init__(model)
        self.folder, self.updates = folder, 0

    def report(self, kind, state):
        digest = float(torch.cat([each.flatten() for each in state]).double().sum())
        with open(os.path.join(self.folder, f"{kind}-{os.environ.get('RANK', '0')}"), "a") as file:
            print(digest.hex(), file=file)

    def forget(self) -> None:
        """Called before the first step, at each row, and after the last step."""
        super().forget()
        if hasattr(self, "folder"):
            self.report("averages", self.estimator.averages())

    def refresh(self, share: float = 1.0) -> None:
        super().refresh(share)
        self.report("bits", [*self.logit.values(), *self.log_scale.values()])
        self.updates += 1
        rank = os.environ.get("RANK", "0")
        mark = os.path.join(self.folder, "killed")
        if rank == "1" and self.updates == 2 and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_ends_the_fit_which_one_process_finishes(stripes, tmp_path):
    config = settings(steps=60)
    saving = {"checkpoint": tmp_path / "saved", "interval": 0.0}

    def go(devices, **options):
        guide = pair(Reporting, folder=str(tmp_path))[1]
        return fit(guide, stripes, config=config, progress=False, devices=devices, **saving, **options)

    with pytest.raises(TrainingError, match=r"(device 1 of 2: its process .* code -9|another process).*resume=True"):
        go(2)
    result = go(1, resume=True)
    assert result.history["step"].tolist()[-1] == 60
    for file in (*tmp_path.glob("bits-*"), *tmp_path.glob("averages-*")):
        file.unlink()
    for file in (tmp_path / "saved").iterdir():
        file.unlink()
    go(2)
    first, second = ((tmp_path / f"bits-{rank}").read_text().split() for rank in range(2))
    assert len(first) >= 3
    assert first == second
    first, second = ((tmp_path / f"averages-{rank}").read_text().split() for rank in range(2))
    assert first[-1] == second[-1]  # of the curvature
    assert first[-2] != second[-2]  # each process has seen other images since the last update


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "devices=0: must be an integer from 1"),
        ({"devices": 2, "strategy": "fsdp"}, "strategy='fsdp': masks and weights of the whole network are drawn"),
        ({"devices": 5}, "batch_size=12: images of a step over all devices together, and there are 5; .* e.g. 15"),
    ],
)
def test_what_cannot_be_asked_for(options, message, stripes):
    with pytest.raises(InputError, match=message):
        fit(pair()[1], stripes, config=settings(), progress=False, **options)


def test_without_lightning_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lightning_fabric", None)
    with pytest.raises(InputError, match=r"devices=2: needs Lightning Fabric; pip install 'pyro-isingvit\[devices\]'"):
        ranks.connect(torch.device("cpu"), 2)


def test_the_end_of_another_process_is_said():
    group = ranks.Ranks(torch.device("cpu"))
    group.size = 2
    with (
        pytest.raises(TrainingError, match="another process of this fit has ended"),
        ranks.watched(group),
    ):
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234")
    with pytest.raises(RuntimeError, match="out of memory"), ranks.watched(group):
        raise RuntimeError("out of memory")
