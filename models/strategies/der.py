"""DER++ (Buzzega et al. 2020, "Dark experience for general continual learning: a strong, simple baseline", eq. 6).

    L = mean CE(f(x), y) + α mean |f(x') - z'|² + mean CE(f(x''), y'')

z' are the logits that a record had when it came; x' and x'' are the same draws here, where the paper draws twice.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from models.strategies.seen import Seen


def dark_experience(seen: Seen) -> Tensor:
    loss = F.cross_entropy(seen.logits, seen.y) + seen.from_kept()
    return loss + F.cross_entropy(seen.replayed, seen.replayed_y) if len(seen.replayed_y) else loss
