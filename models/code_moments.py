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

HORIZON = 1000.0  # records of a class that its moments look back on: the encoder moves on


class CodeMoments(nn.Module):
    """A row for "no label" and one a class, each begun as N(0, I) seen so many times as a code has numbers."""

    counts: Tensor  # (1 + K,) float64, at most `HORIZON`
    means: Tensor  # (1 + K, Z) float64: of z
    squares: Tensor  # (1 + K, Z, Z) float64: of z zᵀ

    def __init__(self, classes: int, latent: int) -> None:
        super().__init__()
        self._latent = latent
        for name, rows in self._begun(1 + classes).items():
            self.register_buffer(name, rows)

    def add(self, z: Tensor, numbers: Tensor) -> None:
        """Codes z (B, Z) that records of these classes (B,) were decoded from."""
        chosen = F.one_hot(numbers - NONE, len(self.counts)).double()  # (B, 1 + K)
        new = chosen.sum(0)
        z = z.double()
        self.counts.copy_(torch.maximum((self.counts + new).clamp(max=HORIZON), new))
        share = new / self.counts
        products = (z[:, :, None] * z[:, None, :]).flatten(1)
        for rows, sums in ((self.means, chosen.T @ z), (self.squares.flatten(1), chosen.T @ products)):
            rows.add_(sums / self.counts[:, None] - share[:, None] * rows)

    def placed(self, code: Tensor, numbers: Tensor) -> Tensor:
        """ε (B, Z) float32 → m_c + L_c ε"""
        mean, root = self._gaussians(numbers)
        return (mean + (root @ code.double()[:, :, None])[:, :, 0]).to(code.dtype)

    def standardised(self, mean: Tensor, deviation: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z, (B, Z) float32 each, its numbers independent → those of L_c⁻¹ (z - m_c)"""
        middle, root = self._gaussians(numbers)
        rows = torch.linalg.solve_triangular(root, torch.eye(self._latent).to(root), upper=False)  # (B, Z, Z)
        away = rows @ (mean.double() - middle)[:, :, None]
        spread = (rows * deviation.double()[:, None, :]).square().sum(2).sqrt()
        return away[:, :, 0].to(mean.dtype), spread.to(mean.dtype)

    def grow(self, classes: int) -> None:
        """Adds as many classes."""
        for name, rows in self._begun(classes).items():
            setattr(self, name, torch.cat([getattr(self, name), rows.to(self.counts.device)]))

    def _begun(self, rows: int) -> dict[str, Tensor]:
        one = torch.eye(self._latent, dtype=torch.float64)
        return {
            "counts": torch.full((rows,), float(self._latent), dtype=torch.float64),
            "means": torch.zeros(rows, self._latent, dtype=torch.float64),
            "squares": one.repeat(rows, 1, 1),
        }

    def _gaussians(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Class numbers (B,) → m_c (B, Z) and the Cholesky factors L_c (B, Z, Z) of the covariances"""
        mean = self.means[numbers - NONE]
        return mean, torch.linalg.cholesky(self.squares[numbers - NONE] - mean[:, :, None] * mean[:, None, :])
