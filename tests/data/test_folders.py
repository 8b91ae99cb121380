"""Folders of images as they are in life."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_isingvit import InputError, read, split
from pyro_isingvit.data.folders import read_folder
from pyro_isingvit.data.images import Images


def put(path, value=0, mode="L", size=(4, 4), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path):
    for k, name in enumerate(("cat", "dog")):
        for i in range(2):
            put(tmp_path / name / f"{i}.png", 10 * k + i)
    return tmp_path


def values(images):
    return images.images[:, 0, 0, 0].tolist()


def test_names_are_kept_and_in_the_order_of_torchvision(tmp_path):
    for name in ("0", "1", "2", "10"):
        put(tmp_path / name / "0.png", int(name))
    found = read("folder", tmp_path)
    assert found.names == ("0", "1", "10", "2")
    assert found.labels.tolist() == [0, 1, 2, 3]
    assert values(found) == [0, 1, 10, 2]
    assert found[torch.tensor([1])].names == found.to("cpu").names == found.resized(2).names == found.names
    with pytest.raises(InputError, match="2 names for classes=3"):
        Images(found.images[:3], found.labels[:3], 3, names=("a", "b"))


def test_what_is_hidden_is_not_read(root):
    put(root / ".ipynb_checkpoints" / "0.png", 99)
    put(root / "__MACOSX" / "cat" / "0.png", 99)
    put(root / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png", 99)
    (root / "cat" / "._0.png").write_bytes(b"\0\5\x16\7")
    (root / "Thumbs.db").write_bytes(b"x")
    found = read("folder", root)
    assert (values(found), found.names) == ([0, 1, 10, 11], ("cat", "dog"))


def test_links_do_not_multiply_images(root):
    os.symlink(root, root / "cat" / "loop")
    os.symlink(root, root / "again")
    os.symlink(root / "dog", root / "cat" / "dogs")
    os.symlink(root / "dog" / "0.png", root / "dog" / "linked.png")
    assert values(read("folder", root)) == [0, 1, 10, 11, 10]


def test_folders_beneath_a_class_belong_to_it(root):
    put(root / "cat" / "young" / "0.png", 5)
    assert values(read("folder", root)) == [0, 1, 5, 10, 11]


def test_images_are_turned_as_their_tags_say(tmp_path):
    upper = Image.new("L", (4, 6))
    upper.paste(255, (0, 0, 4, 3))
    put(tmp_path / "a" / "0.png").unlink()
    upper.save(tmp_path / "a" / "0.png")
    turned = upper.rotate(180)
    tags = turned.getexif()
    tags[0x0112] = 3
    (tmp_path / "b").mkdir()
    turned.save(tmp_path / "b" / "0.png", exif=tags)
    found = read("folder", tmp_path).images
    assert torch.equal(found[0], found[1])
    assert found[0, 0, :3].eq(255).all()


@pytest.mark.parametrize(("mode", "ink"), [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0)), ("P", 0)])
def test_transparent_images_are_laid_on_white(tmp_path, mode, ink):
    options = {"transparency": 0} if mode == "P" else {}
    put(tmp_path / "a" / "0.png", ink, mode, **options)
    assert read("folder", tmp_path).images.eq(255).all()
    assert read_folder(tmp_path, background=30).images.eq(30).all()


def test_sixteen_bits_become_eight(tmp_path):
    (tmp_path / "a").mkdir()
    deep = np.array([[0, 257], [32896, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "a" / "0.png")
    assert read("folder", tmp_path).images.flatten().tolist() == [0, 1, 128, 255]


def test_other_modes(tmp_path):
    put(tmp_path / "a" / "0.jpg", (0, 0, 0, 0), "CMYK")
    assert read("folder", tmp_path).images.eq(255).all()
    put(tmp_path / "a" / "1.tif", 0.5, "F")
    with pytest.raises(InputError, match=r"image of mode 'F'.*convert"):
        read("folder", tmp_path)


def test_of_an_animated_image_the_first_frame_is_read(tmp_path):
    (tmp_path / "a").mkdir()
    first, second = Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 200)
    first.save(tmp_path / "a" / "0.tif", save_all=True, append_images=[second])
    assert values(read("folder", tmp_path)) == [10]


def test_files_that_cannot_be_read_are_named(root):
    path = root / "cat" / "2.png"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"cat/2\.png': not an image, or damaged.*remove or repair"):
        read("folder", root)
    path.unlink()
    put(path, 0, "1", (14_000, 14_000))
    with pytest.raises(InputError, match=r"cat/2\.png': .*exceeds limit.*make the image smaller"):
        read("folder", root, image_size=4)
    path.unlink()
    os.mkfifo(path)  # would wait for a writer for ever
    assert len(read("folder", root)) == 4
    put(root / "dog" / "9.png", size=(5, 4))
    with pytest.raises(InputError, match=r"dog/9\.png' is 5 x 4 pixels, and .*cat/0\.png' 4 x 4: give image_size"):
        read("folder", root)
    assert read("folder", root, image_size=3).shape == (1, 3, 3)


def test_files_that_are_left_out_are_counted(root):
    for i in range(3):
        put(root / "cat" / f"{i}.gif")
    with pytest.warns(UserWarning, match=r"not read, 3 of \.gif"):
        assert len(read("folder", root)) == 4


def test_a_class_without_images_and_a_root_without_classes(root, tmp_path):
    (root / "emu").mkdir()
    with pytest.raises(InputError, match=r"emu': no image of this class \(.jpg.*remove the folder"):
        read("folder", root)
    with pytest.raises(InputError, match="no folder of images of a class there"):
        read("folder", root / "emu")
    with pytest.raises(InputError, match="give a folder that holds"):
        read("folder", root / "nowhere")


def test_parts(tmp_path):
    for k, part in enumerate(("train", "val", "test")):
        for j, name in enumerate("ab"):
            put(tmp_path / part / name / "0.png", 100 * k + j)
    found = [read("folder", tmp_path, part) for part in ("train", "validation", "test")]
    assert [values(each) for each in found] == [[0, 1], [100, 101], [200, 201]]
    assert {each.names for each in found} == {("a", "b")}
    data = split(found[0], 2, found[2], found[1])
    assert values(data.validation) == [100, 101]
    put(tmp_path / "test" / "c" / "0.png")
    with pytest.raises(InputError, match=r"test' has classes \['c'\], which the training images do not have"):
        read("folder", tmp_path, "test")


def test_a_folder_without_parts_has_no_test_images(root):
    with pytest.raises(InputError, match=r"part='test': .* has no folder for it.*give a number"):
        read("folder", root, "test")


def test_copies_in_two_parts_are_warned_of(tmp_path):
    for i in range(6):
        put(tmp_path / "a" / f"{i}.png", i)
    put(tmp_path / "a" / "copy.png", 3)
    everything = read("folder", tmp_path)
    with pytest.warns(UserWarning, match=r"1 of . (test|validation) images are equal to images of another part"):
        _ = [split(everything, 3, 2, 2, seed=seed) for seed in range(5)]
