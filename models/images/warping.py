"""Pictures turned, moved, enlarged and mirrored a little: what a classifier may learn in place of the picture itself.

A picture's place x (in pixels, from the centre) takes what was in

    R(α) diag(m, 1) x / s + t,   α ~ U[-turn, turn],  s ~ U[1 - scale, 1 + scale],  t ~ U[-shift, shift]²,  m = ±1

with numbers of its own for every picture (Simard et al. 2003, "Best practices for convolutional neural networks applied
to visual document analysis", for what this does for few pictures). Bilinear; beyond the border is the border. It has no
gradient and needs none: pictures come from records, and torch's sampling has equal bits forward on a GPU too.
What is predicted is the record as it is: where incoming pictures are warped, in a pass of its own without gradients.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from models.classifier import ClassifierOptions, Shown
from models.learner import Options


class Warp(Options):
    """The farthest that a picture is changed; by default not at all."""

    turn_degrees: float = Field(0.0, ge=0, le=180)
    shift_pixels: float = Field(0.0, ge=0)
    scale_percent: float = Field(0.0, ge=0, lt=100)
    mirror: bool = False  # left and right, every second picture: wrong for letters and digits


NONE = Warp()


class WarpedOptions(ClassifierOptions):
    """What every classifier of pictures that learns its own features can be told."""

    augment: Warp = Warp()  # of pictures, anew in every update
    augment_incoming: bool = True  # or of replayed ones alone

    def shown(self) -> Shown:
        """What a learner is shown under these options."""
        return Shown() if self.augment == NONE else Warped(self.augment, self.augment_incoming)


class Warped(Shown):
    """Pictures warped: all of them, or replayed ones alone."""

    def __init__(self, warp: Warp, incoming: bool) -> None:
        self._warp, self.changes_incoming = warp, incoming

    def __call__(self, x: Tensor, incoming: int, rng: torch.Generator) -> Tensor:
        plain = 0 if self.changes_incoming else incoming
        return torch.cat([x[:plain], warped(x[plain:], self._warp, rng)]) if plain else warped(x, self._warp, rng)


def warped(x: Tensor, warp: Warp, rng: torch.Generator) -> Tensor:
    """x (B, C, H, W) uint8 → the same shape and type, by random numbers from the CPU; x itself where warp is `NONE`."""
    if warp == NONE or not len(x):
        return x
    height, width = x.shape[2:]
    turn, scale, right, down, side = torch.rand(5, len(x), generator=rng) * 2 - 1  # (B,) each, in [-1, 1)
    angle = turn * math.radians(warp.turn_degrees)
    shrunk = 1 / (1 + scale * (warp.scale_percent / 100))
    mirrored = torch.where((side < 0) & warp.mirror, -1.0, 1.0)
    cos, sin = shrunk * angle.cos(), shrunk * angle.sin()
    # As torch counts, a side is 2 long, whatever its number of pixels.
    across = torch.stack([mirrored * cos, -sin * (height / width), right * (2 * warp.shift_pixels / width)], 1)
    along = torch.stack([mirrored * sin * (width / height), cos, down * (2 * warp.shift_pixels / height)], 1)
    places = F.affine_grid(torch.stack([across, along], 1).to(x.device), list(x.shape), align_corners=False)
    found = F.grid_sample(x.to(torch.float32), places, padding_mode="border", align_corners=False)
    return found.round_().to(torch.uint8)
