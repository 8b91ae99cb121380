"""Random transformations of whole batches of images, on the device of the images."""

import math

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config

KNOTS = 5
"""Number of points along each side at which the elastic field is drawn; it is interpolated smoothly between them."""


class Augment(Config):
    """A random rotation, scaling, shear, shift, mirroring and change of colours, drawn anew for every image.

    Call it with images (n, channels, height, width) of floats within [0, 1]; it returns images of the same shape.
    Pixels from outside an image are black. Random numbers come from torch's default generator, which `fit` seeds.
    `AUGMENTATIONS` lists some augmentations by name.

    Attributes:
        degrees: largest rotation, in degrees.
        scale: largest relative change of size.
        shear: largest shear, in degrees.
        translate: largest shift, as a share of the image's side.
        elastic: largest shift at the knots of a smooth random field, as a share of the image's side. Between knots the
            shift may be larger.
        flip: whether images are mirrored left to right, each with probability one half.
        colour: largest relative change of brightness, of contrast and of saturation.
        erase: side of a square that is blacked out, as a share of the image's side. Its centre is drawn uniformly
            within each image.
    """

    degrees: float = pydantic.Field(default=15, ge=0, le=180)
    scale: float = pydantic.Field(default=0.15, ge=0, lt=1)
    shear: float = pydantic.Field(default=10, ge=0, lt=90)
    translate: float = pydantic.Field(default=0.12, ge=0, le=1)
    elastic: float = pydantic.Field(default=0, ge=0, le=1)
    flip: bool = False
    colour: float = pydantic.Field(default=0, ge=0, lt=1)
    erase: float = pydantic.Field(default=0, ge=0, lt=1)

    def __call__(self, images: Tensor) -> Tensor:
        images = self._moved(images)
        if self.colour:
            images = self._coloured(images)
        return self._erased(images) if self.erase else images

    def _moved(self, images: Tensor) -> Tensor:
        noise = torch.rand(5, len(images), device=images.device) * 2 - 1
        angle, shear = noise[0] * math.radians(self.degrees), torch.tan(noise[1] * math.radians(self.shear))
        scale, shift = 1 + noise[2] * self.scale, noise[3:] * 2 * self.translate
        cos, sin = angle.cos() * scale, angle.sin() * scale
        ratio = images.shape[2] / images.shape[3]  # the grid's units are half a height and half a width
        first = torch.stack([cos, (cos * shear - sin) * ratio, shift[0]], -1)
        if self.flip:
            first = first * (torch.rand(len(images), 1, device=images.device) < 0.5).to(first.dtype).mul(2).sub(1)
        second = torch.stack([sin / ratio, sin * shear + cos, shift[1]], -1)
        grid = F.affine_grid(torch.stack([first, second], 1), list(images.shape), align_corners=False)
        if self.elastic:
            knots = torch.rand(len(images), 2, KNOTS, KNOTS, device=images.device) * 2 - 1
            down, across = (_between_knots(side, images.device) for side in images.shape[2:])
            grid = grid + 2 * self.elastic * (down @ knots @ across.T).permute(0, 2, 3, 1)
        return F.grid_sample(images, grid, align_corners=False)

    def _coloured(self, images: Tensor) -> Tensor:
        brightness, contrast, saturation = 1 + self.colour * (
            torch.rand(3, len(images), 1, 1, 1, device=images.device) * 2 - 1
        )
        images = images * brightness
        grey = images.mean(1, keepdim=True)
        images = grey + saturation * (images - grey)
        level = grey.mean((2, 3), keepdim=True)
        return (level + contrast * (images - level)).clamp(0, 1)

    def _erased(self, images: Tensor) -> Tensor:
        n, _, height, width = images.shape
        row, column = torch.rand(2, n, 1, device=images.device)
        rows = (torch.arange(height, device=images.device) + 0.5 - row * height).abs() < self.erase * height / 2
        columns = (torch.arange(width, device=images.device) + 0.5 - column * width).abs() < self.erase * width / 2
        return images * ~(rows.view(n, 1, height, 1) & columns.view(n, 1, 1, width))


def _between_knots(side: int, device: torch.device) -> Tensor:
    """Weights of the `KNOTS` points in the cubic interpolation at each pixel along a side, (side, knots)."""
    points = torch.eye(KNOTS, device=device).view(1, 1, KNOTS, KNOTS)
    return F.interpolate(points, (side, KNOTS), mode="bicubic", align_corners=True)[0, 0]


AUGMENTATIONS: dict[str, Augment | None] = {
    "none": None,
    "digits": Augment(degrees=10, scale=0.1, translate=0.1),
    "handwriting": Augment(),
    "handwriting-elastic": Augment(elastic=0.06),
    "garments": Augment(degrees=5, scale=0.1, shear=0, translate=0.1, flip=True),
    "photos": Augment(degrees=0, scale=0.15, shear=0, translate=0.12, flip=True, colour=0.3),
}
"""Augmentations by name."""
