"""How close a picture is to another: peak signal-to-noise ratio and structural similarity, one number a record.

PSNR = -10 log₁₀ (1/n Σ (x - y)²) dB for pictures in [0, 1]. SSIM as Wang, Bovik, Sheikh and Simoncelli 2004, "Image
quality assessment: from error visibility to structural similarity", eq. 13, with their Gaussian window of 11 × 11 and
σ = 1.5, at the places where all of it lies within the picture, channel by channel; the mean of all.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE, SIGMA = 11, 1.5  # of the window, pixels
C1, C2 = 0.01**2, 0.03**2
#: that of the error of rounding to 8 bits, 1/12 of a squared step: what is closer counts as this close, since equal
#: pictures have no finite PSNR and no mean would survive one
MOST_DB = 58.92


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """x, y (B, C, H, W) in [0, 1] → (B,) dB, at most `MOST_DB`."""
    return (-10 * (x - y).square().flatten(1).mean(1).log10()).clamp_max(MOST_DB)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """x, y (B, C, H, W) in [0, 1], no side below 11 → (B,), 1 for equal pictures."""
    count, channels = x.shape[:2]
    offsets = torch.arange(SIDE, dtype=x.dtype, device=x.device) - SIDE // 2
    window = (-0.5 * (offsets / SIGMA).square()).exp()
    window = window / window.sum()
    maps = torch.cat([x, y, x * x, y * y, x * y]).flatten(0, 1)[:, None]  # (5BC, 1, H, W)
    means = F.conv2d(F.conv2d(maps, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))  # the window is a product
    x1, y1, xx, yy, xy = means.view(5, count, channels, *means.shape[2:])  # (B, C, H - 10, W - 10) each
    squares, product = x1 * x1 + y1 * y1, x1 * y1
    similarity: Tensor = (2 * product + C1) * (2 * (xy - product) + C2) / ((squares + C1) * (xx + yy - squares + C2))
    return similarity.flatten(1).mean(1)
