"""What image generators share: codes from seeds, drawing one picture at a time, walking between two codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.labels import Labels
from models.replaying import LabelledNetwork


class DrawingNetwork(LabelledNetwork):
    """A network that draws pictures of `shape` (C, H, W) from codes of `latent` numbers: a `Generator`."""

    shape: tuple[int, ...]
    latent: int

    def shades(self, z: Tensor, numbers: Tensor) -> Tensor:
        """z (B, Z), class numbers (B,) int64, NONE without a label → (B, C, H, W) float32, 0 to 1."""
        raise NotImplementedError

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """N seeds → their codes (N, Z) float32 of N(0, I), each from a random generator of its own."""
        codes = [torch.randn(self.latent, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
        return torch.stack(codes) if codes else torch.empty(0, self.latent)

    @torch.no_grad()
    def draw(self, z: Tensor, labels: Sequence[str | None]) -> Tensor:
        """z (N, Z) and labels → (N, C, H, W) uint8. Each is drawn by itself: its bits depend on nothing else.

        Raises:
            KeyError: a label that was never learned.
        """
        numbers = self.numbers(labels)
        if not numbers:
            return torch.empty(0, *self.shape, dtype=torch.uint8)
        device = next(self.parameters()).device
        rows = [
            self.shades(code[None].to(device), torch.tensor([number], device=device))
            for code, number in zip(z, numbers, strict=True)
        ]
        return (255 * torch.cat(rows).clamp(0, 1)).round().to(torch.uint8).cpu()

    def generate(self, seeds: Sequence[int], labels: Sequence[str | None]) -> Tensor:
        """`draw(latents(seeds), labels)`; raises what `draw` raises."""
        return self.draw(self.latents(seeds), labels)

    def numbers(self, labels: Sequence[str | None]) -> list[int]:
        """The class number of each label, NONE for None.

        Raises:
            KeyError: a label that was never learned.
        """
        return Labels(self.classes, len(self.classes)).numbers(labels)


def between(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Codes on the great circle from `start` to `end` (Z,) each, both included → (steps, Z).

    Spherical interpolation (Shoemake 1985; White 2016, "Sampling generative networks"): codes of N(0, I) lie near a
    sphere, and the straight line between two of them leads through its inside, where nothing was learned.
    """
    angle = torch.arccos((start @ end / (start.norm() * end.norm()).clamp_min(1e-12)).clamp(-1, 1))
    t = torch.linspace(0, 1, steps)[:, None]  # (steps, 1)
    if angle.sin() < 1e-4:  # the same direction, or opposite ones: there is no one circle
        return (1 - t) * start + t * end
    return (((1 - t) * angle).sin() * start + (t * angle).sin() * end) / angle.sin()
