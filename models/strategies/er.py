"""Experience replay (Chaudhry et al. 2019, "On tiny episodic memories in continual learning").

L = mean CE(f(x), y) + mean CE(f(x'), y'),   (x', y') from the replay memory
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from models.strategies.seen import Seen


def experience_replay(seen: Seen) -> Tensor:
    loss = F.cross_entropy(seen.logits, seen.y)
    return loss + F.cross_entropy(seen.replayed, seen.replayed_y) if len(seen.replayed_y) else loss
