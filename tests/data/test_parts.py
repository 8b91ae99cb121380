"""Splits without a leak."""

import pytest
import torch

from pyro_isingvit import Images, InputError, split


def numbered(n: int) -> Images:
    """Images that carry their own number."""
    return Images((torch.arange(n) / n).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone(), torch.arange(n) % 2, 2)


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


def test_a_tenth_is_tested_on_unless_told_otherwise():
    assert len(split(numbered(100), 30).test) == 10


def test_an_official_test_set_stays_whole_and_apart():
    official = numbered(7)
    official = Images(1 - official.images, official.labels, official.classes)
    data = split(numbered(100), train=60, test=official, validation=40, seed=1)
    assert data.test is official
    assert len(set(data.train.images[:, 0, 0, 0].tolist() + data.validation.images[:, 0, 0, 0].tolist())) == 100
    with pytest.raises(InputError, match=r"test of shape \(1, 3, 3\)"):
        split(numbered(100), 60, Images(torch.rand(4, 1, 3, 3), torch.zeros(4, dtype=torch.long), 2))


def test_balanced_subsets_have_equal_shares():
    labels = torch.tensor([0] * 80 + [1] * 15 + [2] * 5)[torch.randperm(100)]
    images = Images((torch.arange(100) / 100).view(-1, 1, 1, 1), labels, 3)
    data = split(images, train=7, test=1, validation=1, balanced=True, seed=2)
    assert sorted(data.train.labels.bincount().tolist()) == [2, 2, 3]
    assert len(set(data.train.images.flatten().tolist())) == 7
    again = split(images, train=7, test=1, validation=1, balanced=True, seed=2)
    assert torch.equal(again.train.images, data.train.images)
    with pytest.raises(InputError, match=r"train=60, balanced: class 1 has \d+ images left for training, not 20"):
        split(images, train=60, test=1, validation=1, balanced=True)


def test_more_images_than_there_are_and_none_are_refused():
    with pytest.raises(InputError, match=r"train=90 .*only 100 images; train=70 or fewer"):
        split(numbered(100), train=90, test=20)
    with pytest.raises(InputError, match="validation=0"):
        split(numbered(100), train=50, test=20, validation=0)


def test_a_class_without_training_images_is_warned_of():
    labels = torch.tensor([0] * 6 + [1] * 6 + [2])
    images = Images(torch.arange(13 * 4).float().view(13, 1, 2, 2) / 52, labels, 3, names=("ash", "birch", "cedar"))
    with pytest.warns(UserWarning, match=r"1 of 3 classes \('cedar'\) have no training image, .*another seed"):
        split(images, train=3, test=5, validation=5, seed=1)
    with pytest.raises(InputError, match=r"class 'cedar' has 0 images left for training, not 1; give more images"):
        split(images, train=3, test=5, validation=5, seed=1, balanced=True)


def test_few_validation_images_are_warned_of():
    images = Images(torch.rand(300, 1, 4, 4), torch.arange(300) % 3, 3)
    with pytest.warns(UserWarning, match=r"validation: 1 of 300 images are left for it, too few"):
        split(images, train=269)
    assert len(split(images, train=269, validation=1).validation) == 1  # as was asked for
