"""PSNR and SSIM against scikit-image."""

from __future__ import annotations

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from models.images.restorer import MOST_DB, psnr, ssim


def pair(channels: int) -> tuple[Tensor, Tensor]:
    """Smooth pictures, and the same with noise of different strengths."""
    generator = torch.Generator().manual_seed(channels)
    x = torch.rand(3, channels, 5, 6, generator=generator)
    x = torch.nn.functional.interpolate(x, (19, 24), mode="bilinear")
    strengths = torch.tensor([0.02, 0.1, 0.3])[:, None, None, None]
    return x, (x + strengths * torch.randn(x.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_they_are_those_of_scikit_image(channels: int) -> None:
    x, y = pair(channels)
    arrays = [
        (a.permute(1, 2, 0).double().numpy(), b.permute(1, 2, 0).double().numpy()) for a, b in zip(x, y, strict=True)
    ]
    ratios = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in arrays]  # type: ignore[no-untyped-call]
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "channel_axis": -1}
    similarities = [structural_similarity(a, b, **wang) for a, b in arrays]  # type: ignore[no-untyped-call]
    torch.testing.assert_close(psnr(x, y), torch.tensor(ratios).float())
    torch.testing.assert_close(ssim(x, y), torch.tensor(similarities).float(), rtol=1e-4, atol=1e-5)


def test_equal_pictures_have_finite_scores() -> None:
    x, y = pair(3)
    assert psnr(x, x).tolist() == pytest.approx([MOST_DB] * 3)
    torch.testing.assert_close(ssim(x, x), torch.ones(3))
    rounding = (torch.rand(1, 1, 200, 200, generator=torch.Generator().manual_seed(0)) - 0.5) / 255
    assert psnr(rounding, torch.zeros_like(rounding)).item() == pytest.approx(MOST_DB, abs=0.05)
    assert (psnr(x, y).diff() < 0).all()
    assert (ssim(x, y).diff() < 0).all()
