"""Why a classifier answers as it does: what its answer becomes without a part of the record.

That needs nothing of a model but `classify`, so it is the same for all of them. A part speaks for a class by as much as
the log-odds of the class fall without it:

    log p / (1 - p)

A part of a picture is a cell and the eight around it, covered with the colour that the picture has most of (occlusion:
Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks"). So what looks like the ground says
nothing. A part of a text is a word, which is left out; where the scores of a classifier are sums over what
is in a text, it is told instead what exactly the word adds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import accumulate, product

import torch
from torch import Tensor
from torch.nn import functional as F

from models.capabilities import Linear

CELLS = 14  # of a picture's side
WORDS = 96  # parts of a text: where it has more words, a part is several of them
AT_ONCE = 32  # records that are classified together
LEAST = 1e-30  # probability: odds of 10³⁰ are the most that are told apart
SPACE = 0x20
#: what is written without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
PART = re.compile(rf"(?:[{UNSPACED}]|[^\s{UNSPACED}]+)\s*|\s+")

Classify = Callable[[Tensor], Tensor]  # as a `Classifier` does


def occlusion(classify: Classify, x: Tensor, number: int) -> Tensor:
    """How much the surroundings of each cell of a picture x (C, H, W) uint8 speak for a class → (h, w) float32"""
    tops, lefts = edges(x.shape[1]), edges(x.shape[2])
    cells = list(product(range(len(tops) - 1), range(len(lefts) - 1)))
    ground = x.flatten(1).mode(1).values[:, None, None]

    def covered(rows: Sequence[int]) -> Tensor:
        found = x.repeat(len(rows), 1, 1, 1)
        for picture, (row, column) in zip(found, (cells[each] for each in rows), strict=True):
            picture[:, around(tops, row), around(lefts, column)] = ground
        return found

    return _worth(classify, x, covered, len(cells), number).view(len(tops) - 1, -1)


def around(edges: Sequence[int], cell: int) -> slice:
    """The pixels of a cell and of its neighbours on both sides."""
    return slice(edges[max(0, cell - 1)], edges[min(len(edges) - 1, cell + 2)])


def edges(side: int) -> list[int]:
    """Where cells begin and end on a side of so many pixels."""
    cells = min(CELLS, side)
    return [side * cell // cells for cell in range(cells + 1)]


def left_out(classify: Classify, x: Tensor, number: int) -> Tensor:
    """How much each of the `parts` of a text x (L,) int32 speaks for a class → (P,) float32"""
    ends = [0, *accumulate(map(len, parts(x)))]

    def without(rows: Sequence[int]) -> Tensor:
        rest = [torch.cat([x[: ends[row]], x[ends[row + 1] :]]) for row in rows]
        rest = [each if each.any() else each.new_tensor([SPACE]) for each in rest]  # a text is never empty
        return torch.stack([F.pad(each, (0, len(x) - len(each))) for each in rest])

    return _worth(classify, x, without, len(ends) - 1, number)


def added(model: Linear, x: Tensor, number: int) -> Tensor:
    """How much each of the `parts` of a text x (L,) adds to the score of a class, exactly → (P,) float32"""
    each = model.contributions(x)[:, number]
    return torch.stack([some.sum() for some in torch.split(each, [len(part) for part in parts(x)])]).float()


def parts(x: Tensor) -> list[str]:
    """The parts of a text x (L,), which together are the text."""
    words = PART.findall("".join(map(chr, x[x != 0].tolist())))
    several = -(-len(words) // WORDS)
    return ["".join(words[start : start + several]) for start in range(0, len(words), several or 1)]


def _worth(
    classify: Classify, x: Tensor, changed: Callable[[Sequence[int]], Tensor], count: int, number: int
) -> Tensor:
    """How much so many parts of a record x speak for a class → (count,) float32

    Args:
        changed: rows → the record without these parts, (B, ...)
    """
    rows = [range(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE)]
    rest = [log_odds(classify(changed(some)), number) for some in rows]
    return log_odds(classify(x[None]), number) - torch.cat(rest)


def log_odds(probabilities: Tensor, number: int) -> Tensor:
    """(B, K) → (B,) log p / (1 - p) of a class"""
    p = probabilities.double().cpu()
    others = torch.cat([p[:, :number], p[:, number + 1 :]], 1).sum(1)
    return (p[:, number].clamp_min(LEAST).log() - others.clamp_min(LEAST).log()).float()
