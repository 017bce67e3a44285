"""Experience replay (Chaudhry et al. 2019, "On tiny episodic memories in continual learning").

    L = s mean CE(f(x), y) + (1 - s) mean CE(f(x'), y')

s is the share of incoming among all rows, as in the paper, and at most the share of incoming among all classes: where
batches are of one class alone, they do not drown the others, however many records they have.
"""

from __future__ import annotations

from torch import Tensor

from models.strategies.rehearsal import Rehearsal


def experience_replay(seen: Rehearsal) -> Tensor:
    incoming, replayed = len(seen.y), len(seen.replayed_y)
    return seen.together(most=incoming / (incoming + replayed))
