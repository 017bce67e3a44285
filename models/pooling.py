"""One answer of several: the logarithmic pool of probabilities, with weights that explain records best.

    softmax(Σ_i a_i log p_i)

(Genest and Zidek 1986, "Combining probability distributions"). The weights a ≥ 0 minimise, over records y,

    Σ -log answer_y + ρ/2 ((a_0 - 1)² + Σ_{i>0} a_i²)

so that without records the first of them answers alone. What the weights add up to is how sure the answers may be; of
a single one it is the inverse of its temperature (Guo et al. 2017, "On calibration of modern neural networks").
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PRIOR = 4.0  # ρ: as if so many records spoke for the first one alone
FLOOR = -30.0  # the least logarithm of a probability
STEPS = 30  # of Newton's method, at most


def floored(logs: Tensor) -> Tensor:
    """None below `FLOOR`, in double precision on the CPU."""
    return logs.cpu().double().clamp_min(FLOOR)


def pooled(logs: Tensor, weights: Tensor) -> Tensor:
    """Logarithms of probabilities (..., P, K), weights (P,) → logits (..., K)"""
    return (weights.to(logs)[:, None] * logs).sum(-2)


def first_alone(parts: int) -> Tensor:
    """The weights (P,) float64 without any record."""
    return torch.eye(parts, dtype=torch.float64)[0]


def fitted(logs: Tensor, y: Tensor) -> Tensor:
    """Logarithms (N, P, K) float64 and the classes (N,) → the weights (P,) float32 that explain them best; P ≤ 2.

    The loss is convex: where its minimum has a negative weight, the best one has a zero.
    """
    parts = logs.shape[1]
    best = minimum(logs, y, torch.ones(parts, dtype=torch.float64))
    if (best >= 0).all():
        return best.float()
    alone = [minimum(logs, y, free).clamp_min(0) for free in torch.eye(parts, dtype=torch.float64)]
    return min(alone, key=lambda weights: objective(logs, y, weights)).float()


def heard(logs: Tensor, y: Tensor) -> Tensor:
    """As `fitted`; but only the weight of the first of them is not 0, unless the pool is right more often than the
    first alone by one standard deviation of chance: the root of how many records only one of both is right about.

    A network that is less right can still make surprises smaller, and then the pool has more errors than the first.
    """
    found = fitted(logs, y)
    gained = right(pooled(logs, found), y).double() - right(logs[:, 0], y).double()  # (N,) of -1, 0 and 1
    if gained.sum() >= gained.abs().sum().sqrt():
        return found
    return F.pad(fitted(logs[:, :1], y), (0, logs.shape[1] - 1))


def right(logits: Tensor, y: Tensor) -> Tensor:
    """Which (N,) of (N, K) are highest at their classes (N,)."""
    return logits.argmax(1) == y


def objective(logs: Tensor, y: Tensor, weights: Tensor) -> float:
    away = (weights - first_alone(len(weights)).to(weights)).square().sum().item()
    return F.cross_entropy(pooled(logs, weights), y, reduction="sum").item() + PRIOR / 2 * away


def minimum(logs: Tensor, y: Tensor, free: Tensor) -> Tensor:
    """Of the objective, by Newton's method with steps that are halved until they lead down; only the weights that are
    free (P,) are not 0."""
    parts = len(free)
    prior = first_alone(parts)
    weights = prior * free
    of_class = logs.gather(2, y[:, None, None].expand(-1, parts, 1)).squeeze(2)  # (N, P)
    value = objective(logs, y, weights)
    for _ in range(STEPS):
        p = pooled(logs, weights).softmax(1)  # (N, K)
        mean = (p[:, None] * logs).sum(2)  # (N, P)
        spread = torch.einsum("nk,nik,njk->ij", p, logs, logs) - mean.T @ mean
        slope = ((mean - of_class).sum(0) + PRIOR * (weights - prior)) * free
        curvature = (spread + PRIOR * torch.eye(parts, dtype=torch.float64)) * free * free[:, None]
        step = torch.linalg.solve(curvature + torch.diag(1 - free), slope)
        while (found := objective(logs, y, weights - step)) > value and step.abs().max() > 1e-6:
            step = step / 2
        if found >= value:
            break
        weights, value = weights - step, found
    return weights
