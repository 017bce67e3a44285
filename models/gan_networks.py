"""The networks of the image GAN: residual blocks, a generator, and a discriminator of one or more views.

A block is x + conv 3 × 3(φ(conv 3 × 3(φ(x)))) and begins as the identity (`begun`); φ is SiLU of a GroupNorm, which
knows one record alone. R3GAN has leaky ReLUs and no norms. In networks as narrow as these, with steps as large as a
short stream asks for, R1 and R2 then grew without bound, whatever their weight: the gradient of a gradient knows
nothing of kinks, and without norms a step changes the scores by more the larger the weights have become.

    generator:      z, c → dense → (2·width, h, w) → blocks → [1 × 1, double → blocks]* → φ → 3 × 3 → tanh → 2 × 2
    discriminator:  view → 3 × 3 → blocks → [halve, 1 × 1 → blocks]* → φ → dense → ψ → s(h) + h · v_c / √|h|

h and w are at most 8; all sizes but the finest have 2·width channels, and what is finer than half of the picture is
done by moving 2 × 2 pixels into channels, so that no convolution runs at its full size: that is what two cores afford.
ψ(x) = x/5 + 4/5 softplus(x), a smooth leaky ReLU: its slope is nowhere 0.

Views are what the discriminator is shown of a picture. `Pixels` shows it all. `Projected` shows maps of a frozen
backbone (Sauer et al. 2021, "Projected GANs converge faster"): each map, divided by its own root mean square, goes
through a random 1 × 1 convolution, takes what is deeper, doubled, on top, and goes through a random 3 × 3 convolution;
both stay as they were drawn. Each map has a discriminator of its own, and the score is their mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbone import Backbone
from models.generator import DrawingNetwork
from models.image_generator import Conditions
from models.learner import M
from models.network import seeded


def normed(width: int) -> nn.Module:
    """φ, with up to eight groups."""
    return nn.Sequential(nn.GroupNorm(math.gcd(8, width), width), nn.SiLU())


class Residual(nn.Module):
    """A block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(normed(width), nn.Conv2d(width, width, 3, padding=1))
        self.last = nn.Sequential(normed(width), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, maps: Tensor) -> Tensor:
        update: Tensor = self.last(self.first(maps))
        return maps + update


class Doubled(nn.Module):
    """Twice the size; a 1 × 1 convolution before it changes the number of channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return F.interpolate(self.convolution(maps), scale_factor=2, mode="nearest")


class Halved(nn.Module):
    """Half the size, by the mean of 2 × 2; a 1 × 1 convolution after it changes the number of channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 1)

    def forward(self, maps: Tensor) -> Tensor:
        halved: Tensor = self.convolution(F.avg_pool2d(maps, 2))
        return halved


def begun(module: M) -> M:
    """The same module, each of its blocks the identity (Zhang et al. 2019, "Fixup initialization")."""
    for part in module.modules():
        if isinstance(part, Residual):
            nn.init.zeros_(part.last[1].get_parameter("weight"))
    return module


class ImageGan(DrawingNetwork):
    """The generator. `shape` is (C, H, W); H and W are multiples of 4."""

    def __init__(
        self, shape: tuple[int, ...], classes: Sequence[str], *, latent: int, label_dim: int, width: int, depth: int
    ) -> None:
        super().__init__()
        channels, height, wide = shape
        if height % 4 or wide % 4:
            raise ValueError(f"image-gan needs a height and width that are multiples of 4, not {height} × {wide}.")
        self.shape, self.latent, self.classes = shape, latent, list(classes)
        doublings = 1
        while not (height >> doublings) % 2 and not (wide >> doublings) % 2 and max(height, wide) >> doublings > 8:
            doublings += 1
        widths = [2 * width] * (doublings - 1) + [width]
        self.base = (widths[0], height >> doublings, wide >> doublings)
        self.conditions = Conditions(len(self.classes), label_dim)
        self.dense = nn.Linear(latent + label_dim, math.prod(self.base))
        stages: list[nn.Module] = []
        for level, after in enumerate(widths):
            stages += [Doubled(widths[level - 1], after)] if level else []
            stages += [Residual(after) for _ in range(depth)]
        self.stages = nn.Sequential(*stages, normed(width))
        self.out = nn.Conv2d(width, 4 * channels, 3, padding=1)

    def forward(self, z: Tensor, numbers: Tensor) -> Tensor:
        """z (B, Z), class numbers (B,) → (B, C, H, W) in [-1, 1]"""
        maps = self.dense(torch.cat([z, self.conditions(numbers)], 1)).view(-1, *self.base)
        return F.pixel_shuffle(self.out(self.stages(maps)), 2).tanh()

    def shades(self, z: Tensor, numbers: Tensor) -> Tensor:
        drawn: Tensor = self(z, numbers)
        return 0.5 * (drawn + 1)


class Critic(nn.Module):
    """The discriminator of views (B, c, h, w)."""

    def __init__(self, shape: Sequence[int], *, width: int, depth: int, hidden: int) -> None:
        super().__init__()
        channels, height, wide = shape
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        stages: list[nn.Module] = [Residual(width) for _ in range(depth)]
        before = width
        while max(height, wide) > 8:
            stages += [Halved(before, 2 * width), *(Residual(2 * width) for _ in range(depth))]
            height, wide, before = height // 2, wide // 2, 2 * width
        self.stages = nn.Sequential(*stages, normed(before))
        self.dense = nn.Linear(before * height * wide, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, view: Tensor, wanted: Tensor) -> Tensor:
        """view (B, c, h, w), wanted (B, hidden) the classes' vectors → (B,)"""
        x = self.dense(self.stages(self.stem(view)).flatten(1))
        h = 0.2 * x + 0.8 * F.softplus(x)
        score: Tensor = self.score(h).squeeze(1) + (h * wanted).sum(1) / math.sqrt(h.shape[1])
        return score


class Discriminator(nn.Module):
    """One critic a view; the score is their mean."""

    def __init__(self, shapes: Sequence[Sequence[int]], classes: int, *, width: int, depth: int, hidden: int) -> None:
        super().__init__()
        self.conditions = Conditions(classes, hidden)
        self.critics = nn.ModuleList(Critic(shape, width=width, depth=depth, hidden=hidden) for shape in shapes)

    def forward(self, views: Sequence[Tensor], numbers: Tensor) -> Tensor:
        """views, each (B, c, h, w), and class numbers (B,) → (B,)"""
        wanted = self.conditions(numbers)
        return torch.stack([critic(view, wanted) for critic, view in zip(self.critics, views, strict=True)]).mean(0)


class Pixels(nn.Module):
    """All of a picture, 2 × 2 pixels in the channels."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = shape
        self.shapes = [(4 * channels, height // 2, width // 2)]

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, C, H, W) in [-1, 1] → [(B, 4C, H/2, W/2)]"""
        return [F.pixel_unshuffle(x, 2)]


class Mixing(nn.Module):
    """Random convolutions, drawn once: across the channels of each map, and over it and the deeper ones."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.across = nn.ModuleList(nn.Conv2d(before, width, 1, bias=False) for before in channels)
        self.over = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """maps (B, c, h, w), from shallow to deep → as many of `width` channels"""
        mixed: list[Tensor] = []
        for each, across, over in reversed(list(zip(maps, self.across, self.over, strict=True))):
            narrow = across(each * (each.square().mean((1, 2, 3), keepdim=True) + 1e-6).rsqrt())
            if mixed:
                narrow = narrow + F.interpolate(mixed[-1], size=narrow.shape[2:], mode="nearest")
            mixed.append(over(narrow))
        return mixed[::-1]


class Projected(nn.Module):
    """Maps of a frozen backbone, mixed."""

    def __init__(self, backbone: Backbone, shape: tuple[int, ...], width: int, seed: int, device: torch.device) -> None:
        super().__init__()
        self.backbone = backbone.to(device)
        with torch.no_grad():
            sizes = [maps.shape[1:] for maps in backbone.maps(torch.zeros(1, *shape, device=device))]
        self.shapes = [(width, *size[1:]) for size in sizes]
        self.mixing = seeded(lambda: Mixing([size[0] for size in sizes], width), seed, device)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, C, H, W) in [-1, 1] → one view a map, from shallow to deep"""
        mixed: list[Tensor] = self.mixing(self.backbone.maps(0.5 * (x + 1)))
        return mixed
