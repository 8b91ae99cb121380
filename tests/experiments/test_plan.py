"""Plans of studies: which runs they come to, and what they refuse."""

import pytest

from pyro_isingvit import InputError
from pyro_isingvit.experiments.plan import Cell, Plan, read_plan, shipped_plans


def test_a_plan_is_all_combinations_each_once():
    plan = Plan(
        name="grid",
        seeds=[0, 1],
        blocks=[
            {"dataset": "digits", "train": [10, 20], "method": ["ising"], "vary": {"prior.coupling": [0, 1.5]}},
            {"dataset": "digits", "train": [10], "method": ["ising", "dropout"], "seeds": [0], "set": {"draws": 7}},
            {"dataset": "digits", "train": 10, "method": "ising", "vary": {"prior.coupling": [0]}},
        ],
    )
    cells = plan.cells()
    assert len(cells) == 2 * 2 * 2 + 2
    assert len({cell.key for cell in cells}) == len(cells)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert {cell.setting for cell in cells} == {"coupling=0", "coupling=1.5", ""}
    recipe = {"network": {"image_size": 8, "patch_size": 4}, "fit": {"steps": 50}}
    cell = next(cell for cell in cells if cell.setting == "coupling=1.5" and cell.seed == 1)
    config = cell.run_config(recipe, None)
    assert (config.prior.coupling, config.fit.seed, config.fit.steps) == (1.5, 1, 50)
    assert recipe == {"network": {"image_size": 8, "patch_size": 4}, "fit": {"steps": 50}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not YAML"),
        ("name: x", "blocks"),
        ("{name: x, blocks: [{dataset: digits, train: 0, method: ising}]}", "greater than 0"),
        ("{name: x, blocks: [{dataset: digits, train: 5, method: sing}]}", "sing"),
        ("{name: x, blocks: [{dataset: digits, train: 5, method: ising, colour: red}]}", "colour"),
    ],
)
def test_wrong_plans_are_refused(tmp_path, text, message):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_plan(path)
    with pytest.raises(InputError, match=r"plan='none.yaml': no such file; give one, or the name of one of \['"):
        read_plan("none.yaml")


@pytest.mark.parametrize("name", ["dataset", "train", "method", "seeds"])
def test_lists_of_plans_are_not_empty(name):
    block = {"dataset": "digits", "train": 60, "method": "ising"}
    with pytest.raises(InputError, match=rf"blocks.0.{name}=\[\]: Tuple should have at least 1 item"):
        Plan(name="none", blocks=[block | {name: []}])
    with pytest.raises(InputError, match=r"blocks.0.vary.draws=\[\]: Tuple should have at least 1 item"):
        Plan(name="none", blocks=[block | {"vary": {"draws": []}}])
    with pytest.raises(InputError, match=r"blocks=\[\]: Tuple should have at least 1 item"):
        Plan(name="none", blocks=[])


def test_a_wrong_setting_of_a_cell_is_named():
    cell = Cell(dataset="digits", train=60, method={"name": "ising"}, seed=0, set={"fit.stepz": 3})
    with pytest.raises(InputError, match="stepz"):
        cell.run_config({"network": {"image_size": 8, "patch_size": 4}}, None)
    cell = Cell(dataset="digits", train=60, method={"name": "ising"}, seed=0, set={"draws.of": 3})
    with pytest.raises(InputError, match=r"set='draws.of': 'draws' is no group"):
        cell.run_config({"draws": 3}, None)


@pytest.mark.parametrize("name", ["train", "dataset", "fit.seed", "data_root", "network", "fit"])
def test_a_block_cannot_set_what_a_cell_is(name):
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        Cell(dataset="digits", train=60, method={"name": "ising"}, seed=0, set={name: 3})


def test_plans_that_ship_can_be_read():
    plans = {name: read_plan(name) for name in shipped_plans()}
    assert {"smoke", "published", "ablations", "coupling", "temperature"} <= set(plans)
    published = {(cell.dataset, cell.train) for cell in plans["published"].cells()}
    assert len(published) == 12
    for name, plan in plans.items():
        assert plan.name == name
        assert plan.about


def test_settings_of_a_plan_are_checked_by_name_alone(tmp_path):
    """Whether patches divide images is known with these."""
    text = "name: x\nblocks: [{dataset: digits, train: 9, method: ising, set: {network.patch_size: 8, data_root: x}}]"
    (tmp_path / "plan.yaml").write_text(text.replace(", data_root: x", ""))
    assert len(read_plan(tmp_path / "plan.yaml").cells()) == 1
    (tmp_path / "plan.yaml").write_text(text.replace("data_root", "network.patch"))
    with pytest.raises(InputError, match=r"set or vary has 'network\.patch', and there is none"):
        read_plan(tmp_path / "plan.yaml")
