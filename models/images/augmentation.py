"""Differentiable augmentation: what the discriminator sees of real and drawn pictures alike (Zhao et al. 2020).

"Differentiable augmentation for data-efficient GAN training". It sees nothing else, so that it cannot learn a small
stream by heart, and as every change lets the gradient through, the generator learns the pictures as they are:

- "colour": brightness + u, u uniform in [-½, ½]; saturation × u in [0, 2]; contrast × u in [½, 3/2]. Alpha is no
  colour and stays as it is, and a grey picture has no saturation.
- "translation": by up to an eighth of each side, filled with mid-grey.
- "cutout": a rectangle of half of each side, around a uniform place, becomes mid-grey.

Translation is a product with matrices of 0 and 1: exact, and its gradient has a fixed order of summation everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Augmentation = Literal["colour", "translation", "cutout"]


def augmented(x: Tensor, kinds: Sequence[Augmentation], rng: torch.Generator) -> Tensor:
    """x (B, C, H, W) in [-1, 1] → the same shape, each record changed by random numbers of its own from the CPU."""
    for kind in kinds:
        x = CHANGES[kind](x, rng)
    return x


def coloured(x: Tensor, rng: torch.Generator) -> Tensor:
    """Brightness, saturation and contrast."""
    brightness, saturation, contrast = torch.rand(3, len(x), 1, 1, 1, generator=rng).to(x.device)
    colour = x[:, :3] if x.shape[1] >= 3 else x[:, :1]
    rest = x[:, colour.shape[1] :]
    colour = colour + (brightness - 0.5)
    if colour.shape[1] == 3:
        grey = colour.mean(1, keepdim=True)
        colour = grey + (colour - grey) * (2 * saturation)
    mean = colour.mean((1, 2, 3), keepdim=True)
    return torch.cat([mean + (colour - mean) * (contrast + 0.5), rest], 1)


def translated(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each picture moved by whole pixels."""
    down, right = (_moves(len(x), side, rng).to(x) for side in x.shape[2:])
    return down[:, None] @ x @ right[:, None].mT


def _moves(count: int, side: int, rng: torch.Generator) -> Tensor:
    """(B, side, side): 1 where row i takes what was in row j = i - its record's shift."""
    reach = side // 8
    shifts = torch.randint(-reach, reach + 1, (count, 1), generator=rng)
    taken = torch.arange(side) - shifts + reach  # (B, side), from 0 to side - 1 + 2 · reach
    return F.one_hot(taken, side + 2 * reach)[:, :, reach : side + reach]


def cut(x: Tensor, rng: torch.Generator) -> Tensor:
    """A rectangle of each picture made mid-grey."""
    rows, columns = (_within(len(x), side, rng).to(x.device) for side in x.shape[2:])
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def _within(count: int, side: int, rng: torch.Generator) -> Tensor:
    """(B, side) bool: half of the side, around a uniform place."""
    from_centre = torch.arange(side) - torch.randint(side, (count, 1), generator=rng)
    return (from_centre >= -(side // 4)) & (from_centre < side // 4)


CHANGES: dict[Augmentation, Callable[[Tensor, torch.Generator], Tensor]] = {
    "colour": coloured,
    "translation": translated,
    "cutout": cut,
}
