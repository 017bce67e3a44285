"""Where the codes of each class lie: their moving mean and covariance, and the way to and from codes of N(0, I).

The posteriors of a class's records, all together, are not quite N(0, I) (Hoffman and Johnson 2016, "ELBO surgery"), and
what a decoder was never given it draws badly. The nearest Gaussian to them has their mean and covariance; a second VAE
that learns them (Dai and Wipf 2019, "Diagnosing and enhancing VAE models") would be nearer, and slower.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.labels import NONE

SMALLEST = 1e-6  # variance, so that rounding leaves a covariance that has a root
HORIZON = 1000.0  # records of a class that its moments look back on: the encoder moves on


class CodeMoments(nn.Module):
    """A row for "no label" and one a class, which start as N(0, I) seen so many times as a code has numbers.

    They are kept in single precision, on the model's device, and used in double precision, on the CPU: not every device
    has that.
    """

    counts: Tensor  # (1 + K,), at most `HORIZON`
    means: Tensor  # (1 + K, Z): of z
    covariances: Tensor  # (1 + K, Z, Z)

    def __init__(self, classes: int, latent: int) -> None:
        super().__init__()
        self._latent = latent
        for name, rows in self._standard_normal(1 + classes).items():
            self.register_buffer(name, rows)

    def add(self, z: Tensor, numbers: Tensor) -> None:
        """Codes z (B, Z) that records of these classes (B,) were decoded from."""
        chosen = F.one_hot(numbers - NONE, len(self.counts)).to(z)  # (B, 1 + K)
        new, row = chosen.sum(0), numbers - NONE
        self.counts.copy_(torch.maximum((self.counts + new).clamp(max=HORIZON), new))
        share = new / self.counts
        mean = chosen.T @ z / new.clamp_min(1)[:, None]  # (1 + K, Z), of these alone
        away, from_mean = mean - self.means, z - mean[row]
        products = chosen.T @ (from_mean[:, :, None] * from_mean[:, None, :]).flatten(1)
        self.means += share[:, None] * away
        self.covariances *= (1 - share)[:, None, None]
        self.covariances += (products / self.counts[:, None]).view_as(self.covariances)
        self.covariances += (share * (1 - share))[:, None, None] * away[:, :, None] * away[:, None, :]

    def placed(self, code: Tensor, numbers: Tensor) -> Tensor:
        """ε (B, Z) float32 → m_c + L_c ε"""
        mean, root = self._gaussians(numbers)
        return (mean + (root @ code.cpu().double()[:, :, None])[:, :, 0]).to(code)

    def standardised(self, mean: Tensor, deviation: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z, (B, Z) float32 each, its numbers independent → those of L_c⁻¹ (z - m_c)"""
        middle, root = self._gaussians(numbers)
        rows = torch.linalg.solve_triangular(root, torch.eye(self._latent).to(root), upper=False)  # (B, Z, Z)
        away = rows @ (mean.cpu().double() - middle)[:, :, None]
        spread = (rows * deviation.cpu().double()[:, None, :]).square().sum(2).sqrt()
        return away[:, :, 0].to(mean), spread.to(mean)

    def grow(self, classes: int) -> None:
        """Adds as many classes."""
        for name, rows in self._standard_normal(classes).items():
            setattr(self, name, torch.cat([getattr(self, name), rows.to(self.counts.device)]))

    def _standard_normal(self, rows: int) -> dict[str, Tensor]:
        return {
            "counts": torch.full((rows,), float(self._latent)),
            "means": torch.zeros(rows, self._latent),
            "covariances": torch.eye(self._latent).repeat(rows, 1, 1),
        }

    def _gaussians(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Class numbers (B,) → m_c (B, Z) and the Cholesky factors L_c (B, Z, Z) of the covariances, on the CPU"""
        mean, covariance = (rows[numbers - NONE].cpu().double() for rows in (self.means, self.covariances))
        return mean, torch.linalg.cholesky(covariance + SMALLEST * torch.eye(self._latent).double())
