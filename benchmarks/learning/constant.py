"""What a replay memory and an update cost with many slots, or after many records, beside few: ratios of CPU time.

Pictures are 28 × 28, of noise: what they show does not matter here; a million of them are 784 MB of memory. An update
is one of the image classifier with default options, 64 records and 16 draws.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch

from benchmarks.learning.runs import CPU
from benchmarks.pairs import alternated
from benchmarks.report import Figure, Findings
from models.classifier import ClassifierLearner
from models.dreams import Memory
from models.images import classifier as image_classifier
from models.images.classifier import ImageClassifierOptions
from models.learner import Batch, Learner, update_generator
from models.memory import POLICIES, PolicyName, ReplayMemory

SHAPE = (1, 28, 28)
FEW, MANY = 1_000, 1_000_000
BATCH, DRAWS, CLASSES = 64, 16, 10
PAIRS, ROUNDS = 41, 15  # rounds of each of a pair: a small memory is not full after them
CEILING = 1.1  # of an update: a memory of 784 MB is not in any cache


def measure() -> Findings:
    """The memory's operations for each policy, then updates."""
    figures: list[Figure] = []
    for policy in POLICIES:
        small = [empty(policy, FEW) for _ in range(PAIRS + 1)]
        large = empty(policy, MANY)
        offered(large, MANY - (PAIRS + 1) * ROUNDS * BATCH)
        pairs = alternated(operations(iter(small)), operations(itertools.repeat(large)), PAIRS)
        few_us, many_us = (1e6 * statistics.median(side) / ROUNDS for side in zip(*pairs, strict=True))
        told = f"**{ratio(pairs):.2f}**: {few_us:.0f} and {many_us:.0f} µs for {BATCH} records and {DRAWS} draws"
        figures.append(Figure(f"add, draw and capture, `{policy}`: {MANY:,} slots, of {FEW:,} slots", told))
    learners = [learner(slots) for slots in (FEW, MANY)]
    for each in learners:
        offered(each._memory, each.replay_capacity)
    figures.append(compared("slots", *learners))
    learners = [learner(FEW), learner(FEW)]
    for each, records in zip(learners, (FEW, MANY), strict=True):
        learned(each, records)
    figures.append(compared("records", *learners))
    return Findings(figures, ["A thousand pictures fit into the processor's caches, a million do not."], {})


def compared(what: str, few: Learner, many: Learner) -> Figure:
    share = ratio(alternated(partial(learned, few, ROUNDS * BATCH), partial(learned, many, ROUNDS * BATCH), PAIRS))
    return Figure(
        f"an update: {MANY:,} {what}, of {FEW:,} {what}", f"**{share:.2f}**", f"≤ {CEILING}", share <= CEILING
    )


def ratio(pairs: list[tuple[float, float]]) -> float:
    return statistics.median(many / few for few, many in pairs)


def noise() -> Iterator[Batch]:
    """Batches without end, of the same pictures again and again."""
    origins, labels = torch.zeros(BATCH, 3, dtype=torch.int64), [str(row % CLASSES) for row in range(BATCH)]
    for number, x in enumerate(itertools.cycle(pictures())):
        ids = torch.arange(2 * number * BATCH, 2 * (number + 1) * BATCH).view(torch.uint8).view(BATCH, 16)
        yield Batch(x, labels, origins, ids)


@cache
def pictures() -> torch.Tensor:
    """(100, B, C, H, W) uint8"""
    return torch.randint(256, (100, BATCH, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def numbers_of(batch: Batch) -> list[int]:
    return [int(label) for label in batch.labels if label is not None]


def offered(memory: Memory, records: int) -> None:
    """Gives the memory so many records."""
    for number, batch in zip(range(-(-records // BATCH)), noise(), strict=False):
        memory.add(batch, numbers_of(batch), update_generator(0, number))
    memory.capture()


def empty(policy: PolicyName, slots: int) -> ReplayMemory:
    """A memory whose pages are all there: the system gives a large one its pages when they are first written."""
    memory = ReplayMemory(slots, SHAPE, torch.uint8, CPU, policy)
    for rows in memory.capture().values():
        rows.tensor.copy_(rows.tensor.clone())
    return memory


def operations(memories: Iterator[ReplayMemory]) -> Callable[[], None]:
    """What updates and commits ask of a memory that is not full yet, so that it takes every record."""
    batches, numbers = noise(), itertools.count()

    def work() -> None:
        memory = next(memories)
        for number in itertools.islice(numbers, ROUNDS):
            rng, batch = update_generator(1, number), next(batches)
            memory.draw(DRAWS, rng)
            memory.add(batch, numbers_of(batch), rng)
            memory.capture()

    return work


def learner(slots: int) -> ClassifierLearner[Any]:
    return image_classifier.learner(ImageClassifierOptions(replay_slots=slots, replay_draws=DRAWS), SHAPE, 0, CPU)


def learned(learner: Learner, records: int) -> None:
    """Has the learner learn so many."""
    for number, batch in zip(range(-(-records // BATCH)), noise(), strict=False):
        learner.learn(batch, update_generator(1, number))
