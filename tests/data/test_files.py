"""Image files as users name them."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from pyro_isingvit import InputError, read
from pyro_isingvit.data.files import find_files, read_files
from tests.data.test_folders import put


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b/1.png", "b/deep/2.JPG", "b/.hidden.png", ".secret/3.png", "b/__MACOSX/4.png", "a[1].png", "5.dat"):
        put(tmp_path / name) if name.lower().endswith(("png", "jpg")) else (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["b"], ["b/1.png", "b/deep/2.JPG"]),
        ("b/1.png", ["b/1.png"]),
        (["5.dat", "b/1.png"], ["5.dat", "b/1.png"]),  # what is named is tried, in the order of the names
        (["a[1].png"], ["a[1].png"]),  # a file of this name, so no pattern
        (["*/*.png"], ["b/1.png"]),
        (["**/*.[jJ]*"], ["b/deep/2.JPG"]),
        (["[ab]*"], ["a[1].png", "b/1.png", "b/deep/2.JPG"]),
        (["b", "b/1.png", "*/1.png", "b"], ["b/1.png", "b/deep/2.JPG"]),  # each once
    ],
)
def test_names_stand_for_files(root, given, found):
    assert find_files(given) == [Path(name) for name in found]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "files: none given; give files, folders or patterns"),
        (["b", "none.png"], r"files='none\.png': no such file or folder"),
        (["none*.png"], r"files='none\*\.png': no image matches this pattern"),
        (["empty"], r"files='empty': no image there \(\.jpg, "),
        (["pipe"], "files='pipe': no such file or folder"),
    ],
)
def test_names_that_stand_for_none_are_refused(root, given, message):
    (root / "empty").mkdir()
    os.mkfifo(root / "pipe")
    with pytest.raises(InputError, match=message):
        find_files(given)


def test_nothing_is_left_out_unsaid(root, monkeypatch):
    """Links to what is missing are errors when they are read, other images are warned of, closed folders refused."""
    (root / "gone.png").symlink_to(root / "nowhere.png")
    assert Path("gone.png") in find_files(["*.png"])
    put(root / "b" / "9.gif")
    with pytest.warns(UserWarning, match=r"'b': files with images were not read, 1 of \.gif"):
        find_files(["b"])

    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(InputError, match=r"'b': cannot be read \(Permission denied\); make it readable"):
        find_files(["b"])


def test_files_are_read_as_in_training(tmp_path):
    """Grey, transparent, palette, 16 bits, turned: the bytes that a fit to the same folder has."""
    for k, mode in enumerate(("RGB", "L", "LA", "RGBA", "P", "I;16", "CMYK")):
        image = Image.effect_noise((9, 6), 80).resize((9 + k, 6)).convert("I" if mode == "I;16" else mode)
        image = image.point(lambda value: value * 250).convert("I;16") if mode == "I;16" else image
        tags = Image.Exif()
        tags[0x0112] = 1 + k
        path = tmp_path / "a" / f"{k}.{'tif' if mode in ('I;16', 'CMYK') else 'png'}"
        path.parent.mkdir(exist_ok=True)
        image.save(path, exif=tags)
    fitted = read("folder", tmp_path, image_size=4)
    assert torch.equal(read_files([tmp_path / "a"], fitted.shape), fitted.images)
    assert read_files([tmp_path / "a" / "0.png"], (1, 5, 8)).shape == (1, 1, 5, 8)
    with pytest.raises(InputError, match=r"shape=\(4, 8, 8\): give \(channels, height, width\)"):
        read_files([tmp_path], (4, 8, 8))
    (tmp_path / "a" / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"^'[^']*0.png': not an image, or damaged; remove or repair it$"):
        read_files([tmp_path / "a"], fitted.shape)
