"""ER-ACE (Caccia et al. 2022, "New insights on reducing abrupt representation change in online continual learning").

    L = mean CE(f(x)|_C, y) + mean CE(f(x'), y') + α mean |f(x') - z'|²

C are the classes of the incoming batch: incoming records compete among these alone, so that they do not push down the
logits of all that is not coming just now; the replayed ones compete among all (asymmetric cross-entropy, eqs. 3–4).
Where nothing is replayed they compete among all: a batch of one class would teach nothing else. With α, that is
`logits_weight`, replayed records also keep the logits z' that they came with, as in DER (`der`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.strategies.seen import Seen


def asymmetric(seen: Seen) -> Tensor:
    if not len(seen.replayed_y):
        return F.cross_entropy(seen.logits, seen.y)
    return among_incoming(seen) + F.cross_entropy(seen.replayed, seen.replayed_y) + seen.from_kept()


def among_incoming(seen: Seen) -> Tensor:
    """mean CE(f(x)|_C, y)"""
    here = torch.zeros(seen.logits.shape[1], dtype=torch.bool, device=seen.y.device)
    here[seen.y] = True
    return F.cross_entropy(seen.logits.masked_fill(~here, -torch.inf), seen.y)
