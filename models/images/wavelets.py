"""Fixed features of pictures: wavelet moduli at two scales and of second order.

A picture's channels (colours times alpha, and alpha itself) are convolved with complex Gabor filters ψ of `ANGLES`
directions at two scales, and averaged over a grid:

    S₀ = x,   S₁ = |x * ψ_{j,θ}|,   S₂ = ||x * ψ_{0,θ}| * ψ_{1,θ'}|

the scattering transform up to its second order (Bruna and Mallat 2013, "Invariant scattering convolution networks").
What is given is the square root of all of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.network import root

ANGLES = 6
GRID, COARSE = 7, 3  # places of a side at which S₀ and S₁, and S₂, are averaged
SIDE = 32  # larger pictures are averaged down to at most this
WIDTHS = (0.8, 1.6)  # σ of the filters' envelopes, in pixels
RADII = (3, 5)
WAVENUMBERS = (0.75 * math.pi, 0.375 * math.pi)  # radians a pixel


class Wavelets(nn.Module):
    """Features of pictures of one shape (C, H, W). They have no parameters; buffers are made again, never stored."""

    fine: Tensor
    coarse: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.channels, self.shrink = shape[0], max(1, math.ceil(max(shape[1:]) / SIDE))
        self.dim = self.channels * (GRID**2 * (1 + 2 * ANGLES) + COARSE**2 * ANGLES**2)
        self.register_buffer("fine", gabors(0), persistent=False)
        self.register_buffer("coarse", gabors(1), persistent=False)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """pictures (B, C, H, W) float32 in [0, 1] → √S (B, d) float32"""
        return root(self.scattered(pictures))

    def mirrored(self) -> Tensor:
        """(d,) int64: where each feature of a picture is among those of its mirror image, as far as sides are even."""
        turned = -torch.arange(ANGLES) % ANGLES  # the direction θ is π - θ in the mirror
        first = torch.arange(ANGLES * GRID**2).view(ANGLES, GRID, GRID)[turned].flip(2).flatten()
        second = torch.arange(ANGLES**2 * COARSE**2).view(ANGLES, ANGLES, COARSE, COARSE)
        second = second[turned][:, turned].flip(3).flatten()
        places = torch.arange(GRID**2).view(GRID, GRID).flip(1).flatten()
        found, start = [], 0
        for part in (places, first, first, second):
            found.append(start + part)
            start += len(part)
        channels = start * torch.arange(self.channels)[:, None]
        return (channels + torch.cat(found)).flatten()

    def scattered(self, pictures: Tensor) -> Tensor:
        """(B, C, H, W) → (B, d) of S₀, S₁ and S₂, none below 0"""
        count, channels = pictures.shape[:2]
        if channels in (2, 4):
            pictures = torch.cat([pictures[:, :-1] * pictures[:, -1:], pictures[:, -1:]], 1)
        if self.shrink > 1:
            pictures = F.avg_pool2d(pictures, self.shrink, ceil_mode=True)
        x = pictures.flatten(0, 1)[:, None]  # (B · C, 1, h, w)
        fine, coarse = modulus(x, self.fine), modulus(x, self.coarse)  # (B · C, A, h, w)
        halved = F.avg_pool2d(fine, 2, ceil_mode=True).flatten(0, 1)[:, None]
        second = modulus(halved, self.fine)  # at half the size, the fine filters are the coarse ones
        parts = [averaged(maps) for maps in (x, fine, coarse)]
        parts.append(F.adaptive_avg_pool2d(second, COARSE).view(count * channels, -1))
        return torch.cat(parts, 1).view(count, -1)


def modulus(x: Tensor, filters: Tensor) -> Tensor:
    """x (B, 1, h, w), filters (2A, 1, k, k), real parts before imaginary ones → (B, A, h, w)"""
    radius = filters.shape[-1] // 2
    edges = F.pad(x, (radius,) * 4, mode="replicate")
    real, imaginary = F.conv2d(edges, filters).chunk(2, 1)
    return torch.hypot(real, imaginary)


def averaged(maps: Tensor) -> Tensor:
    """maps (B, A, h, w) → (B, A · GRID²): means over places that overlap by half with the next."""
    places = F.adaptive_avg_pool2d(maps, 2 * GRID)
    edges = F.pad(places, (1,) * 4)
    return F.avg_pool2d(edges, 4, 2).flatten(1)


def gabors(scale: int) -> Tensor:
    """(2A, 1, k, k): Gabor filters of all directions; the real parts have mean 0, so that an even picture gives 0."""
    radius, sigma, wavenumber = RADII[scale], WIDTHS[scale], WAVENUMBERS[scale]
    steps = torch.arange(-radius, radius + 1, dtype=torch.float64)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    rows = []
    for part in (torch.cos, torch.sin):
        for number in range(ANGLES):
            angle = math.pi * number / ANGLES
            along = x * math.cos(angle) + y * math.sin(angle)
            across = (y * math.cos(angle) - x * math.sin(angle)) * 0.5  # twice as long as wide
            envelope = torch.exp(-(along**2 + across**2) / (2 * sigma**2))
            envelope = envelope / envelope.sum()
            wave = part(wavenumber * along) * envelope
            rows.append(wave - wave.sum() * envelope)
    return torch.stack(rows)[:, None].float()
