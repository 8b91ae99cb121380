"""Data sets and refusals."""

import math
import pickle
import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from pyro_isingvit import (
    Images,
    InputError,
    ViT,
    ViTConfig,
    from_dataset,
    read,
)


def test_digits_come_with_a_dependency():
    digits = read("digits")
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.max() == 1
    assert digits.labels.bincount().min() > 150


def test_bytes_and_floats_are_the_same_to_a_network():
    network = ViT(ViTConfig(image_size=4, patch_size=2, dim=4, heads=2, mlp_ratio=2))
    pixels = torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(network(pixels), network(pixels.float() / 255))


def write_mnist(root, images, labels):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, shift in (("train", 0), ("t10k", 1)):
        pixels, classes = images + np.uint8(shift), labels
        header = np.array([2051, len(images), 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = np.array([2049, len(images)], dtype=">i4").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + classes.tobytes())


def test_idx_files_of_torchvision(tmp_path):
    images = (np.arange(3 * 28 * 28) % 200).astype(np.uint8).reshape(3, 28, 28)
    write_mnist(tmp_path, images, np.array([7, 0, 9], dtype=np.uint8))
    mnist = read("mnist", tmp_path)
    assert mnist.images.dtype == torch.uint8
    assert torch.equal(mnist.images[:, 0], torch.from_numpy(images))
    assert mnist.labels.tolist() == [7, 0, 9]
    official = read("mnist", tmp_path, part="test")
    assert torch.equal(official.images[:, 0], torch.from_numpy(images) + 1)
    assert read("mnist", tmp_path, image_size=14).shape == (1, 14, 14)


@pytest.mark.parametrize("keep", [0, 10, 1000])
def test_a_truncated_archive_is_named(tmp_path, keep):
    write_mnist(tmp_path, np.zeros((3, 28, 28), np.uint8), np.array([7, 0, 9], dtype=np.uint8))
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"the files of MNIST in .*raw are incomplete or damaged .*; remove"):
        read("mnist", tmp_path)


def write_cifar100(root, monkeypatch, per_class=2, inverted=True):
    """A small archive in CIFAR-100's own format, with checksums that torchvision is told of."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = np.arange(100 * per_class) % 100
    data = rng.integers(0, 256, (len(labels), 3 * 32 * 32), dtype=np.uint8)
    names = [f"class {k}" for k in range(100)]
    contents = {
        "train": {"data": data, "fine_labels": labels.tolist(), "coarse_labels": (labels // 5).tolist()},
        "test": {"data": 255 - data if inverted else 255 - data[::-1], "fine_labels": labels[::-1].tolist()},
        "meta": {"fine_label_names": names, "coarse_label_names": names[:20]},
    }
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    md5 = {name: datasets.utils.calculate_md5(folder / name) for name in contents}
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": md5["meta"]})
    return data.reshape(-1, 3, 32, 32), labels


def test_cifar100_archives(tmp_path, monkeypatch):
    pixels, labels = write_cifar100(tmp_path, monkeypatch)
    cifar = read("cifar-100", tmp_path)
    assert cifar.classes == 100
    assert torch.equal(cifar.images, torch.from_numpy(pixels))
    assert cifar.labels.tolist() == labels.tolist()
    assert read("cifar-100", tmp_path, part="test").labels.tolist() == labels[::-1].tolist()
    file = tmp_path / "cifar-100-python" / "train"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"the files of CIFAR100 in .*cifar-100-python are incomplete or damaged"):
        read("cifar-100", tmp_path)
    with pytest.raises(InputError, match=r"no CIFAR10 there .*or --download"):
        read("cifar-10", tmp_path)


def test_downloads_into_one_folder_take_turns(tmp_path, monkeypatch):
    inside, most, root = [], [], tmp_path / "new" / "data"

    class Slow:
        classes = ("a", "b")

        def __init__(self, root, train, download):
            assert download
            inside.append(self)
            most.append(len(inside))
            time.sleep(0.05)
            inside.remove(self)
            self.data, self.targets = np.zeros((2, 4, 4), np.uint8), [0, 1]

    monkeypatch.setattr(datasets, "MNIST", Slow)
    with ThreadPoolExecutor(4) as pool:
        each = list(pool.map(lambda _: read("mnist", root, download=True), range(4)))
    assert [len(images) for images in each] == [2] * 4
    assert most == [1] * 4


def write_folder(root, sizes=((6, 6), (6, 6)), mode="RGB"):
    for k, name in enumerate(("cats", "dogs")):
        (root / name).mkdir(parents=True)
        for i, size in enumerate(sizes):
            Image.new(mode, size, 100 * k + i if mode == "L" else (100 * k, i, 255)).save(root / name / f"{i}.png")
    return root


def test_a_folder_of_images(tmp_path):
    folder = read("folder", write_folder(tmp_path / "rgb"))
    assert folder.shape == (3, 6, 6)
    assert folder.images[:, :, 0, 0].tolist() == [[0, 0, 255], [0, 1, 255], [100, 0, 255], [100, 1, 255]]
    assert (folder.labels.tolist(), folder.classes) == ([0, 0, 1, 1], 2)
    assert read("folder", write_folder(tmp_path / "grey", mode="L")).shape == (1, 6, 6)
    uneven = write_folder(tmp_path / "uneven", sizes=((6, 6), (9, 5)))
    with pytest.raises(InputError, match=r"1.png' is 9 x 5 pixels, and .*0.png' 6 x 6"):
        read("folder", uneven)
    assert read("folder", uneven, image_size=4).shape == (3, 4, 4)
    (uneven / "cats" / "0.png").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"0.png': not an image, or damaged"):
        read("folder", uneven, image_size=4)
    whole = bytearray((uneven / "dogs" / "0.png").read_bytes())
    whole[-20] ^= 1
    (uneven / "cats" / "0.png").write_bytes(whole)
    with pytest.raises(InputError, match=r"0.png': not an image, or damaged"):
        read("folder", uneven, image_size=4)
    with pytest.raises(InputError, match=r"data_root='.*nowhere': does not exist; give a folder"):
        read("folder", tmp_path / "nowhere")


def test_any_torch_dataset():
    grey, colour = torch.rand(5, 5), torch.rand(3, 5, 5)
    mine = from_dataset([(grey, 1), (colour, 0)], classes=4)
    assert mine.classes == 4
    torch.testing.assert_close(mine.images, torch.stack([grey.expand(3, 5, 5), colour]))
    with pytest.raises(InputError, match="holds no image"):
        from_dataset([])
    with pytest.raises(InputError, match=r"dataset\[1\]: image of type ndarray; give PIL images or tensors"):
        from_dataset([(grey, 0), (grey.numpy(), 1)])
    for label in ("cat", 1.7, None, torch.tensor(1.7)):
        with pytest.raises(InputError, match=rf"dataset\[0\]: label={re.escape(repr(label))}; give an integer"):
            from_dataset([(grey, label)])


def test_folders_that_merely_are_as_many_are_no_mnist(tmp_path):
    for k in range(10):
        (tmp_path / str(k)).mkdir()
        Image.new("L", (28, 28), 20 * k).save(tmp_path / str(k) / "0.png")
    mnist = read("mnist", tmp_path)
    assert (mnist.shape, mnist.labels.tolist()) == ((1, 28, 28), list(range(10)))
    assert read("mnist", tmp_path, image_size=14).shape == (1, 14, 14)
    with pytest.raises(InputError, match=r"no CIFAR10 there, but images of shape \(1, 28, 28\), not \(3, 32, 32\)"):
        read("cifar-10", tmp_path)


def test_labels_of_any_integer_type():
    kept = Images(torch.rand(3, 1, 2, 2), torch.tensor([2, 0, 1], dtype=torch.int32), 3)
    assert (kept.labels.dtype, kept.labels.tolist()) == (torch.int64, [2, 0, 1])
    assert len(Images(torch.rand(3, 1, 2, 2), torch.tensor([2, 0, 255], dtype=torch.uint8), 256)) == 3


def test_fingerprints_tell_other_images_apart():
    images, labels = torch.randint(256, (5, 1, 3, 3), dtype=torch.uint8), torch.tensor([0, 1, 2, 1, 0])
    first = Images(images, labels, 3).fingerprint
    assert Images(images.clone(), labels.int(), 3).fingerprint == first
    swapped = images[[4, 1, 2, 3, 0]]  # of one class
    others = (images, labels.roll(1)), (255 - images, labels), (images[1:], labels[1:]), (swapped, labels)
    assert len({first, *(Images(*other, 3).fingerprint for other in others)}) == 5


def test_fingerprints_are_of_images_before_they_are_resized(tmp_path):
    folder = write_folder(tmp_path / "rgb")
    assert read("folder", folder, image_size=4).fingerprint == read("folder", folder).fingerprint
    digits = read("digits")
    assert digits.resized(4).resized(2).fingerprint == digits.fingerprint
    assert digits[torch.arange(9)].fingerprint != digits.fingerprint


def test_resizing_keeps_means_and_bytes():
    images = Images(torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8), torch.zeros(4, dtype=torch.long), 1)
    small = images.resized(4)
    assert small.images.dtype == torch.uint8
    torch.testing.assert_close(small.images.float().mean(), images.images.float().mean(), atol=2.0, rtol=0)
    with pytest.raises(InputError, match="image_size=0"):
        images.resized(0)


def test_npz_files(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, images=np.full((4, 6, 6), 255, np.uint8), labels=np.arange(4), classes=9)
    mine = read(str(path))
    assert mine.images.shape == (4, 1, 6, 6)
    assert mine.images.unique().tolist() == [255]
    assert mine.classes == 9
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"not an .npz file, or damaged"):
        read(str(path))


def test_damaged_or_strange_npz_files_are_named(tmp_path):
    path, images = tmp_path / "mine.npz", np.random.default_rng(0).integers(0, 9, (40, 6, 6), np.uint8)
    np.savez_compressed(path, images=images, labels=np.arange(40) % 2)
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 20):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
        try:
            read(str(path))
        except InputError:
            refused += 1
    assert refused > 0.8 * len(whole) / 20  # dates and flags of the archive do not matter
    np.savez(path, images=images.astype(">f4") / 9, labels=np.arange(40).astype(">u2") % 2, classes=2)
    assert read(str(path)).shape == (1, 6, 6)
    for change, message in (
        ({"labels": np.array(["a", "b"])}, r"labels holds 2 values of type <U1; need integers"),
        ({"labels": np.array([0.2, 1.9])}, r"labels holds 2 values of type float64; need integers"),
        ({"images": np.zeros((0, 6, 6)), "labels": np.zeros(0, int)}, r"images holds 0 values"),
        ({"classes": np.array(["cat", "dog"])}, r"classes=\['cat' 'dog'\]: need one integer"),
    ):
        np.savez(path, **{"images": images[:2], "labels": np.arange(2)} | change)
        with pytest.raises(InputError, match=message):
            read(str(path))


@pytest.mark.parametrize("writable", [True, False])
def test_a_folder_that_cannot_be_written_is_read_without_a_lock(tmp_path, monkeypatch, writable):
    write_mnist(tmp_path, np.zeros((3, 28, 28), np.uint8), np.array([7, 0, 9], dtype=np.uint8))
    monkeypatch.setattr("os.access", lambda path, mode: writable)
    assert len(read("mnist", tmp_path, download=True)) == 3
    assert (tmp_path / ".download.lock").exists() == writable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(4, 8, 8)}, r"images of shape \(4, 8, 8\)"),
        ({"images": torch.randint(256, (4, 1, 8, 8))}, "torch.int64.*torch.uint8"),
        ({"images": torch.full((4, 1, 8, 8), 7.0)}, r"images within \[7, 7\]: rescale"),
        ({"images": torch.full((4, 1, 8, 8), math.nan)}, r"images\[0\] holds NaN"),
        ({"labels": torch.tensor([0, 1, 2, 10])}, r"labels\[3\]=10: must lie within \[0, 10\)"),
        ({"labels": torch.tensor([0, -1, 2, 1])}, r"labels\[1\]=-1"),
        ({"labels": torch.tensor([0, 1])}, r"labels of shape \(2,\)"),
        ({"labels": torch.rand(4)}, "torch.float32"),
        ({"images": torch.rand(0, 1, 8, 8), "labels": torch.zeros(0, dtype=torch.long)}, "there is no pixel"),
    ],
)
def test_wrong_images_are_refused(change, message):
    right = {"images": torch.rand(4, 1, 8, 8), "labels": torch.arange(4), "classes": 10}
    with pytest.raises(InputError, match=message):
        Images(**right | change)


def test_missing_data_is_refused(tmp_path):
    with pytest.raises(InputError, match="dataset='mnits': unknown; choose one of"):
        read("mnits")
    with pytest.raises(InputError, match="data_root=None"):
        read("mnist")
    with pytest.raises(InputError, match="no MNIST there"):
        read("mnist", tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read(str(tmp_path / "none.npz"))
    np.savez(tmp_path / "part.npz", images=np.zeros((1, 2, 2)))
    with pytest.raises(InputError, match=r"lacks \['labels'\]"):
        read(str(tmp_path / "part.npz"))
