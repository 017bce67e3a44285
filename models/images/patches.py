"""Fixed features of pictures: how much their patches resemble each of a set of whitened ones, mirrored or not.

Of a patch p of 6 × 6 pixels in three colours (of grey pictures all the same; times alpha), with mean m and variance v,
a filter w answers w·(p - m) / √(v + c). Averaged over each quarter of the picture are how far the answer is above a
threshold, and how far below its negative (Coates and Ng 2012, "Learning feature representations with k-means"), and of
that the square root; on the picture, and where that is wanted on the one of half its size.

Each filter has its mirror image beside it, so that the features of the mirrored picture are those of the picture in
another order. What is given is the mean of both, less a mean, over a standard deviation. To a ridge that is as good as
having learned each picture and its mirror image too: in the sums of both, what changes its sign by mirroring and what
does not are apart from each other, and the targets speak of the latter alone. What is on which side is left to the
wavelets beside it.

Filters, means and deviations are no function of the stream: they come from pictures of dead leaves
(`benchmarks/patches.py`), rounded to whole numbers. Pixels are whole, too, so that what convolutions add up stays below
2²⁴ and is exact: neither batch nor processor decide a bit.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.network import root

FILE = Path(__file__).with_name("patches.safetensors")
PIXELS = 6  # of a patch's side
FINE, COARSE = 200, 50  # filters that there are
SIGNS, CELLS = 2, 2
NUMBERS = SIGNS * CELLS**2  # of a filter and its mirror image
THRESHOLD, LEAST_CONTRAST = 0.25, 10.0  # c, of pixels in [0, 255]
WEIGHTS, OFFSETS, SCALES = 128, 4096, 16  # of 1, in the file
SIDE, LEAST = 32, 14  # larger pictures are averaged down to at most this, smaller ones doubled to at least that
AT_ONCE = 8  # pictures: what their filters answer fits into the processor's cache


class Patches(nn.Module):
    """The first features, at most so many, of pictures of one shape (C, H, W); buffers are never stored.

    Where they are `halved`, one filter of five sees the picture of half the size.
    """

    fine: Tensor
    coarse: Tensor
    offset: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, ...], most: int, *, halved: bool) -> None:
        super().__init__()
        count = min(FINE + COARSE * halved, most // NUMBERS)
        coarse, stored = count // 5 * halved, _stored()
        counts = {"fine": count - coarse, "coarse": coarse}
        self.dim = NUMBERS * count
        self.shrink = max(1, -(-max(shape[1:]) // SIDE))
        for name, some in counts.items():
            filters = stored[name][:some].float()
            grey = shape[0] <= 2
            self.register_buffer(name, filters.sum(1, keepdim=True) if grey else filters, persistent=False)
        for part, units in (("offset", OFFSETS), ("scale", SCALES)):
            rows = [stored[f"{name}_{part}"][: NUMBERS * some].float() / units for name, some in counts.items()]
            self.register_buffer(part, torch.cat(rows), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) uint8 → (B, dim) float32"""
        return (
            torch.cat([self._seen(some) for some in torch.split(x, AT_ONCE)])
            if self.dim
            else x.new_zeros(len(x), 0).float()
        )

    def _seen(self, x: Tensor) -> Tensor:
        pictures = x.float()
        if x.shape[1] in (2, 4):
            pictures = (pictures[:, :-1] * pictures[:, -1:]).div_(255).round_()
        if self.shrink > 1:
            pictures = F.avg_pool2d(pictures, self.shrink, ceil_mode=True).round_()
        while min(pictures.shape[2:]) < LEAST:
            pictures = pictures.repeat_interleave(2, 2).repeat_interleave(2, 3)
        features = torch.cat([pooled(pictures, self.fine), pooled(halved(pictures), self.coarse)], 1)
        return (features - self.offset) * self.scale


def halved(pictures: Tensor) -> Tensor:
    """(B, C, H, W) whole numbers → the same of half the size"""
    return F.avg_pool2d(pictures, 2, ceil_mode=True).round_()


def pooled(pictures: Tensor, filters: Tensor) -> Tensor:
    """pictures (B, C, H, W) of whole numbers, filters (K, C, PIXELS, PIXELS) of 1 / WEIGHTS each → (B, K · NUMBERS)"""
    count, size = len(filters), PIXELS**2 * 3
    if not count:
        return pictures.new_zeros(len(pictures), 0)
    same = 3 // pictures.shape[1]  # a grey picture has three colours alike
    box = pictures.new_ones(1, pictures.shape[1], PIXELS, PIXELS) * same
    total, squares = F.conv2d(pictures, box).double(), F.conv2d(pictures.square(), box).double()
    variance = (squares - total.square() / size) / size  # (B, 1, h, w)
    unit = root((variance + LEAST_CONTRAST) * WEIGHTS**2).float()
    answers = F.conv2d(pictures, torch.cat([filters, filters.flip(3)])).div_(unit)  # (B, 2K, h, w)
    above = quarters((answers - THRESHOLD).relu_())
    below = quarters(answers.neg_().sub_(THRESHOLD).relu_())
    seen = root(torch.stack([above, below], 2))  # (B, 2K, SIGNS, CELLS, CELLS)
    return ((seen[:, :count] + seen[:, count:].flip(4)) / 2).flatten(1)


def quarters(maps: Tensor) -> Tensor:
    """maps (B, K, h, w) → (B, K, CELLS, CELLS): means over quarters, which overlap where a side is odd"""
    height, width = maps.shape[2:]
    return F.avg_pool2d(maps, (-(-height // 2), -(-width // 2)), (max(1, height // 2), max(1, width // 2)))


@cache
def _stored() -> dict[str, Tensor]:
    return load_file(FILE)
