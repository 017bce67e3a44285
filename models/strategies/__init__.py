"""What a classifier minimises at an update, so that it keeps what it knew: strategies, by the names of a configuration.

A strategy sees one pass over incoming and replayed records and says what is minimised. It has no state: what is kept of
the past is the replay memory's, and with it, where a strategy asks for them, the logits that records had on arrival.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from models.strategies.der import dark_experience
from models.strategies.dreams import generative_replay
from models.strategies.er import experience_replay
from models.strategies.er_ace import asymmetric
from models.strategies.naive import naive
from models.strategies.rehearsal import Rehearsal

StrategyName = Literal["naive", "er", "er-ace", "der++", "dreams"]
STRATEGIES: Mapping[StrategyName, Callable[[Rehearsal], Tensor]] = {
    "naive": naive,
    "er": experience_replay,
    "er-ace": asymmetric,
    "der++": dark_experience,
    "dreams": generative_replay,
}
#: those that compare replayed records with the logits that they had
KEEPING_LOGITS = ("er-ace", "der++")

__all__ = ["KEEPING_LOGITS", "STRATEGIES", "Rehearsal", "StrategyName"]
