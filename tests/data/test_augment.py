"""Augmentation: each transformation against its definition."""

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

from pyro_isingvit import Augment
from pyro_isingvit.data import AUGMENTATIONS
from pyro_isingvit.data.augment import _between_knots


def test_a_rotation_keeps_the_shape_of_what_is_in_a_wide_image(monkeypatch):
    """A bar, 16 wide and 2 high, turned by 90 degrees within 20 x 40 pixels."""
    image = torch.zeros(1, 1, 20, 40)
    image[..., 9:11, 12:28] = 1
    monkeypatch.setattr(torch, "rand", lambda *size, device=None: torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5]).view(5, 1))
    turned = Augment(degrees=90, scale=0, shear=0, translate=0)(image)[0, 0]
    expected = torch.zeros(20, 40)
    expected[2:18, 19:21] = 1
    torch.testing.assert_close(turned, expected, atol=1e-4, rtol=0)


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


def test_half_of_the_images_are_mirrored():
    image = torch.rand(1, 3, 6, 6)
    out = Augment(degrees=0, scale=0, shear=0, translate=0, flip=True)(image.expand(400, -1, -1, -1))
    same, mirrored = ((out - reference).abs().amax((1, 2, 3)) < 1e-5 for reference in (image, image.flip(-1)))
    assert (same | mirrored).all()
    assert 150 < int(mirrored.sum()) < 250


def test_colours_change_by_no_more_than_they_may():
    still = {"degrees": 0, "scale": 0, "shear": 0, "translate": 0}
    grey = torch.full((200, 3, 4, 4), 0.5)
    out = Augment(**still, colour=0.2)(grey)
    torch.testing.assert_close(out, out[:, :1, :1, :1].expand_as(out))  # no contrast or saturation to change
    assert out.min() >= 0.4 - 1e-6
    assert out.max() <= 0.6 + 1e-6
    assert out[:, 0, 0, 0].std() > 0.03


def test_a_square_is_blacked_out():
    out = Augment(degrees=0, scale=0, shear=0, translate=0, erase=0.5)(torch.ones(500, 1, 8, 8))
    black = (out == 0).flatten(1).sum(1)
    assert black.max() <= 25
    assert black.float().mean() > 6


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (20, 40)])
def test_elastic_shifts_parts_apart_smoothly(axis, height, width):
    still = {"degrees": 0, "scale": 0, "shear": 0, "translate": 0}
    side = (height, width)[axis - 2]
    ramp = torch.linspace(0, 1, side).view(-1, 1) if axis == 2 else torch.linspace(0, 1, side)
    ramp = ramp.expand(200, 1, height, width)  # its value says where a pixel came from
    out = Augment(**still, elastic=0.1)(ramp)
    edge = side // 5 + 1
    shift = ((out - ramp) * (side - 1) / side)[..., edge:-edge, edge:-edge]  # a share, where nothing came from outside
    assert 0.02 < shift.std() < 0.1
    assert shift.abs().max() < 0.19
    assert shift.flatten(1).std(1).median() > 0.02  # within an image: not one shift of all
    assert shift.diff(dim=2).abs().max() < 0.06
    assert shift.diff(dim=3).abs().max() < 0.06


def test_elastic_interpolates_between_knots():
    knots = torch.rand(3, 2, 5, 5)
    expected = F.interpolate(knots, (28, 20), mode="bicubic", align_corners=True)
    torch.testing.assert_close(_between_knots(28, "cpu") @ knots @ _between_knots(20, "cpu").T, expected)


def test_augmentations_by_name():
    assert AUGMENTATIONS["none"] is None
    for augment in AUGMENTATIONS.values():
        if augment is not None:
            assert augment(torch.rand(2, 3, 8, 8)).shape == (2, 3, 8, 8)
