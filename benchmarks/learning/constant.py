"""What a replay memory and an update cost with many slots, or after many records, beside few: ratios of CPU time.

Pictures are 28 × 28, of noise: what they show does not matter here. Every slot is written before, so that a million of
them are 784 MB of real memory. An update is one of the image classifier with default options, 64 records.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.learning.runs import CPU
from benchmarks.pairs import alternated
from benchmarks.report import Figure, Findings
from models import image_classifier
from models.classifier import ClassifierLearner
from models.image_classifier import ImageClassifierOptions
from models.learner import Batch, Learner, update_generator
from models.memory import POLICIES, PolicyName, ReplayMemory

SHAPE = (1, 28, 28)
FEW, MANY = 1_000, 1_000_000
BATCH, DRAWS, CLASSES = 64, 16, 10
PAIRS, ROUNDS = 41, 20  # rounds of each of a pair
CEILING = 1.1  # of an update: a memory of 784 MB is not in any cache


def measure() -> Findings:
    """The memory's operations for each policy, then updates."""
    figures: list[Figure] = []
    for policy in POLICIES:
        few, many = (operations(stored(policy, slots)) for slots in (FEW, MANY))
        pairs = alternated(few, many, PAIRS)
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
    return Findings(figures, [], {})


def compared(what: str, few: Learner, many: Learner) -> Figure:
    share = ratio(alternated(partial(learned, few, ROUNDS * BATCH), partial(learned, many, ROUNDS * BATCH), PAIRS))
    return Figure(
        f"an update: {MANY:,} {what}, of {FEW:,} {what}", f"**{share:.2f}**", f"≤ {CEILING}", share <= CEILING
    )


def ratio(pairs: list[tuple[float, float]]) -> float:
    return statistics.median(many / few for few, many in pairs)


def noise() -> Iterator[Batch]:
    """Batches without end, of the same pictures again and again."""
    pictures = torch.randint(256, (100, BATCH, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    origins, ids = torch.zeros(BATCH, 3, dtype=torch.int64), torch.zeros(BATCH, 16, dtype=torch.uint8)
    labels = [str(row % CLASSES) for row in range(BATCH)]
    return (Batch(x, labels, origins, ids) for x in itertools.cycle(pictures))


def numbers_of(batch: Batch) -> list[int]:
    return [int(label) for label in batch.labels if label is not None]


def offered(memory: ReplayMemory, records: int) -> None:
    """Gives the memory so many records."""
    for number, batch in zip(range(-(-records // BATCH)), noise(), strict=False):
        memory.add(batch, numbers_of(batch), update_generator(0, number))
    memory.capture()


def stored(policy: PolicyName, slots: int) -> ReplayMemory:
    """A full memory."""
    memory = ReplayMemory(slots, SHAPE, torch.uint8, CPU, policy)
    offered(memory, slots)
    return memory


def operations(memory: ReplayMemory) -> Callable[[], None]:
    """What an update and a commit ask of a memory, some rounds of it."""
    batches, numbers = noise(), itertools.count()

    def work() -> None:
        for number in itertools.islice(numbers, ROUNDS):
            rng, batch = update_generator(1, number), next(batches)
            memory.draw(DRAWS, rng)
            memory.add(batch, numbers_of(batch), rng)
            memory.capture()

    return work


def learner(slots: int) -> ClassifierLearner:
    return image_classifier.learner(ImageClassifierOptions(replay_slots=slots, replay_draws=DRAWS), SHAPE, 0, CPU)


def learned(learner: Learner, records: int) -> None:
    """Has the learner learn so many."""
    for number, batch in zip(range(-(-records // BATCH)), noise(), strict=False):
        learner.learn(batch, update_generator(1, number))
