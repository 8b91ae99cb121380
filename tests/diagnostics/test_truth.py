"""Error rates of a selection, and reliability of inclusion probabilities, against counts by hand."""

import pytest
import torch

from pyro_isingvit import InputError
from pyro_isingvit.diagnostics import inclusion_reliability, plots, selection_table

PROBS = torch.tensor([0.95, 0.9, 0.8, 0.4, 0.3, 0.05])
TRUTH = torch.tensor([True, True, False, True, False, False])


def test_rates_are_counted():
    table = selection_table(PROBS, TRUTH, [0.5, 0.99, 0.0]).set_index("threshold")
    assert table.loc[0.5].to_dict() == pytest.approx(
        {"selected": 3, "expected": 0.35 / 3, "false_discovery_rate": 1 / 3, "power": 2 / 3}
    )
    assert table.loc[0.99].to_dict() == {"selected": 0, "expected": 0, "false_discovery_rate": 0, "power": 0}
    assert table.loc[0.0, "false_discovery_rate"] == 0.5
    assert table.loc[0.0, "power"] == 1


def test_expected_and_realised_rates_agree_for_probabilities_that_are_right():
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(200_000, generator=generator)
    truth = torch.rand(200_000, generator=generator) < probs
    table = selection_table(probs, truth)
    assert (table["expected"] - table["false_discovery_rate"]).abs().max() < 0.01
    curve = inclusion_reliability(probs, truth)
    assert len(curve) == 10
    assert curve["gap"].abs().max() < 0.01
    assert ((curve["lower"] < curve["probability"]) & (curve["probability"] < curve["upper"])).sum() >= 8


def test_reliability_is_counted_by_bin():
    curve = inclusion_reliability(PROBS, TRUTH, bins=2).set_index("bin")
    assert curve["masks"].tolist() == [3, 3]
    assert curve["probability"].tolist() == pytest.approx([0.25, 2.65 / 3])
    assert curve["relevant"].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert curve.loc[1.0, "gap"] == pytest.approx(2 / 3 - 2.65 / 3)
    certain = inclusion_reliability(torch.ones(3), torch.ones(3, dtype=torch.bool))
    assert certain["bin"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: selection_table(PROBS, TRUTH[:3]), r"relevant of shape \(3,\)"),
        (lambda: selection_table(PROBS, TRUTH.float()), "relevant of type torch.float32"),
        (lambda: selection_table(2 * PROBS, TRUTH), "probabilities: must lie within"),
        (lambda: selection_table(PROBS, TRUTH & False), "relevant: nothing is"),
        (lambda: inclusion_reliability(PROBS, TRUTH, bins=0), "bins=0"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_pictures_show_the_tables():
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(500, generator=generator)
    truth = torch.rand(500, generator=generator) < probs
    curve, table = inclusion_reliability(probs, truth), selection_table(probs, truth)
    ax = plots.plot_inclusion_reliability({"a": curve})
    assert ax.collections[-1].get_offsets()[:, 1].tolist() == pytest.approx(curve["relevant"].tolist())
    ax = plots.plot_selection({"a": table}, at=0.1)
    line = ax.lines[0]
    shown = table[table["selected"] > 0].iloc[::-1]
    assert list(line.get_xdata()) == pytest.approx(shown["false_discovery_rate"].tolist())
    assert list(line.get_ydata()) == pytest.approx(shown["power"].tolist())
    assert ax.lines[1].get_xdata()[0] == 0.1
