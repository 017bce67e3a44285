"""What the two sides of a GAN minimise, its gradient penalties, and the sign that it collapses.

With scores a = D(x, c) of a real picture and b = D(G(z, c), c) of a drawn one, paired under the same condition:

- "relativistic" (Jolicoeur-Martineau 2019; with the penalties below, R3GAN: Huang et al. 2024, "The GAN is dead; long
  live the GAN!"): the discriminator minimises softplus(b - a), the generator softplus(a - b). It asks only that a real
  picture scores above the drawn one beside it, so that a generator that drops a mode has no minimum to rest in.
- "minimax": softplus(-a) + softplus(b), and softplus(-b): Goodfellow et al. 2014, the generator's side in the form of
  their section 3 that does not saturate.
- "hinge": max(0, 1 - a) + max(0, 1 + b), and -b (Lim and Ye 2017).

The penalties are R1 = |∇ₓ D|² at real pictures (Mescheder et al. 2018) and R2, the same at drawn ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.network import root

LossName = Literal["relativistic", "minimax", "hinge"]


def discriminator_losses(name: LossName, real: Tensor, fake: Tensor) -> Tensor:
    """Scores (B,) of real and drawn pictures, paired → (B,) what the discriminator minimises."""
    if name == "relativistic":
        return F.softplus(fake - real)
    if name == "minimax":
        return F.softplus(-real) + F.softplus(fake)
    return (1 - real).relu() + (1 + fake).relu()


def generator_losses(name: LossName, real: Tensor, fake: Tensor) -> Tensor:
    """Scores (B,) of real and drawn pictures, paired → (B,) what the generator minimises."""
    if name == "relativistic":
        return F.softplus(real - fake)
    return F.softplus(-fake) if name == "minimax" else -fake


def gradient_penalties(scores: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """scores (B,), each of its own row of the inputs (B, …) alone → (B,) |∇ D|², summed over inputs; differentiable."""
    # On this thread: a GPU's own numbers the nodes by itself, and the order in which gradients are summed would depend
    # on how many each thread has made before, which a restart forgets.
    with torch.autograd.set_multithreading_enabled(False):
        gradients = torch.autograd.grad(scores.sum(), list(inputs), create_graph=True)
    return torch.stack([gradient.square().flatten(1).sum(1) for gradient in gradients]).sum(0)


class Spread:
    """How far drawings of one label lie apart, against real pictures of that label: a collapsed generator's do not.

    Neighbours of the same label in a batch are compared, real with real and the drawings made for the same labels with
    each other, each by `traits`: drawings that differ in place and outline may all have one weight and one slant. Each
    label has means of its own, over the first `HORIZON` pairs, exponential after that, so that a few that collapse do
    not hide among many. It costs no further pass.
    """

    HORIZON = 200  # pairs
    ONE = 0.5  # of the share that is asked for: the least that a single trait may have

    def __init__(self) -> None:
        self._of: dict[int, tuple[int, Tensor]] = {}  # label → pairs, means (2, T) of the real ones, of the drawn ones

    @property
    def share(self) -> float | None:
        """The drawings' spread as a share of the real one, the geometric mean over traits, of the label where it is
        least; None before `HORIZON`."""
        return min((each.log().mean().exp().item() for each in self._shares()), default=None)

    @property
    def least(self) -> float | None:
        """The same of the trait where it is least: letters of one slant differ in all else."""
        return min((each.min().item() for each in self._shares()), default=None)

    def _shares(self) -> list[Tensor]:
        """Of each label that has been seen for long enough, the share of each trait that real pictures differ in."""
        means = [each for pairs, each in self._of.values() if pairs >= self.HORIZON]
        return [(drawn / real)[real > 0] for real, drawn in means if real.any()]

    def update(self, real: Tensor, drawn: Tensor, numbers: Tensor) -> None:
        """real and drawn (B, C, H, W) on one scale, sides multiples of 4, numbers (B,) the classes of both."""
        order = torch.argsort(numbers, stable=True)
        one, other = order[:-1], order[1:]
        pairs = numbers[one] == numbers[other]
        one, other = one[pairs], other[pairs]
        near = torch.stack([apart(x, one, other) for x in (real, drawn)], 1).cpu()  # (pairs, 2, T)
        for label, found in zip(numbers[one].tolist(), near, strict=True):
            count, means = self._of.get(label, (0, torch.zeros_like(found)))
            self._of[label] = (count + 1, means + (found - means) / min(count + 1, self.HORIZON))

    def collapsed(self, share: float) -> bool:
        """Whether, over a whole horizon, the drawings of a label are less apart than this share of the real ones, or
        less than `ONE` of it in a single trait."""
        whole, least = self.share, self.least
        return whole is not None and least is not None and (whole < share or least < self.ONE * share)

    def meta(self) -> list[list[Any]]:
        """JSON."""
        return [[label, pairs, *means.tolist()] for label, (pairs, means) in self._of.items()]

    def restore(self, meta: Sequence[Sequence[Any]]) -> None:
        """Takes what `meta` gave. Older versions had one trait alone: they start anew."""
        of_traits = [row for row in meta if isinstance(row[2], list)]
        self._of = {label: (pairs, torch.tensor(means, dtype=torch.float64)) for label, pairs, *means in of_traits}


def apart(x: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """x (B, C, H, W), places (P,) of pictures and of others → (P, T) float64: how far they are apart in each trait

    The first is the root mean square over means of 4 × 4 pixels, since the outlines of one and the same picture jitter.
    """
    coarse, seen = F.avg_pool2d(x, 4), traits(x)
    whole = root((coarse[one] - coarse[other]).square().flatten(1).mean(1, keepdim=True))
    return torch.cat([whole.double(), (seen[one] - seen[other]).abs()], 1)


def traits(x: Tensor) -> Tensor:
    """x (B, C, H, W) → (B, 4) float64: how bright it is, its contrast, where its edges lie: upright or flat, slanted

    The latter two are those of the mean structure tensor (Bigün and Granlund 1987), as shares of its trace.
    """
    grey = x.double().mean(1)  # (B, H, W)
    across, down = grey[:, 1:, 1:] - grey[:, 1:, :-1], grey[:, 1:, 1:] - grey[:, :-1, 1:]
    squares = (across.square() + down.square()).mean((1, 2)).clamp_min(1e-6)
    upright = (across.square() - down.square()).mean((1, 2)) / squares
    slanted = 2 * (across * down).mean((1, 2)) / squares
    return torch.stack([grey.mean((1, 2)), grey.flatten(1).std(1, correction=0), upright, slanted], 1)
