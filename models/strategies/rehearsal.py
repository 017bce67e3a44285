"""What a strategy sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """One pass over the incoming and the replayed records of an update."""

    logits: Tensor  # (B, K) of incoming records
    y: Tensor  # (B,) their classes
    replayed: Tensor  # (R, K) of replayed records; R is 0 while there are none
    replayed_y: Tensor  # (R,)
    kept: Tensor | None = None  # (R, L) logits of replayed records when they came
    compared: Tensor | None = None  # (R, L) bool: which of these there are; classes that came up later have none
    logits_weight: float = 0.0  # α

    def from_kept(self) -> Tensor:
        """α mean |f(x') - z'|², over the logits that were kept; 0 where there are none."""
        if self.kept is None or self.compared is None or not self.compared.any():
            return self.logits.new_zeros(())
        ours = self.replayed[:, : self.kept.shape[1]]
        missing = self.kept.shape[1] - ours.shape[1]
        squares = (F.pad(ours, (0, missing)) - self.kept).square().masked_fill(~self.compared, 0.0)
        return self.logits_weight * squares.sum() / self.compared.sum()

    def together(self, most: float) -> Tensor:
        """s mean CE(f(x), y) + (1 - s) mean CE(f(x'), y'), where s is the incoming classes' share of all classes.

        Rows do not count: many incoming records of one class weigh no more than few. s is at most `most`.
        """
        incoming = F.cross_entropy(self.logits, self.y)
        if not len(self.replayed_y):
            return incoming
        here = torch.zeros(self.logits.shape[1], device=self.y.device)
        here[self.y] = 1.0
        share = here.mean().clamp_max(most)
        return share * incoming + (1 - share) * F.cross_entropy(self.replayed, self.replayed_y)
