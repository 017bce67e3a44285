"""Image classifier: the slim ResNet-18 of continual learning, with a norm that treats every record alone.

He et al. 2016, "Deep residual learning for image recognition", with `width` channels where they have 64, as in
Lopez-Paz and Ranzato 2017, "Gradient episodic memory for continual learning" (20):

stem: conv 3 × 3 → GroupNorm → ReLU; four stages of two blocks, with 1, 2, 4 and 8 times `width` channels, the
first block of stages 2 to 4 with stride 2; the mean over the picture; head. A block is

    ReLU(x' + GroupNorm(conv 3 × 3(ReLU(GroupNorm(conv 3 × 3(x))))))

where x' is x, or GroupNorm(conv 1 × 1(x)) where the shape changes. GroupNorm (Wu and He 2018) stands where they have
batch norm: a batch of a stream is no sample of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.classifier import ClassifierLearner, ClassifierNetwork
from models.images.warping import WarpedOptions
from models.learner import Blueprint, structural
from models.network import Normed, pixels, seeded, served

GROUPS = 4


class ImageResnetOptions(WarpedOptions):
    """`width` is the number of channels of the first stage; the features are eight times as wide."""

    width: int = structural(20, ge=GROUPS, multiple_of=GROUPS)


class ResnetBlock(nn.Module):
    """Two units and the way round them."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.first = Normed(before, after, GROUPS, stride=stride)
        self.second = Normed(after, after, GROUPS)
        same = before == after and stride == 1
        self.around = nn.Identity() if same else Normed(before, after, GROUPS, kernel=1, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu_(self.second(torch.relu_(self.first(maps))) + self.around(maps))


class ImageResnet(ClassifierNetwork):
    """The network. `shape` is (C, H, W), of any height and width."""

    def __init__(self, options: ImageResnetOptions, shape: tuple[int, ...], classes: Sequence[str]) -> None:
        super().__init__(8 * options.width, classes)
        widths = [options.width * times for times in (1, 1, 2, 4, 8)]
        blocks: list[nn.Module] = [nn.Sequential(Normed(shape[0], options.width, GROUPS), nn.ReLU())]
        for stage, (before, after) in enumerate(pairwise(widths)):
            blocks += [ResnetBlock(before, after, stride=2 if stage else 1), ResnetBlock(after, after, stride=1)]
        self.blocks = nn.Sequential(*blocks)

    def features(self, x: Tensor) -> Tensor:
        return self.encode(pixels(x))

    def encode(self, pictures: Tensor) -> Tensor:
        """pictures (B, C, H, W) float32 in [0, 1] → features (B, 8 · width)"""
        return self.blocks(pictures).mean((2, 3))  # type: ignore[no-any-return]


def learner(
    options: ImageResnetOptions, shape: tuple[int, ...], seed: int, device: torch.device
) -> ClassifierLearner[ImageResnet]:
    network = seeded(lambda: ImageResnet(options, shape, ()), seed, device)
    memory = options.memory(shape, torch.uint8, device)
    return ClassifierLearner(network, options, memory, device, shown=options.shown())


model = served(ImageResnet)
BLUEPRINT = Blueprint(ImageResnetOptions, learner, model, "image")
