"""Where in a text its features are, so that what each adds to a score can be shared out among code points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.texts.hashing import letters


def spans(points: Tensor, orders: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Where the words of a text (n,) are, once more the words, and the n-grams with a space before and behind the text.

    Returns:
        (M,) int64 each: the first code point of each, and the one behind its last. Spaces around the text count for
        the code points next to them.
    """
    n = len(points)
    letter = letters(points)
    edge = torch.diff(F.pad(letter, (1, 1)).int())
    starts, ends = (edge == 1).nonzero()[:, 0], (edge == -1).nonzero()[:, 0]
    grams = [torch.arange(-1, n + 1 - order + 1) for order in orders if order <= n + 2]
    sizes = [torch.full_like(first, order) for first, order in zip(grams, orders, strict=False)]
    first = torch.cat([starts, starts, *grams])
    behind = torch.cat([ends, ends, *(first + size for first, size in zip(grams, sizes, strict=True))])
    return first.clamp_min(0), behind.clamp_max(n)


def shared_out(each: Tensor, occurring: Tensor, first: Tensor, behind: Tensor, count: int) -> Tensor:
    """What features (N, K) add → what each of so many code points does, (count, K) float64.

    Args:
        occurring: (M,) the feature that is at each of the spans.
        first, behind: (M,), as `spans` gives them.
    """
    times = torch.bincount(occurring, minlength=len(each))[occurring] * (behind - first)
    share = each.double()[occurring] / times[:, None]  # (M, K)
    steps = share.new_zeros(count + 1, each.shape[1])
    steps.index_add_(0, first, share).index_add_(0, behind, share, alpha=-1)
    return steps.cumsum(0)[:count]
