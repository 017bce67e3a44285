"""The networks of the image GAN: residual blocks, a generator, and a discriminator of one or more views.

A block is x + conv 3 × 3(φ(conv 3 × 3(φ(x)))), at first the identity (`identical_at_first`); φ is SiLU of a GroupNorm,
which knows one record alone. R3GAN has leaky ReLUs and no norms. In networks as narrow as these, with steps as large as
a short stream asks for, R1 and R2 then grew without bound, whatever their weight: the gradient of a gradient knows
nothing of kinks, and without norms a step changes the scores by more the larger the weights have become. In the
generator's blocks each norm is followed by a scale and a shift for z and c (Dumoulin et al. 2017, "A learned
representation for artistic style"; Brock et al. 2019), so that they are heard at every size and not at the least alone.

    generator:      z, c → dense → (2·width, h, w) → blocks → [1 × 1, double → blocks]* → 3 × 3, double → SiLU → 3 × 3
    discriminator:  view → stem → blocks → [halve, 1 × 1 → blocks]* → φ → dense → ψ → s(h) + h · v_c / √|h|

h and w are at most 8; all sizes but the finest two have 2·width channels, half of the picture's size has `width`, and
its full size width/2, with one convolution 3 × 3 in each network and no block: that is what two cores afford. Without
it both know full size only as 2 × 2 pixels in channels, and surfaces get a grid of two pixels, which the discriminator
does not see. Doubling is bilinear: repetition leaves a grid of its own.
ψ(x) = x/5 + 4/5 softplus(x), a smooth leaky ReLU: its slope is nowhere 0.

Views are what the discriminator is shown of a picture. `Pixels` shows it all. `Projected` shows maps of a frozen
backbone (Sauer et al. 2021, "Projected GANs converge faster"): each map, divided by its own root mean square, goes
through a random 1 × 1 convolution, takes what is deeper, doubled, on top, and goes through a random 3 × 3 convolution;
both stay as they were drawn. Each map has a discriminator of its own, and the score is their mean.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.images.backbone import Backbone
from models.images.generator import DrawingNetwork
from models.images.vae import Conditions
from models.learner import M
from models.network import Residual, seeded


def norm(width: int, *, affine: bool = True) -> nn.GroupNorm:
    """Of up to eight groups."""
    return nn.GroupNorm(math.gcd(8, width), width, affine=affine)


def normed(width: int) -> nn.Module:
    """φ."""
    return nn.Sequential(norm(width), nn.SiLU())


class GanBlock(Residual):
    """A block."""

    def __init__(self, width: int) -> None:
        first, last = (nn.Sequential(normed(width), nn.Conv2d(width, width, 3, padding=1)) for _ in range(2))
        super().__init__(first=first, last=last)


class Modulated(nn.Module):
    """A block whose norms' scales and shifts are linear in a code: (1 + a) · norm(x) + b."""

    def __init__(self, width: int, code: int) -> None:
        super().__init__()
        self.norm = norm(width, affine=False)
        self.code = nn.Linear(code, 4 * width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps: Tensor, code: Tensor) -> Tensor:
        """maps (B, c, h, w), code (B, Z + D) → maps"""
        a, b, c, d = (0.5 * self.code(code))[..., None, None].chunk(4, 1)  # (B, c, 1, 1) each
        update = self.first(F.silu((1 + a) * self.norm(maps) + b))
        update = self.last(F.silu((1 + c) * self.norm(update) + d))
        moved: Tensor = maps + update
        return moved


def doubled(maps: Tensor) -> Tensor:
    """(B, c, h, w) → (B, c, 2h, 2w), bilinear: products, whose gradients have a fixed order of summation everywhere."""
    down, right = (_between(side).to(maps) for side in maps.shape[2:])
    return down @ maps @ right.T


def _between(side: int) -> Tensor:
    """(2 · side, side): ¾ of the nearest place and ¼ of the next one, at the border all of the nearest."""
    places = ((torch.arange(2 * side) - 0.5) / 2).clamp(0, side - 1)
    apart = (places[:, None] - torch.arange(side)).abs()
    return F.relu(1 - apart)


class Doubled(nn.Module):
    """Twice the size; a 1 × 1 convolution before it changes the number of channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return doubled(self.convolution(maps))


def halved(before: int, after: int) -> nn.Module:
    """Half the size, by the mean of 2 × 2; a 1 × 1 convolution after it changes the number of channels."""
    return nn.Sequential(OrderedDict(mean=nn.AvgPool2d(2), convolution=nn.Conv2d(before, after, 1)))


def identical_at_first(module: M) -> M:
    """Makes each block of a module the identity (Zhang et al. 2019, "Fixup initialization")."""
    for part in module.modules():
        if isinstance(part, GanBlock):
            nn.init.zeros_(part.get_parameter("last.1.weight"))
        elif isinstance(part, Modulated):
            nn.init.zeros_(part.last.weight)
    return module


def fine(width: int) -> int:
    """Channels at the full size."""
    return math.ceil(width / 2)


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
            stages += [Modulated(after, latent + label_dim) for _ in range(depth)]
        self.stages = nn.ModuleList(stages)
        self.narrow = nn.Sequential(normed(width), nn.Conv2d(width, fine(width), 3, padding=1))
        self.out = nn.Conv2d(fine(width), channels, 3, padding=1)

    def forward(self, z: Tensor, numbers: Tensor) -> Tensor:
        """z (B, Z), class numbers (B,) → (B, C, H, W) in [-1, 1]"""
        code = torch.cat([z, self.conditions(numbers)], 1)
        maps = self.dense(code).view(-1, *self.base)
        for stage in self.stages:
            maps = stage(maps, code) if isinstance(stage, Modulated) else stage(maps)
        drawn: Tensor = self.out(F.silu(doubled(self.narrow(maps))))
        return drawn.tanh()

    def shades(self, z: Tensor, numbers: Tensor) -> Tensor:
        drawn: Tensor = self(z, numbers)
        return 0.5 * (drawn + 1)


class Critic(nn.Module):
    """The features of views (B, c, h, w), and the score of them; its stem halves the size of `whole` pictures."""

    def __init__(self, shape: Sequence[int], *, whole: bool, width: int, depth: int, hidden: int) -> None:
        super().__init__()
        channels, height, wide = shape
        self.stem: nn.Module = nn.Conv2d(channels, width, 3, padding=1)
        if whole:
            height, wide, narrow = height // 2, wide // 2, nn.Conv2d(channels, fine(width), 3, padding=1)
            after = nn.Conv2d(4 * fine(width), width, 3, padding=1)
            self.stem = nn.Sequential(narrow, nn.SiLU(), nn.PixelUnshuffle(2), after)
        stages: list[nn.Module] = [GanBlock(width) for _ in range(depth)]
        before = width
        while max(height, wide) > 8:
            stages += [halved(before, 2 * width), *(GanBlock(2 * width) for _ in range(depth))]
            height, wide, before = height // 2, wide // 2, 2 * width
        self.stages = nn.Sequential(*stages, normed(before))
        self.dense = nn.Linear(before * height * wide, hidden)
        self.score = nn.Linear(hidden, 1)

    def features(self, view: Tensor) -> Tensor:
        """view (B, c, h, w) → (B, hidden)"""
        x: Tensor = self.dense(self.stages(self.stem(view)).flatten(1))
        return 0.2 * x + 0.8 * F.softplus(x)

    def forward(self, h: Tensor, wanted: Tensor) -> Tensor:
        """h (B, hidden) features, wanted (B, hidden) the classes' vectors → (B,)"""
        score: Tensor = self.score(h).squeeze(1) + (h * wanted).sum(1) / math.sqrt(h.shape[1])
        return score


class Discriminator(nn.Module):
    """One critic a view; the score is their mean. Its features can be scored under more than one condition."""

    def __init__(
        self, shapes: Sequence[Sequence[int]], classes: int, *, whole: bool, width: int, depth: int, hidden: int
    ) -> None:
        super().__init__()
        self.conditions = Conditions(classes, hidden)
        sizes = {"width": width, "depth": depth, "hidden": hidden}
        self.critics = nn.ModuleList(Critic(shape, whole=whole, **sizes) for shape in shapes)

    def features(self, views: Sequence[Tensor]) -> Tensor:
        """views, each (B, c, h, w) → (B, V, hidden)"""
        return torch.stack([critic.features(view) for critic, view in zip(self.critics, views, strict=True)], 1)  # type: ignore[operator]

    def scores(self, h: Tensor, numbers: Tensor) -> Tensor:
        """h (B, V, hidden) and class numbers (B,) → (B,)"""
        wanted = self.conditions(numbers)
        return torch.stack([critic(h[:, view], wanted) for view, critic in enumerate(self.critics)]).mean(0)

    def forward(self, views: Sequence[Tensor], numbers: Tensor) -> Tensor:
        """views, each (B, c, h, w), and class numbers (B,) → (B,)"""
        return self.scores(self.features(views), numbers)


class Pixels(nn.Module):
    """All of a picture."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shapes = [shape]

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, C, H, W) in [-1, 1] → [x]"""
        return [x]


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
