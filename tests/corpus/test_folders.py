"""Damaged folders of runs and of exported networks: every file, in every way."""

import json
import re
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyro_isingvit import FitResult, InputError, Posterior
from pyro_isingvit.experiments.reading import evaluate
from pyro_isingvit.files import file_digest, read_json, write_json
from pyro_isingvit.pruning.compact import LoadError, load

DAMAGE = {
    "removed": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "something else": lambda path: path.write_bytes(b"\xff\xfe\x00 something else"),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n1,2,3"),
}

FILES = [
    "run.json",
    "metrics.json",
    "fit.json",
    "history.csv",
    "posterior.json",
    "posterior.safetensors",
    "training.png",
    "inclusion.png",
    "deterministic/fit.json",
    "deterministic/posterior.json",
    "deterministic/posterior.safetensors",
]


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_run_is_named(name, damage, folder):
    DAMAGE[damage](folder / name)
    with pytest.raises(InputError, match=name.rpartition("/")[2].replace(".", r"\.")) as caught:
        evaluate(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("json") and name != "metrics.json"])
def test_a_number_that_was_edited_by_hand_is_found(name, folder):
    text = (folder / name).read_text()
    edited = re.sub(r": (\d+)", lambda match: f": {int(match[1]) + 1}", text, count=1)
    assert edited != text
    (folder / name).write_text(edited)
    with pytest.raises(InputError, match=r"json: (was changed or damaged|not the file)") as caught:
        evaluate(folder)
    assert "\n" not in str(caught.value)


def changed(path, **changes):
    """Change facts, with the digest that they would have."""
    write_json(path, read_json(path) | changes)


def again(folder, log=True):
    """Write the digests of all files as they are now, as one would who changes them on purpose."""
    for name in ("fit.json", "run.json") if log else ("run.json",):
        files = read_json(folder / name)["files"]
        changed(folder / name, files={each: file_digest(folder / each) for each in files})


def deep(path, *names, value):
    facts = read_json(path)
    inner = facts
    for name in names[:-1]:
        inner = inner[name]
    inner[names[-1]] = value
    write_json(path, facts)


def of_run(*names, value):
    return lambda folder: deep(folder / "run.json", *names, value=value)


def of_log(*names, value):
    def damage(folder):
        deep(folder / "fit.json", *names, value=value)
        again(folder, log=False)

    return damage


def of_posterior(*names, value):
    def damage(folder):
        deep(folder / "posterior.json", *names, value=value)
        again(folder)

    return damage


AGREEMENT = {
    "another seed": (of_run("seed", value=1), "seed=1, but its fit.seed=0"),
    "other images": (of_run("images", value="x"), "was fitted on other images"),
    "no seed": (of_run("seed", value=None), r"run\.json: seed=None"),
    "an unknown setting": (of_run("config", "colour", value=1), r"run\.json: colour=1"),
    "no network": (of_run("config", "network", value=None), r"run\.json: network=None"),
    "a file elsewhere": (of_run("files", "../x", value=""), "missing"),
    "no files": (of_run("files", value=[]), r"run\.json: files="),
    "seconds of text": (of_log("seconds", value="long"), r"fit\.json: seconds='long'"),
    "no history": (of_log("files", value={}), r"fit\.json: names no history"),
    "a stranger's file": (of_log("files", "x", value=""), r"fit\.json: files"),
    "cold": (of_posterior("members", 0, "temperature", value=0), "temperature=0"),
    "no scale": (of_posterior("logit_scale", value=None), "logit_scale=None"),
    "a future format": (of_posterior("format", value=99), "format=99; this version reads"),
    "a stranger's class": (of_posterior("guide", "class", value="os.system"), "os.system, which this package cannot"),
    "another width": (of_posterior("network", "settings", "dim", value=8), "not the tensors of|does not describe"),
    "another prior": (of_posterior("prior", "settings", "slab_scale", value=2.0), "the log density of .* of prior is"),
}


@pytest.mark.parametrize("name", AGREEMENT)
def test_files_that_do_not_agree_are_refused(name, folder):
    damage, message = AGREEMENT[name]
    damage(folder)
    with pytest.raises(InputError, match=message):
        evaluate(folder)


FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def flipped(path, place, bit):
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)


@FUZZ
@given(name=st.sampled_from(FILES), place=st.integers(0, 2**30), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_or_harmless(finished, tmp_path_factory, name, place, bit):
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("flipped") / "run")
    flipped(folder / name, place, bit)
    try:
        found = FitResult.load(folder if "/" not in name else folder / "deterministic")
        evaluate(folder)
    except InputError:
        return
    assert_same(found.posterior, Posterior.load(finished if "/" not in name else finished / "deterministic"))


def assert_same(one, other):
    for part in ("guide", "model"):
        states = [getattr(each, part).state_dict() for each in (one, other)]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@FUZZ
@given(name=st.sampled_from(["config.json", "weights.safetensors"]), place=st.integers(0, 2**30), bit=st.integers(0, 7))
def test_a_flipped_bit_of_an_exported_network_is_found(exported, tmp_path_factory, name, place, bit):
    folder = shutil.copytree(exported, tmp_path_factory.mktemp("flipped") / "small")
    flipped(folder / name, place, bit)
    try:
        found = load(folder)
    except LoadError:
        return
    assert name == "config.json"  # a space, or a letter of a name that JSON reads alike
    states = found.state_dict(), load(exported).state_dict()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("damage", [damage for damage in DAMAGE if damage != "longer"])
@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_a_damaged_file_of_an_exported_network_is_named(name, damage, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "small")
    DAMAGE[damage](folder / name)
    with pytest.raises(LoadError, match=name.replace(".", r"\.")) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_huge_and_deep_json_is_refused_at_once(folder):
    for text in ("[" * 10**6, json.dumps({"a": "x" * 2**23}), '{"a": NaN}', '{"a": 1, "a": 2}'):
        (folder / "run.json").write_text(text)
        with pytest.raises(InputError, match=r"run\.json: "):
            evaluate(folder)
