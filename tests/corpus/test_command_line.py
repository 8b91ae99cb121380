"""Bad options on the command line, and bad plans."""

import numpy as np
import pytest

from tests.conftest import PLAN

FIT = ("fit", "--dataset", "few.npz", "--train", "20", "--test", "20", "--steps", "5", "--dim", "8", "--no-compare")
STUDY = ("study", "plan.yaml", "--out", "out")

OPTIONS = {
    "unknown data set": (("fit", "--dataset", "imagenet"), "dataset='imagenet': unknown"),
    "no file": (("fit", "--dataset", "no.npz"), "no.npz"),
    "no root": (("fit", "--dataset", "mnist"), "data_root=None"),
    "a root that is a file": (("fit", "--dataset", "mnist", "--data-root", "few.npz"), "few.npz"),
    "home of nobody": ((*FIT, "--out", "~nobody-at-all/x"), "~nobody-at-all/x"),
    "a file in the way": ((*FIT, "--out", "few.npz"), "few.npz"),
    "below a file": ((*FIT, "--out", "few.npz/run"), "few.npz"),
    "over a file": ((*FIT, "--out", "few.npz", "--overwrite"), "few.npz"),
    "over a folder of the user's": ((*FIT, "--out", "mine", "--overwrite"), "'notes.txt'"),
    "a folder of the user's": ((*FIT, "--out", "mine"), "mine"),
    "an empty folder": ((*FIT, "--out", "empty", "--overwrite"), "empty"),
    "a long name": ((*FIT, "--out", "x" * 300), "File name too long"),
    "no place": ((*FIT, "--out", "/proc/x"), "/proc/x"),
    "the root": ((*FIT, "--out", "/", "--overwrite"), "'/'"),
    "no member": ((*FIT, "--members", "0"), "members=0"),
    "too many members": ((*FIT, "--members", "1001"), "members=1001"),
    "members of text": ((*FIT, "--members", "few"), "--members"),
    "steps of nothing": ((*FIT, "--steps", "0"), "steps=0"),
    "steps of text": ((*FIT, "--steps", "many"), "--steps"),
    "endless steps": ((*FIT, "--steps", str(10**12)), "steps=1000000000000"),
    "huge dim": ((*FIT, "--dim", str(10**12)), "dim=1000000000000"),
    "huge mlp": ((*FIT, "--mlp-ratio", "1e300"), "mlp_ratio=1e+300"),
    "rate of nan": ((*FIT, "--learning-rate", "nan"), "learning_rate=nan"),
    "hot": ((*FIT, "--temperature", "warm"), "temperature='warm'"),
    "temperature of infinity": ((*FIT, "--temperature", "inf"), "temperature"),
    "inclusion of one": ((*FIT, "--inclusion", "1"), "inclusion=1"),
    "inclusion of nan": ((*FIT, "--inclusion", "nan"), "inclusion=nan"),
    "coupling of nan": ((*FIT, "--coupling", "nan"), "coupling=nan"),
    "coupling of infinity": ((*FIT, "--coupling", "inf"), "coupling=inf"),
    "density of two": ((*FIT, "--target-density", "2"), "target_density=2"),
    "too many images": ((*FIT, "--train", "100"), "train=100"),
    "no image": ((*FIT, "--train", "0"), "train=0"),
    "test of none": ((*FIT, "--test", "none"), "test"),
    "test of less than none": ((*FIT, "--test", "-5"), "test"),
    "no official test": ((*FIT, "--test", "official"), "no test set of its own"),
    "epochs and steps": ((*FIT, "--epochs", "3"), "--epochs=3 and --steps=5"),
    "size of nothing": ((*FIT, "--image-size", "0"), "image_size=0"),
    "huge images": ((*FIT, "--image-size", "100000"), "image_size"),
    "too white": ((*FIT, "--background", "300"), "background=300"),
    "patches do not fit": ((*FIT, "--patch-size", "3"), "patch_size=3"),
    "unknown stem": ((*FIT, "--stem", "resnet"), "stem='resnet'"),
    "unknown augmentation": ((*FIT, "--augment", "mirror"), "augment='mirror'"),
    "unknown precision": ((*FIT, "--precision", "int8"), "precision='int8'"),
    "unknown device": ((*FIT, "--device", "abacus"), "device='abacus'"),
    "negative seed": ((*FIT, "--seed", "-1"), "seed=-1"),
    "checkpoints of nan": ((*FIT, "--checkpoint-every", "nan"), "interval=nan"),
    "resume nothing": (("fit", "--resume", "nowhere"), "no unfinished run"),
    "resume a folder of the user's": (("fit", "--resume", "mine"), "no unfinished run"),
    "resume otherwise": (("fit", "--resume", "mine", "--steps", "3"), "--steps with --resume"),
    "unknown option": (("fit", "--fast"), "No such option"),
    "unknown command": (("train",), "No such command"),
    "evaluate nothing": (("evaluate", "nowhere"), "no run.json there"),
    "evaluate a file": (("evaluate", "few.npz"), "no run.json there"),
    "evaluate without draws": (("evaluate", "mine", "--draws", "0"), "draws=0"),
    "evaluate endlessly": (("evaluate", "mine", "--draws", str(10**12)), "draws=1000000000000"),
    "report on nothing": (("report", "nowhere"), "no run.json there"),
    "prune nothing": (("prune", "nowhere", "--out", "small"), "no run.json there"),
    "prune over a file": (("prune", "nowhere", "--out", "few.npz", "--overwrite"), "few.npz"),
    "prune over the user's": (("prune", "nowhere", "--out", "mine", "--overwrite"), "mine"),
    "prune to less than nothing": (("prune", "nowhere", "--out", "s", "--fine-tune", "-1"), "fine_tune=-1"),
    "prune to an unknown format": (("prune", "nowhere", "--out", "s", "--format", "tflite"), "formats='tflite'"),
    "no plan": (("study",), "PLAN=''"),
    "unknown plan": (("study", "nowhere.yaml"), "plan='nowhere.yaml': no such file"),
    "a plan that is an archive": (("study", "few.npz"), "plan='few.npz'"),
    "no job": ((*STUDY, "--jobs", "0"), "jobs=0"),
    "no such run": ((*STUDY, "--cell", "99"), "--cell=99"),
    "two modes": ((*STUDY, "--list", "--report"), "--list and --report"),
    "no result": ((*STUDY, "--report"), "no result of the plan"),
}

PLANS = {
    "empty": ("", "plan='plan.yaml'"),
    "a list": ("- 1", "plan='plan.yaml': holds no settings"),
    "a typo": (
        "name: x\nblocks: [{dataset: digits, train: 9, methood: ising}]",
        "plan='plan.yaml': blocks.0.methood='ising': Extra",
    ),
    "a typo of a setting": (
        "name: x\nblocks: [{dataset: digits, train: 9, method: ising, vary: {prior.couplin: [0]}}]",
        "plan='plan.yaml': set or vary has 'prior.couplin', and there is none",
    ),
    "no blocks": ("name: x", "blocks"),
    "empty blocks": ("{name: x, blocks: []}", "blocks"),
    "a path as its name": (PLAN.replace("name: small", "name: ../../x"), "name='../../x'"),
    "a hidden name": (PLAN.replace("name: small", "name: .x"), "name='.x'"),
    "a number as its name": (PLAN.replace("name: small", "name: 3"), "name=3"),
    "an alias": (PLAN.replace("seeds: [0, 1]", "seeds: &s [0, 1]\nabout: *s"), "aliases are not read"),
    "named twice": (PLAN + "\nname: again", "'name' comes twice"),
    "an unknown name": (PLAN + "\ncolour: red", "colour"),
    "an unknown method": (PLAN.replace("deterministic", "magic"), "method"),
    "a setting of another method": (PLAN.replace("{name: dropout, rate", "{name: ising, rate"), "ising has no rate"),
    "a rate of two": (PLAN.replace("0.3", "2"), "rate=2"),
    "no image": (PLAN.replace("train: 60", "train: 0"), "train"),
    "a negative seed": (PLAN.replace("[0, 1]", "[-1]"), "seeds"),
    "a seed as text": (PLAN.replace("[0, 1]", "[1:30]"), "seeds"),
    "a setting of its own": (PLAN.replace("fit.steps: 40", "fit.seed: 40"), "set or vary has"),
    "a group of settings": (PLAN.replace("fit.steps: 40", "fit: {steps: 40}"), "name one setting each"),
    "an unknown setting": (PLAN.replace("fit.steps: 40", "fit.stepz: 40"), "stepz"),
    "no group of settings": (PLAN.replace("draws: 3", "draws: 3, draws.x: 4"), "'draws' is no group of settings"),
    "steps of nothing": (PLAN.replace("fit.steps: 40", "fit.steps: 0"), "steps=0"),
    "an unknown data set": (PLAN.replace("dataset: digits", "dataset: imagenet"), "dataset='imagenet'"),
    "code": (PLAN.replace("name: small", "name: !!python/object/apply:os.system [ls]"), "not YAML"),
    "too many runs": (PLAN.replace("seeds: [0, 1]", f"seeds: {list(range(40000))}"), "runs are more than"),
    "too deep": ("[" * 3000, "not YAML"),
}


@pytest.fixture
def place(tmp_path):
    """A folder with a small data set, and a folder of the user's."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "few.npz", images=rng.integers(0, 256, (60, 8, 8), np.uint8), labels=np.arange(60) % 3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("dear to me")
    (tmp_path / "empty").mkdir()
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_refused(isingvit, place, arguments, message):
    before = contents(place)
    code, _, err = isingvit(*arguments)
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert contents(place) == before


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_refused_and_nothing_is_touched(name, isingvit, place):
    assert_refused(isingvit, place, *OPTIONS[name])


@pytest.mark.parametrize("name", PLANS)
def test_plans_are_refused_and_nothing_is_touched(name, isingvit, place):
    text, message = PLANS[name]
    (place / "plan.yaml").write_text(text)
    assert_refused(isingvit, place, STUDY, message)
