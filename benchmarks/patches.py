"""Makes `models/images/patches.safetensors`, the filters of `models/images/patches.py`.

`python -m benchmarks.patches` takes two minutes.

Pictures of dead leaves (Lee, Mumford and Huang 2001, "Occlusion models for natural images"): ellipses and rectangles
that hide each other, as many of a size as its power -3 says, shaded and striped; colours vary most in brightness, less
from blue to yellow, least from red to green. They have the edges and the 1/f spectrum of photographs, and no photograph
is needed. The filters are spherical k-means directions of their whitened patches (Coates and Ng 2012, "Learning feature
representations with k-means"), each with its mirror image, rounded to whole numbers. Other machines may find others in
the last digit: what counts is the file.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from models.images.patches import COARSE, FILE, FINE, OFFSETS, PIXELS, SCALES, WEIGHTS, halved, pooled

PICTURES, SIDE, FINER = 300, 32, 3  # each drawn so many times as large, and averaged
LEAVES = 4000  # the most in a picture; it is full before
BRIGHTNESS, BLUE_YELLOW, RED_GREEN = 60.0, 20.0, 11.0  # standard deviations of a leaf's colour
PATCHES, ROUNDS = 30_000, 12
LEAST_CONTRAST, LEAST_VARIANCE = 10.0, 0.5  # added to the variance of a patch, and to those of whitened directions


def dead_leaves(rng: np.random.Generator) -> NDArray[np.float32]:
    """A picture (3, SIDE, SIDE) in [0, 255]."""
    side, smallest = SIDE * FINER, FINER * 0.7
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    picture, free = np.full((side, side, 3), 128, np.float32), np.ones((side, side), bool)
    for _ in range(LEAVES):
        radius = (smallest**-2 + rng.random() * ((0.8 * side) ** -2 - smallest**-2)) ** -0.5
        across, down = rng.uniform(-radius, side + radius, 2)
        angle, longer = rng.uniform(0, math.pi), math.exp(rng.normal(0, 0.5))
        u = ((x - across) * math.cos(angle) + (y - down) * math.sin(angle)) / (radius * longer)
        v = ((y - down) * math.cos(angle) - (x - across) * math.sin(angle)) / (radius / longer)
        inside = u * u + v * v < 1 if rng.integers(2) else np.maximum(abs(u), abs(v)) < 0.9
        seen = inside & free
        light, blue, red = (rng.normal(0, each) for each in (BRIGHTNESS, BLUE_YELLOW, RED_GREEN))
        colour = 128 + np.array([light + blue / 2 + red, light + blue / 2 - red, light - blue])
        shade = rng.normal(0, 14) * u[seen] + rng.normal(0, 14) * v[seen]
        stripes = np.sin(u[seen] * radius * rng.uniform(0.2, 1.6) + rng.uniform(0, 2 * math.pi))
        picture[seen] = colour + (shade + rng.normal(0, 8) * stripes)[:, None]
        free &= ~inside
        if not free.any():
            break
    fine = picture.clip(0, 255).reshape(SIDE, FINER, SIDE, FINER, 3)
    small: NDArray[np.float32] = fine.mean((1, 3)).transpose(2, 0, 1)
    return small


def whitened(pictures: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(N, 3, h, w) → patches (2 · PATCHES, d) and their mirror images, whitened, and the whitener (d, d)"""
    most = pictures.shape[-1] - PIXELS + 1
    places = zip(rng.integers(len(pictures), size=PATCHES), *rng.integers(most, size=(2, PATCHES)), strict=True)
    found = torch.stack([pictures[n, :, i : i + PIXELS, j : j + PIXELS] for n, i, j in places])
    rows = torch.cat([found, found.flip(3)]).flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    rows = rows / (rows.var(1, correction=0, keepdim=True) + LEAST_CONTRAST).sqrt()
    values, vectors = torch.linalg.eigh((rows.T @ rows / len(rows)).double())
    whitener = (vectors @ torch.diag((values + LEAST_VARIANCE) ** -0.5) @ vectors.T).float()
    return rows @ whitener, whitener


def directions(rows: Tensor, count: int) -> Tensor:
    """(N, d) → (count, d) of length 1, by spherical k-means where a row and its negative are the same"""
    found = F.normalize(torch.randn(count, rows.shape[1], generator=torch.Generator().manual_seed(0)))
    for _ in range(ROUNDS):
        near = rows @ found.T
        nearest = near.abs().argmax(1)
        sums = torch.zeros_like(found).index_add_(0, nearest, rows * near.gather(1, nearest[:, None]))
        found = F.normalize(sums + 1e-3 * found)
    return found


def filters(pictures: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """(count, 3, PIXELS, PIXELS) int8 in units of 1 / WEIGHTS, each with the sum 0: an even patch gives 0."""
    rows, whitener = whitened(pictures, rng)
    exact = directions(rows, count) @ whitener * WEIGHTS
    exact = exact - exact.mean(1, keepdim=True)
    whole = exact.round()
    for weights, wanted in zip(whole, exact, strict=True):
        off = int(weights.sum())
        for place in ((weights - wanted) * math.copysign(1, off)).topk(abs(off)).indices:
            weights[place] -= math.copysign(1, off)
    return whole.to(torch.int8).view(count, 3, PIXELS, PIXELS)


def main() -> None:
    rng = np.random.default_rng(0)
    pictures = torch.from_numpy(np.stack([dead_leaves(rng) for _ in range(PICTURES)])).round()
    made = {"fine": filters(pictures, FINE, rng), "coarse": filters(halved(pictures), COARSE, rng)}
    for name, seen in (("fine", pictures), ("coarse", halved(pictures))):
        features = torch.cat([pooled(seen, made[name].float()), pooled(seen.flip(3), made[name].float())])
        made[f"{name}_offset"] = (features.mean(0) * OFFSETS).round().to(torch.int16)
        made[f"{name}_scale"] = (SCALES / features.std(0)).round().to(torch.int16)
    save_file(made, Path(FILE))


if __name__ == "__main__":
    main()
