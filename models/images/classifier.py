"""Image classifier: a small convolutional network for any size from 8 × 8 to 128 × 128 and any number of channels.

stem: conv 5 × 5 (stride 2 above 16 pixels) → GroupNorm → ReLU
then, until a side is at most 8 pixels, and at least once: conv 3 × 3 stride 2 → GroupNorm → ReLU
then: conv 3 × 3 → GroupNorm → ReLU → dense → leaky ReLU → head

Strides halve the picture, not pooling: on one CPU thread that is twice as fast, and its gradient has equal bits on
every run on a GPU too. GroupNorm (Wu and He 2018) normalises each record alone, so that a batch of one, or a batch of
one class, is learned like any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.classifier import ClassifierLearner, ClassifierNetwork
from models.images.warping import WarpedOptions
from models.learner import Blueprint, structural
from models.network import pixels, seeded, served

GROUPS = 8


class ImageClassifierOptions(WarpedOptions):
    """`width` is the number of channels after the stem, and half of it after that."""

    width: int = structural(32, ge=GROUPS, multiple_of=GROUPS)
    hidden: int = structural(128, ge=1)
    slope: float = structural(0.1, before=0.0, ge=0, lt=1)  # of a dense unit below 0


class ConvolutionBlock(nn.Module):
    """Convolution, norm, ReLU; the norm's offset would make a bias of the convolution idle."""

    def __init__(self, before: int, after: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.GroupNorm(GROUPS, after)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu_(self.norm(self.convolution(maps)))


class ImageClassifier(ClassifierNetwork):
    """The network. `shape` is (C, H, W)."""

    def __init__(self, options: ImageClassifierOptions, shape: tuple[int, ...], classes: Sequence[str]) -> None:
        super().__init__(options.hidden, classes)
        channels, height, width = shape
        narrow, wide = options.width, 2 * options.width
        stride = 2 if max(height, width) > 16 else 1
        blocks = [ConvolutionBlock(channels, narrow, kernel=5, stride=stride)]
        height, width = math.ceil(height / stride), math.ceil(width / stride)
        before = narrow
        while before == narrow or max(height, width) > 8:
            blocks.append(ConvolutionBlock(before, wide, kernel=3, stride=2))
            height, width, before = math.ceil(height / 2), math.ceil(width / 2), wide
        blocks.append(ConvolutionBlock(wide, wide, kernel=3, stride=1))
        self.blocks = nn.Sequential(*blocks)
        self.dense = nn.Linear(wide * height * width, options.hidden)
        self.slope = options.slope

    def features(self, x: Tensor) -> Tensor:
        return self.encode(pixels(x))

    def encode(self, pictures: Tensor) -> Tensor:
        """pictures (B, C, H, W) float32 in [0, 1] → features (B, hidden)"""
        maps = self.blocks(pictures)  # (B, 2 · width, h, w), h and w at most 8
        return nn.functional.leaky_relu(self.dense(maps.flatten(1)), self.slope)


def learner(
    options: ImageClassifierOptions, shape: tuple[int, ...], seed: int, device: torch.device
) -> ClassifierLearner[ImageClassifier]:
    network = seeded(lambda: ImageClassifier(options, shape, ()), seed, device)
    memory = options.memory(shape, torch.uint8, device)
    return ClassifierLearner(network, options, memory, device, shown=options.shown())


model = served(ImageClassifier)
BLUEPRINT = Blueprint(ImageClassifierOptions, learner, model, "image")
