"""Experience replay (Chaudhry et al. 2019, "On tiny episodic memories in continual learning").

    L = mean CE(f(x), y) over incoming and replayed records together

so that what is coming weighs the less the more is replayed: where batches are of one class alone, they do not drown the
others.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.strategies.seen import Seen


def experience_replay(seen: Seen) -> Tensor:
    logits = torch.cat([seen.logits, seen.replayed])  # (B + R, K)
    return F.cross_entropy(logits, torch.cat([seen.y, seen.replayed_y]))
