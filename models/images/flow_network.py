"""The network of the image flow: a U-Net that tells in which direction a noisy picture lies from its noise.

    patches of p × p pixels → channels, 3 × 3 → block → [halve → block]* → block → [double, 1 × 1 with the map of
    the same size on the way down → block]* → SiLU of a GroupNorm → 3 × 3, channels → patches

p is 2, and 4 above 64 pixels. The first size has `width` channels, all smaller ones twice as many; halving goes on
until no side exceeds 4, or one is odd. A block is the GAN's (`gan_networks.Modulated`): the identity at first, with
norms whose scales and shifts are linear in a code, here of time and class. The last convolution is 0 at first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.images.gan_networks import Doubled, Modulated, halved, identical_at_first, normed
from models.images.vae import Conditions

FREQUENCIES = 16  # of t, from one turn on, each twice the one before but for a part


class Velocity(nn.Module):
    """The U-Net. `shape` is (C, H, W); H and W are multiples of 4, above 64 pixels of 8."""

    def __init__(self, shape: tuple[int, ...], classes: int, *, width: int, depth: int, code: int) -> None:
        super().__init__()
        channels, height, wide = shape
        self.patch = 2 if max(height, wide) <= 64 else 4
        if height % (2 * self.patch) or wide % (2 * self.patch):
            sides = f"multiples of {2 * self.patch}, not {height} × {wide}"
            raise ValueError(f"image-flow needs a height and width that are {sides}.")
        height, wide = height // self.patch, wide // self.patch
        widths = [width]
        while not height % 2 and not wide % 2 and max(height, wide) > 4:
            height, wide = height // 2, wide // 2
            widths.append(2 * width)
        inner = channels * self.patch**2
        self.conditions = Conditions(classes, code)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, code), nn.SiLU(), nn.Linear(code, code))
        self.stem = nn.Conv2d(inner, width, 3, padding=1)
        self.downs = nn.ModuleList(_blocks(each, depth, code) for each in widths)
        self.halves = nn.ModuleList(halved(*pair) for pair in pairwise(widths))
        self.middle = _blocks(widths[-1], 1, code)
        pairs = list(pairwise(widths[::-1]))
        self.doubles = nn.ModuleList(Doubled(*pair) for pair in pairs)
        self.joins = nn.ModuleList(nn.Conv2d(2 * after, after, 1) for _, after in pairs)
        self.ups = nn.ModuleList(_blocks(after, depth, code) for _, after in pairs)
        self.out = nn.Sequential(normed(width), nn.Conv2d(width, inner, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, numbers: Tensor) -> Tensor:
        """x (B, C, H, W), t (B,) from 0 (noise) to 1 (picture), class numbers (B,) → (B, C, H, W)"""
        code = F.silu(self.time(waves(t)) + self.conditions(numbers))
        maps = _through(self.downs[0], self.stem(F.pixel_unshuffle(x, self.patch)), code)
        kept = []
        for halve, blocks in zip(self.halves, list(self.downs)[1:], strict=True):
            kept.append(maps)
            maps = _through(blocks, halve(maps), code)
        maps = _through(self.middle, maps, code)
        for double, join, blocks in zip(self.doubles, self.joins, self.ups, strict=True):
            maps = _through(blocks, join(torch.cat([double(maps), kept.pop()], 1)), code)
        return F.pixel_shuffle(self.out(maps), self.patch)

    def start(self) -> Velocity:
        """Makes each block the identity, and what comes out 0."""
        identical_at_first(self)
        nn.init.zeros_(self.out.get_parameter("1.weight"))
        return self


def waves(t: Tensor) -> Tensor:
    """t (B,) → (B, 2 · FREQUENCIES) sines and cosines"""
    turns = 2 * math.pi * t[:, None] * torch.logspace(-2, 5, FREQUENCIES, base=2, device=t.device)
    return torch.cat([turns.sin(), turns.cos()], 1)


def _blocks(width: int, depth: int, code: int) -> nn.ModuleList:
    return nn.ModuleList(Modulated(width, code) for _ in range(depth))


def _through(blocks: Sequence[nn.Module] | nn.Module, maps: Tensor, code: Tensor) -> Tensor:
    for block in blocks:  # type: ignore[union-attr]
        maps = block(maps, code)
    return maps
