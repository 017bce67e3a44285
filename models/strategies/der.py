"""DER++ (Buzzega et al. 2020, "Dark experience for general continual learning: a strong, simple baseline", eq. 6).

    L = 2 s mean CE(f(x), y) + α mean |f(x') - z'|² + 2 (1 - s) mean CE(f(x''), y'')

s is the incoming classes' share of all, at most the 1/2 of the paper (`er`).
z' are the logits that a record had when it came; x' and x'' are the same draws here, where the paper draws twice.
"""

from __future__ import annotations

from torch import Tensor

from models.strategies.rehearsal import Rehearsal


def dark_experience(seen: Rehearsal) -> Tensor:
    return (2 if len(seen.replayed_y) else 1) * seen.together(most=0.5) + seen.from_kept()
