"""Data sets, splits without a leak, augmentation, refusals."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from pyro_isingvit import Augment, Images, InputError, read, split


def numbered(n: int) -> Images:
    """Images that carry their own number."""
    return Images((torch.arange(n) / n).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone(), torch.arange(n) % 2, 2)


def test_digits_come_with_a_dependency():
    digits = read("digits")
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.max() == 1
    assert digits.labels.bincount().min() > 150


def test_parts_share_no_image_and_follow_the_seed():
    everything = numbered(100)
    data = split(everything, train=40, test=20, validation=10, seed=3)
    parts = [set(part.images[:, 0, 0, 0].tolist()) for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [40, 10, 20]
    assert len(set.union(*parts)) == 70
    same = split(everything, 40, 20, 10, seed=3)
    assert torch.equal(same.train.images, data.train.images)
    # more training images leave the test part as it was
    assert torch.equal(split(everything, 60, 20, 10, seed=3).test.images, data.test.images)
    assert not torch.equal(split(everything, 40, 20, 10, seed=4).test.images, data.test.images)


def test_validation_is_as_large_as_training_where_there_is_enough():
    assert len(split(numbered(100), 30, 20).validation) == 30
    assert len(split(numbered(100), 70, 20).validation) == 10


def test_idx_files_of_torchvision(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    labels = np.array([7, 0, 9], dtype=np.uint8)
    for part in ("train", "t10k"):
        header = np.array([2051, 3, 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(np.array([2049, 3], dtype=">i4").tobytes() + labels.tobytes())
    mnist = read("mnist", tmp_path)
    torch.testing.assert_close(mnist.images[:, 0], torch.from_numpy(images).float() / 255)
    assert mnist.labels.tolist() == [7, 0, 9]


def test_npz_files(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, images=np.full((4, 6, 6), 255, np.uint8), labels=np.arange(4), classes=9)
    mine = read(str(path))
    assert mine.images.shape == (4, 1, 6, 6)
    assert mine.images.unique().tolist() == [1.0]
    assert mine.classes == 9


def test_a_rotation_and_shift_equal_scipys():
    """One image, the drawn numbers set by hand: 90 degrees, and a shift by a quarter of the width."""
    image = torch.rand(1, 1, 8, 8)

    def with_noise(augment, noise, monkeypatch):
        monkeypatch.setattr(torch, "rand", lambda *size, device=None: (torch.tensor(noise).view(5, 1) + 1) / 2)
        return augment(image)[0, 0].numpy()

    with pytest.MonkeyPatch.context() as patch:
        turned = with_noise(Augment(degrees=90, scale=0, shear=0, translate=0), [1.0, 0, 0, 0, 0], patch)
    np.testing.assert_allclose(turned, scipy.ndimage.rotate(image[0, 0], 90, order=1), atol=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        moved = with_noise(Augment(degrees=0, scale=0, shear=0, translate=0.25), [0.0, 0, 0, 1, 0], patch)
    np.testing.assert_allclose(moved, scipy.ndimage.shift(image[0, 0], (0, -2), order=1), atol=1e-5)


def test_augmentation_differs_within_a_batch_and_stays_in_range():
    batch = torch.rand(1, 1, 8, 8).expand(16, -1, -1, -1)
    out = Augment()(batch)
    assert out.shape == batch.shape
    assert len({tuple(image.flatten().tolist()) for image in out}) == 16
    assert out.min() >= 0
    assert out.max() <= 1
    torch.testing.assert_close(Augment(degrees=0, scale=0, shear=0, translate=0)(batch), batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(4, 8, 8)}, r"images of shape \(4, 8, 8\)"),
        ({"images": torch.randint(256, (4, 1, 8, 8))}, "torch.int64"),
        ({"images": torch.full((4, 1, 8, 8), 7.0)}, r"images within \[7, 7\]: rescale"),
        ({"images": torch.full((4, 1, 8, 8), math.nan)}, r"images\[0\] holds NaN"),
        ({"labels": torch.tensor([0, 1, 2, 10])}, r"labels\[3\]=10: must lie within \[0, 10\)"),
        ({"labels": torch.tensor([0, -1, 2, 1])}, r"labels\[1\]=-1"),
        ({"labels": torch.tensor([0, 1])}, r"labels of shape \(2,\)"),
        ({"labels": torch.rand(4)}, "torch.float32"),
        ({"images": torch.rand(0, 1, 8, 8), "labels": torch.zeros(0, dtype=torch.long)}, "there is none"),
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
    with pytest.raises(InputError, match=r"train=90 .*only 100 images; train=70 or fewer"):
        split(numbered(100), train=90, test=20)
    with pytest.raises(InputError, match="validation=0"):
        split(numbered(100), train=50, test=20, validation=0)
