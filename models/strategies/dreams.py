"""Generative replay: incoming records beside such as `models.dreams` draws of every class.

    L = mean CE(f(x)|_C, y) + mean over classes of mean CE(f(x̃), y)

C are the classes of the incoming batch, as in ER-ACE (`er_ace`): what tells them apart is learned from records alone. x̃
are the incoming and the dreamed records together, and every class counts alike there. Shin et al. 2017 ("Continual
learning with deep generative replay", eq. 3) weigh the two by tasks, which nobody names here; with classes in the place
of tasks, and dreams of the incoming ones too, that would favour what is coming.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.strategies.er_ace import among_incoming
from models.strategies.rehearsal import Rehearsal


def generative_replay(seen: Rehearsal) -> Tensor:
    y = torch.cat([seen.y, seen.replayed_y])  # (B + R,)
    losses = F.cross_entropy(torch.cat([seen.logits, seen.replayed]), y, reduction="none")
    weights = 1 / (y[:, None] == y).sum(1)  # which sum to the number of classes
    return among_incoming(seen) + (weights * losses).sum() / weights.sum()
