"""What a restorer learns to undo. Each kind of damage is a function of pictures and a CPU generator, of nothing else.

x (B, C, H, W) float32 in [0, 1] → damaged pictures, of the same shape, and holes (B, 1, H, W) bool, none but for
"holes". How strong the damage is, each record draws for itself; u is uniform:

- "noise": x + σ ε, ε ~ N(0, I), σ = u / 5 (0 to 51 of 255 steps);
- "shot": Poisson(n x) / n, photons a pixel at white n = 10^(1 + 2u);
- "blur": a Gaussian window, its standard deviation 0.5 to 2 pixels, the border repeated;
- "fog": x t + A (1 - t), t = exp(-β d) (Koschmieder 1924; Narasimhan and Nayar 2002): the depth d, from 0 to 1, is a
  plane in a random direction plus a smooth random field; β = 0.5 to 2.5; the light A is 0.7 to 1, colours within 0.05;
- "dark": g x^γ, g = 0.15 to 0.6, γ = 1 to 2, then noise with σ = 2/255;
- "faded": colours move to their grey by 30 to 90 %, contrast falls to 40 to 90 %, about a paper of 0.5 to 0.8;
- "resolution": the mean of each block of 2, 3 or 4 pixels square, enlarged again by repetition or linearly;
- "holes": up to three rectangles and up to five strokes are missing, and 0.

Alpha, the fourth channel, is a channel like any other to noise, shot, blur, resolution and holes; fog, dark and faded
change light, and so colours alone. Colours are those of the file (not multiplied by alpha, no gamma undone). What comes
out is rounded to 8 bits, as in the file that a restorer is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["noise", "shot", "blur", "fog", "dark", "faded", "resolution", "holes"]
KINDS: tuple[Kind, ...] = get_args(Kind)
REACH = 6  # pixels on each side of a blur's window: three standard deviations
RECTANGLES, STROKES, POINTS = 3, 5, 3  # the most in one picture; corners of a stroke
FIELD = 4  # knots on a side of the random field of depth


class Damaged(NamedTuple):
    """Pictures after the damage."""

    x: Tensor  # (B, C, H, W), multiples of 1/255
    holes: Tensor  # (B, 1, H, W) bool


def damaged(x: Tensor, kinds: Tensor, rng: torch.Generator) -> Damaged:
    """x (B, C, H, W) in [0, 1], kinds (B,) int64 on the CPU, indices of `KINDS` → each record damaged by its kind."""
    result, holes = x.clone(), _no_holes(x)
    for number in sorted(set(kinds.tolist())):
        rows = (kinds == number).nonzero()[:, 0].to(x.device)
        result[rows], holes[rows] = DAMAGES[KINDS[number]](x[rows], rng)
    return Damaged(result, holes)


def noise(x: Tensor, rng: torch.Generator) -> Damaged:
    """Gaussian noise."""
    return whole(x + _uniform(x, rng, 0, 0.2) * _normal(x, rng))


def shot(x: Tensor, rng: torch.Generator) -> Damaged:
    """The noise of counting photons."""
    photons = 10 ** _uniform(x, rng, 1, 3)
    return whole(torch.poisson((photons * x).cpu(), generator=rng).to(x.device) / photons)


def blur(x: Tensor, rng: torch.Generator) -> Damaged:
    """A lens out of focus."""
    offsets = torch.arange(-REACH, REACH + 1, device=x.device)
    windows = (-0.5 * (offsets / _uniform(x, rng, 0.5, 2)[:, 0, 0]).square()).exp()
    windows = (windows / windows.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0)  # (BC, K)
    maps = F.pad(x, [REACH] * 4, mode="replicate").flatten(0, 1)[None]  # (1, BC, H + 2R, W + 2R)
    maps = F.conv2d(maps, windows[:, None, :, None], groups=len(windows))
    maps = F.conv2d(maps, windows[:, None, None, :], groups=len(windows))
    return whole(maps.view(x.shape))


def fog(x: Tensor, rng: torch.Generator) -> Damaged:
    """The atmospheric scattering model."""
    light = _uniform(x, rng, 0.7, 1) + _uniform(x, rng, -0.05, 0.05, _light(x).shape[1])
    seen = (-_uniform(x, rng, 0.5, 2.5) * depth(x, rng)).exp()  # (B, 1, H, W): the share t of the light that arrives
    return _of_light(x, lambda colours: colours * seen + light.clamp_max(1) * (1 - seen))


def depth(x: Tensor, rng: torch.Generator) -> Tensor:
    """A distance for each pixel of x (B, C, H, W): (B, 1, H, W), from 0 to 1 in each picture, in no unit."""
    count, _, height, width = x.shape
    angle = _uniform(x, rng, 0, 2 * math.pi)
    down = torch.linspace(-1, 1, height, device=x.device)[:, None]
    right = torch.linspace(-1, 1, width, device=x.device)
    knots = torch.rand(count, 1, FIELD, FIELD, generator=rng).to(x.device)
    field = F.interpolate(knots, (height, width), mode="bicubic", align_corners=True)
    distance = angle.sin() * down + angle.cos() * right + field
    least, most = distance.amin((2, 3), keepdim=True), distance.amax((2, 3), keepdim=True)
    return (distance - least) / (most - least)


def dark(x: Tensor, rng: torch.Generator) -> Damaged:
    """Too little light."""
    gain, gamma = _uniform(x, rng, 0.15, 0.6), _uniform(x, rng, 1, 2)
    grain = 2 / 255 * _normal(_light(x), rng)
    return _of_light(x, lambda colours: gain * colours**gamma + grain)


def faded(x: Tensor, rng: torch.Generator) -> Damaged:
    """An old print."""
    kept, contrast, paper = _uniform(x, rng, 0.1, 0.7), _uniform(x, rng, 0.4, 0.9), _uniform(x, rng, 0.5, 0.8)

    def fade(colours: Tensor) -> Tensor:
        grey = colours.mean(1, keepdim=True)
        return paper + contrast * (grey + kept * (colours - grey) - paper if colours.shape[1] > 1 else colours - paper)

    return _of_light(x, fade)


def resolution(x: Tensor, rng: torch.Generator) -> Damaged:
    """A picture that was small."""
    factors, linear = torch.randint(2, 5, (len(x),), generator=rng), torch.rand(len(x), generator=rng) < 0.5
    result = x.clone()
    for factor in sorted(set(factors.tolist())):
        for mode in ("nearest", "bilinear"):
            rows = ((factors == factor) & (linear == (mode == "bilinear"))).nonzero()[:, 0].to(x.device)
            if len(rows):
                result[rows] = F.interpolate(smaller(x[rows], factor), x.shape[2:], mode=mode)
    return whole(result)


def smaller(x: Tensor, factor: int) -> Tensor:
    """x (B, C, H, W) → the means of blocks, (B, C, ⌈H / factor⌉, ⌈W / factor⌉)."""
    return F.interpolate(x, [math.ceil(side / factor) for side in x.shape[2:]], mode="area")


def holes(x: Tensor, rng: torch.Generator) -> Damaged:
    """Missing pixels."""
    missing = (_rectangles(x, rng) | _strokes(x, rng)).to(x.device)
    return Damaged(_rounded(x).masked_fill(missing, 0), missing)


DAMAGES: dict[Kind, Callable[[Tensor, torch.Generator], Damaged]] = {
    "noise": noise,
    "shot": shot,
    "blur": blur,
    "fog": fog,
    "dark": dark,
    "faded": faded,
    "resolution": resolution,
    "holes": holes,
}


def whole(x: Tensor) -> Damaged:
    """Any values → pictures of 8 bits without holes."""
    return Damaged(_rounded(x), _no_holes(x))


def _rectangles(x: Tensor, rng: torch.Generator) -> Tensor:
    """(B, 1, H, W) on the CPU: 0 to `RECTANGLES` of a tenth to three tenths of each side."""
    shape = (len(x), RECTANGLES)
    there = torch.arange(RECTANGLES) < torch.randint(RECTANGLES + 1, (len(x), 1), generator=rng)  # (B, R)
    within = []
    for side in x.shape[2:]:
        half = side * (0.05 + 0.1 * torch.rand(shape, generator=rng))
        centre = side * torch.rand(shape, generator=rng)
        within.append((torch.arange(side) + 0.5 - centre[..., None]).abs() < half[..., None])  # (B, R, side)
    rows, columns = within
    return (there[..., None, None] & rows[..., :, None] & columns[..., None, :]).any(1, keepdim=True)


def _strokes(x: Tensor, rng: torch.Generator) -> Tensor:
    """(B, 1, H, W) on the CPU: 1 to `STROKES` lines of `POINTS` corners, 1.5 pixels to a tenth of the picture wide."""
    height, width = x.shape[2:]
    shape = (len(x), STROKES)
    there = torch.arange(STROKES) < torch.randint(1, STROKES + 1, (len(x), 1), generator=rng)  # (B, S)
    corners = torch.rand(*shape, POINTS, 2, generator=rng) * torch.tensor([height, width])
    wide = 1.5 + torch.rand(shape, generator=rng) * max(0.1 * min(height, width) - 1.5, 0)
    down, right = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    missing = torch.zeros(len(x), 1, height, width, dtype=torch.bool)
    for number in range(POINTS - 1):
        (y0, x0), (y1, x1) = (corners[:, :, k, :, None, None].unbind(2) for k in (number, number + 1))  # (B, S, 1, 1)
        length = ((y1 - y0).square() + (x1 - x0).square()).clamp_min(1e-6)
        along = (((down - y0) * (y1 - y0) + (right - x0) * (x1 - x0)) / length).clamp(0, 1)  # (B, S, H, W)
        distance = (down - y0 - along * (y1 - y0)).square() + (right - x0 - along * (x1 - x0)).square()
        near = (distance < (wide[..., None, None] / 2).square()) & there[..., None, None]
        missing |= near.any(1, keepdim=True)
    return missing


def _light(x: Tensor) -> Tensor:
    """The channels that light makes: all but alpha."""
    return x[:, :3]


def _of_light(x: Tensor, change: Callable[[Tensor], Tensor]) -> Damaged:
    return whole(torch.cat([change(_light(x)), x[:, 3:]], 1))


def _uniform(x: Tensor, rng: torch.Generator, low: float, high: float, channels: int = 1) -> Tensor:
    """(B, channels, 1, 1) from low to high."""
    return (low + (high - low) * torch.rand(len(x), channels, 1, 1, generator=rng)).to(x.device)


def _normal(x: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=rng).to(x.device)


def _rounded(x: Tensor) -> Tensor:
    return (255 * x.clamp(0, 1)).round() / 255


def _no_holes(x: Tensor) -> Tensor:
    return x.new_zeros(len(x), 1, *x.shape[2:], dtype=torch.bool)
