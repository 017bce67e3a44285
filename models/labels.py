"""Class names and their numbers: they are given in the order of first appearance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

NONE = -1  # the number of a record without a label


def likeliest(scores: Tensor, classes: Sequence[str]) -> list[str | None]:
    """Scores (B, K) and the classes of before an update → the likeliest of these for each record; None without any."""
    if not classes:
        return [None] * len(scores)
    return [classes[number] for number in scores[:, : len(classes)].argmax(1).tolist()]


class Labels:
    """The numbers behind a model's class names, up to a limit.

    Args:
        classes: the model's own list, which grows in place.
        limit: the most classes there may be; 0: labels are of no interest.
    """

    def __init__(self, classes: list[str], limit: int) -> None:
        self._classes = classes
        self._limit = limit
        self._numbers = {label: number for number, label in enumerate(classes)}

    def refuses(self, labels: Iterable[str | None]) -> Mapping[int, str]:
        """Row → reason, for each row whose label would be one class too many. Rows are looked at in order."""
        refused = {}
        new: set[str] = set()
        for row, label in enumerate(labels if self._limit else ()):
            if label is None or label in self._numbers or label in new:
                continue
            if len(self._numbers) + len(new) < self._limit:
                new.add(label)
            else:
                refused[row] = (
                    f"label {label!r} would be class {self._limit + 1} of at most {self._limit} (max_classes)"
                )
        return refused

    def new(self, labels: Sequence[str | None]) -> list[str]:
        """The labels without a number, in order.

        Raises:
            ValueError: they are too many.
        """
        if refused := self.refuses(labels):
            raise ValueError(f"{next(iter(refused.values()))}. Drop the rows that `refuses` names before learning.")
        return [label for label in dict.fromkeys(labels) if label is not None and label not in self._numbers]

    def beyond(self, stored: Sequence[str]) -> list[str]:
        """The classes of a stored state that are to be added.

        Raises:
            ValueError: there are other classes already.
        """
        count = len(self._classes)
        if list(stored[:count]) != self._classes:
            raise ValueError("classes: this learner has learned others. Restore into an untrained one.")
        return list(stored[count:])

    def add(self, labels: Sequence[str]) -> None:
        """Numbers new labels.

        Raises:
            ValueError: they are too many.
        """
        if len(self._classes) + len(labels) > self._limit:
            raise ValueError(f"{len(self._classes) + len(labels)} classes are more than max_classes = {self._limit}.")
        for label in labels:
            self._numbers[label] = len(self._classes)
            self._classes.append(label)

    def rename(self, number: int, label: str) -> None:
        """Gives the number of a label that is not used any more to a new label."""
        del self._numbers[self._classes[number]]
        self._classes[number] = label
        self._numbers[label] = number

    def numbers(self, labels: Sequence[str | None]) -> list[int]:
        """The number of each label, NONE for None.

        Raises:
            KeyError: a label that was never added.
        """
        return [NONE if label is None else self._numbers[label] for label in labels]
