"""Why a model does badly, and what to do, from what a worker measures anyway: see docs/learners/diagnoses.md.

Nothing here touches what is learned: it reads the labels of the last records, and asks the live network once a
version.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.acquainted import AcquaintedModel
from models.capabilities import Classifier
from models.classifier import ClassifierNetwork

WINDOW = 1000  # records that are looked back at
SOME = 64  # records without which nothing is said
ORDERED = 5  # so many times fewer changes of class than in random order are one class at a time
SILENT = 0.8  # of a layer's units
MANY_CUT = 0.05  # of the texts
ENOUGH = 100  # records of each class
ENOUGH_EACH = 20  # records of each class, after which more is told than by chance
NEAR_CHANCE = 0.05  # of what lies between chance and all
LOPSIDED = 0.9  # the share of a class that makes chance no measure
EACH = (5, 10, 20, 50)  # records of each class, of which was measured
#: kind of record → set → accuracy on held-back records after so many (docs/learners/diagnoses.md)
EXPECTED = {
    "image": {"digits": (0.80, 0.91, 0.94, 0.96), "photographs": (0.22, 0.29, 0.36, 0.41)},
    "text": {"short requests": (0.78, 0.84, 0.90, 0.93), "long posts": (0.16, 0.28, 0.40, 0.56)},
}
READ = ("learned", "held-out", "skipped", "dead-lettered")  # outcomes of records
ADVICE = {
    "skipped/unlabelled": "Publish with labels: sub-folders that are named by them, or --label.",
    "dead-lettered/content-type": "Publish what the model reads, or look at input.kind.",
    "dead-lettered/undecodable": "`headrace dead-letters show` tells more; another format wants a decoder.",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """Units behind a ReLU, asked about the last records."""

    name: str
    units: int
    silent: int  # zero for each of them


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of a model and of the last records that it learned."""

    records: int  # learned, since the beginning
    classes: int  # that a classifier knows
    kind: str  # of its records: "image" or "text"
    last: int  # how many records the next three are of
    changes: int  # of these, with another class than the one before
    random: float  # such changes, expected in random order
    largest: float  # the share of the largest class
    accuracy: float | None = None  # before learning, over the last records
    replay_draws: int | None = None  # None: the learner does not mind the order
    cut: float = 0.0  # of the texts, the share that is longer than `most`
    most: int = 0  # characters of a text that are read
    layers: Sequence[Layer] = ()
    counts: Mapping[str, int] = field(default_factory=dict)  # records by outcome


class LastLabels:
    """The last records: their classes, how often each came, and a few as they are."""

    def __init__(self) -> None:
        self._x: deque[Tensor] = deque()  # of the last updates, `SOME` rows or a batch more
        self._last: deque[str] = deque(maxlen=WINDOW)
        self._seen: Counter[str] = Counter()

    def add(self, x: Tensor, labels: Sequence[str | None]) -> None:
        """The records of an update, as in its batch; what has no label has no class."""
        self._x.append(x)
        while sum(map(len, self._x)) - len(self._x[0]) >= SOME:
            self._x.popleft()
        labelled = [label for label in labels if label is not None]
        self._last.extend(labelled)
        self._seen.update(labelled)

    def __len__(self) -> int:
        """Records of a class that are looked back at."""
        return len(self._last)

    def layers(self, model: object) -> list[Layer]:
        """What the networks in a classifier make of the last records, where these are `SOME`."""
        enough = sum(map(len, self._x)) >= SOME
        return layers(model, torch.cat([*self._x])) if enough and isinstance(model, Classifier) else []

    @property
    def changes(self) -> int:
        """Records with another class than the one before."""
        return sum(one != other for one, other in pairwise(self._last))

    @property
    def random(self) -> float:
        """Changes in random order: (n - 1) (1 - Σ p²), p the share of each class so far."""
        total = self._seen.total()
        same = sum((count / total) ** 2 for count in self._seen.values()) if total else 1.0
        return max(0, len(self._last) - 1) * (1 - same)

    @property
    def largest(self) -> float:
        """The share of the largest class among the last records; 0 without any."""
        return max(Counter(self._last).values(), default=0) / max(1, len(self._last))


@torch.no_grad()
def layers(model: Classifier, x: Tensor) -> list[Layer]:
    """The last layer of each network in a classifier, on records x (B, ...) as in `Batch.x`: what its head reads."""
    inner = model.inner if isinstance(model, AcquaintedModel) else model
    parts = dict(inner.named_modules()) if isinstance(inner, nn.Module) else {}
    networks = {name: part for name, part in parts.items() if isinstance(part, ClassifierNetwork) and part.classes}
    read: dict[nn.Module, Tensor] = {}
    hooks = [
        network.head.register_forward_pre_hook(lambda head, given: read.update({head: given[0]}))
        for network in networks.values()
    ]
    if networks:
        model.classify(x)
    for hook in hooks:
        hook.remove()
    found = {name or "the network": read[network.head] for name, network in networks.items()}  # (B, D) each
    return [
        Layer(f"{name}'s last layer", units.shape[1], int((units == 0).all(0).sum()))
        for name, units in found.items()
        if bool((units >= 0).all())  # behind a ReLU
    ]


def diagnose(seen: Measured) -> dict[str, str]:
    """What is wrong, by name: a sentence on what is seen, and one on what to do."""
    found = {name: look(seen) for name, look in DIAGNOSES.items()}
    return {name: text for name, text in found.items() if text}


def unlearned(seen: Measured) -> str | None:
    """Most records are skipped or dead-lettered, for one reason."""
    read = sum(count for name, count in seen.counts.items() if name.partition("/")[0] in READ)
    for name, count in seen.counts.items():
        if "/" in name and count >= SOME and 2 * count > read:
            advice = ADVICE.get(name, "`headrace log` tells more.")
            return f"{count:,} of {read:,} records are not learned: {name}. {advice}"
    return None


def cut_texts(seen: Measured) -> str | None:
    """Texts are longer than what is read of them."""
    if seen.cut <= MANY_CUT:
        return None
    return (
        f"{seen.cut:.0%} of the texts are longer than input.max_chars = {seen.most} and were cut. Publish them in "
        f"pieces, or give a new model a larger one."
    )


def many_classes(seen: Measured) -> str | None:
    """Labels are names of records."""
    if seen.records < SOME or 2 * seen.classes <= seen.records:
        return None
    return (
        f"{seen.classes:,} labels for {seen.records:,} records: nearly each has its own. Publish what records have in "
        f"common as their label, and what tells them apart as their id."
    )


def few_records(seen: Measured) -> str | None:
    """Not enough of each class yet."""
    each = seen.records // max(1, seen.classes)
    if seen.classes < 2 or each >= ENOUGH or many_classes(seen):
        return None
    row = bisect_right(EACH, each) - 1
    likely = " and ".join(f"about {shares[row]:.0%} on {name}" for name, shares in EXPECTED.get(seen.kind, {}).items())
    expected = f"expect {likely}, as measured" if row >= 0 and likely else "a beginning"
    return (
        f"{seen.records:,} records of {seen.classes:,} classes, {each:,} of each: {expected}. "
        f"Publish more, {ENOUGH} of each."
    )


def one_class(seen: Measured) -> str | None:
    """There is nothing to tell apart."""
    if seen.classes != 1 or seen.last < SOME:
        return None
    return f"All {seen.records:,} records are of one class. Publish records of other classes among them."


def in_order(seen: Measured) -> str | None:
    """Records come one class at a time, and the learner forgets the earlier ones."""
    if seen.replay_draws is None or not _is_ordered(seen):
        return None
    return (
        f"One class at a time: {seen.changes:,} of the last {seen.last:,} records are of another class than the one "
        f"before them, in random order {seen.random:,.0f} would be. Publish shuffled, as `headrace publish FOLDER` "
        f"does, or raise options.replay_draws = {seen.replay_draws}."
    )


def _is_ordered(seen: Measured) -> bool:
    return seen.last >= SOME and ORDERED * max(seen.changes, 2) < seen.random


def at_chance(seen: Measured) -> str | None:
    """Predictions are no better than always the most frequent class."""
    chance = seen.largest + NEAR_CHANCE * (1 - seen.largest)
    few = seen.last < SOME or seen.records < ENOUGH_EACH * seen.classes
    if few or seen.accuracy is None or seen.accuracy > chance or seen.largest > LOPSIDED or _is_ordered(seen):
        return None
    return (
        f"{seen.accuracy:.0%} of the last {seen.last:,} records were told before they were learned; always telling "
        f"their most frequent class has {seen.largest:.0%}. See that labels belong to their records, that what "
        f"`input` leaves of a record is enough to tell its class, and try another learner."
    )


def silent_units(seen: Measured) -> str | None:
    """Units behind a ReLU that are 0 for every record, and therefore learn no more."""
    for layer in seen.layers:
        if layer.silent > SILENT * layer.units:
            share = "all" if layer.silent == layer.units else f"{layer.silent:,} of {layer.units:,}"
            return (
                f"{share} units of {layer.name} are silent for all of the last records, and learn no more. Lower "
                f"learning_rate, publish shuffled, and start anew with `headrace reset`."
            )
    return None


DIAGNOSES: dict[str, Callable[[Measured], str | None]] = {
    "unlearned": unlearned,
    "one-class": one_class,
    "many-classes": many_classes,
    "in-order": in_order,
    "silent-units": silent_units,
    "cut-texts": cut_texts,
    "at-chance": at_chance,
    "few-records": few_records,
}
