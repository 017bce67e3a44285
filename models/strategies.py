"""What a classifier minimises at an update, so that it keeps what it knew: strategies, by the names of a configuration.

A strategy sees one pass over incoming and replayed records and says what is minimised. It has no state: what is kept of
the past is the replay memory's, and with it, where a strategy asks for them, the logits that records had on arrival.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

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


def naive(seen: Rehearsal) -> Tensor:
    """The incoming records alone: L = mean CE(f(x), y). It forgets, and is here to show by how much."""
    return F.cross_entropy(seen.logits, seen.y)


def experience_replay(seen: Rehearsal) -> Tensor:
    """Chaudhry et al. 2019, "On tiny episodic memories in continual learning".

        L = s mean CE(f(x), y) + (1 - s) mean CE(f(x'), y')

    s is the share of incoming among all rows, as in the paper, and at most the share of incoming among all classes:
    where batches are of one class alone, they do not drown the others, however many records they have.
    """
    incoming, replayed = len(seen.y), len(seen.replayed_y)
    return seen.together(most=incoming / (incoming + replayed))


def asymmetric(seen: Rehearsal) -> Tensor:
    """ER-ACE (Caccia et al. 2022, "New insights on reducing abrupt representation change in online continual
    learning").

        L = mean CE(f(x)|_C, y) + mean CE(f(x'), y') + α mean |f(x') - z'|²

    C are the classes of the incoming batch: incoming records compete among these alone, so that they do not push down
    the logits of all that is not coming just now; the replayed ones compete among all (asymmetric cross-entropy, eqs.
    3–4). With α, that is `logits_weight`, replayed records also keep the logits z' that they came with, as in DER.

    Unlike in the paper, where the incoming batch is of one class, L is that of `experience_replay`, with α: among
    itself alone a class would learn nothing, and streams do bring one class for a while. Where nothing is replayed, C
    are all classes.
    """
    if not len(seen.replayed_y):
        return F.cross_entropy(seen.logits, seen.y)
    apart = among_incoming(seen) + F.cross_entropy(seen.replayed, seen.replayed_y)
    is_of_one_class = (seen.y == seen.y[0]).all()  # () on the device, which is not asked for it
    return torch.where(is_of_one_class, experience_replay(seen), apart) + seen.from_kept()


def among_incoming(seen: Rehearsal) -> Tensor:
    """mean CE(f(x)|_C, y)"""
    here = torch.zeros(seen.logits.shape[1], dtype=torch.bool, device=seen.y.device)
    here[seen.y] = True
    return F.cross_entropy(seen.logits.masked_fill(~here, -torch.inf), seen.y)


def dark_experience(seen: Rehearsal) -> Tensor:
    """DER++ (Buzzega et al. 2020, "Dark experience for general continual learning: a strong, simple baseline", eq. 6).

        L = 2 s mean CE(f(x), y) + α mean |f(x') - z'|² + 2 (1 - s) mean CE(f(x''), y'')

    s is the incoming classes' share of all, at most the 1/2 of the paper (`experience_replay`). z' are the logits that
    a record had when it came; x' and x'' are the same draws here, where the paper draws twice.
    """
    return (2 if len(seen.replayed_y) else 1) * seen.together(most=0.5) + seen.from_kept()


def generative_replay(seen: Rehearsal) -> Tensor:
    """Incoming records beside such as `models.dreams` draws of every class.

        L = mean CE(f(x)|_C, y) + mean over classes of mean CE(f(x̃), y)

    C are the classes of the incoming batch (`asymmetric`): what tells them apart is learned from records alone. x̃ are
    the incoming and the dreamed records together, and every class counts alike there. Shin et al. 2017 ("Continual
    learning with deep generative replay", eq. 3) weigh the two by tasks, which nobody names here; with classes in the
    place of tasks, and dreams of the incoming ones too, that would favour what is coming.
    """
    y = torch.cat([seen.y, seen.replayed_y])  # (B + R,)
    losses = F.cross_entropy(torch.cat([seen.logits, seen.replayed]), y, reduction="none")
    weights = 1 / (y[:, None] == y).sum(1)  # which sum to the number of classes
    return among_incoming(seen) + (weights * losses).sum() / weights.sum()


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
