"""A small residual network for CIFAR-10: 14 layers of 16, 32 and 64 channels (He et al., CVPR 2016), 175,000 weights.

    isingvit fit --dataset cifar-10 --data-root FOLDER --network benchmarks/resnet.py:resnet14 --train 250 --balanced \
        --test official --augment flip_crop --steps 4000
"""

from itertools import pairwise

from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions beside a shortcut, which is one of 1 x 1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


def resnet14(channels: int, classes: int) -> nn.Module:
    widths = (16, 16, 32, 64)
    blocks = [
        block
        for before, width in pairwise(widths)
        for block in (Block(before, width, 1 if width == before else 2), Block(width, width, 1))
    ]
    stem = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
