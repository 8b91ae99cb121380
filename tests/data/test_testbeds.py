"""Test beds: what is said to be relevant carries the label, and nothing else does."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pyro_isingvit import InputError
from pyro_isingvit.data import DATASETS, digits_decoys, planted_network, read
from pyro_isingvit.network.stem import to_patches


def accuracy(images, labels):
    """Of a linear classifier, on images that it did not see."""
    pixels, labels, half = images.flatten(1).numpy(), labels.numpy(), len(images) // 2
    model = LogisticRegression(C=0.1, max_iter=300).fit(pixels[:half], labels[:half])
    return float(model.score(pixels[half:], labels[half:]))


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("digits", 0.05, 0.2), ("noise", 0.05, 0.2), ("correlated", 0.75, 1)]
)
def test_only_the_first_channel_tells_the_label(kind, low, high):
    bed = digits_decoys(2, kind)
    channels = bed.images.images
    assert torch.equal(channels[:, :1], read("digits").images)
    assert accuracy(channels[:, :1], bed.images.labels) > 0.9
    for k in (1, 2):  # by chance one in ten; a mixture with its own digit tells something
        assert low < accuracy(channels[:, k], bed.images.labels) < high
    assert bed.relevant.sum((1, 2)).tolist() == [50, 0, 0]
    counts = [torch.unique(own, return_counts=True)[1].max() for own in channels[:, 0].flatten(1).T]
    varies = torch.stack(counts).view(8, 8) <= 0.95 * len(channels)  # the rest is blank in nearly all digits
    assert torch.equal(bed.relevant[0], varies)


def test_decoys_follow_their_seed():
    one, same, other = (digits_decoys(1, seed=seed).images.images for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_data_set_by_name():
    images = read("digits-decoys")
    assert torch.equal(images.images, digits_decoys().images.images)
    assert "digits-decoys" in DATASETS
    with pytest.raises(InputError, match=r"data_root='somewhere'"):
        read("digits-decoys", "somewhere")


@pytest.mark.parametrize("patch_size", [2, 4, 8])
def test_features_are_in_the_order_of_the_network(patch_size):
    bed = digits_decoys(3)
    expected = to_patches(bed.relevant.unsqueeze(0), (patch_size, patch_size))[0].any(0)
    assert torch.equal(bed.features(patch_size), expected)
    assert len(bed.features(patch_size)) == 4 * patch_size**2
    with pytest.raises(InputError, match="patch_size=3"):
        bed.features(3)


def test_the_planted_network_reads_what_it_is_said_to_read():
    bed = planted_network(4000, relevant=3, seed=1)
    features = bed.features(4)
    assert features.sum() == 3
    pixels, labels = to_patches(bed.images.images, (4, 4)).mean(1), bed.images.labels
    alone = [accuracy(pixels[:, chosen], labels) for chosen in (features, ~features)]
    assert alone[0] > alone[1] + 0.15
    assert abs(alone[1] - labels.bincount().max() / len(labels)) < 0.03  # what is not read says nothing


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: digits_decoys(-1), "decoys=-1"),
        (lambda: digits_decoys(1, "letters"), "kind='letters': choose one of"),
        (lambda: planted_network(0), "images=0"),
        (lambda: planted_network(10, relevant=17), "relevant=17"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(InputError, match=message):
        make()
