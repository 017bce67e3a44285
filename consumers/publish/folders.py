"""What is in a folder of pictures and texts: its files, and the labels that its sub-folders are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from consumers.publish.outgoing import Refused, content_type_of, shown, why_unread

#: Folders that programs keep beside people's files, in small letters; nor is looked at what begins with a dot.
KEPT = {
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@tmp",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "__macosx",
    "__pycache__",
    "lost+found",
    "node_modules",
    "system volume information",
}
TRAIN = {"train", "training"}
SPLITS = TRAIN | {"dev", "eval", "holdout", "test", "testing", "val", "valid", "validation"}


class Entry(NamedTuple):
    """A file, and the label that its folder is."""

    path: str
    label: str | None


def listing(folder: Path, say: Callable[[str], None]) -> list[Entry | Refused]:
    """All that is to be published of a folder, sorted; what is passed over is said.

    The label of a file is the name of the sub-folder of `folder` that it is in, however deep; below `train/`, `val/`
    and the like, of the sub-folder of these.
    """
    passed = _Passed()
    found = list(_walk(folder, passed))
    refused = [one for one in found if isinstance(one, Refused)]
    files = sorted(one for one in found if not isinstance(one, Refused))
    splits = _splits({inside[0] for inside in files if len(inside) > 1})
    if splits:
        say(
            f"{shown(folder)}: {', '.join(sorted(map(shown, splits)))} are parts of one set and no labels; the folders "
            "in them are. All parts are published: name one of them to keep the others out."
        )
    entries = [Entry(str(folder.joinpath(*inside)), _label(inside, splits)) for inside in files]
    for line in passed.lines():
        say(line)
    return [*refused, *entries]


class _Passed:
    """What is left out, by the reason."""

    def __init__(self) -> None:
        self._by_reason: dict[str, list[str]] = {}

    def add(self, path: str, why: str) -> None:
        self._by_reason.setdefault(why, []).append(path)

    def lines(self) -> Iterator[str]:
        """A sentence for each reason, which names the first few."""
        for why, paths in self._by_reason.items():
            more = f" and {len(paths) - 3:,} more" if len(paths) > 3 else ""
            yield f"{', '.join(map(shown, paths[:3]))}{more}: {why}. Passed over."


def _walk(folder: Path, passed: _Passed) -> Iterator[tuple[str, ...] | Refused]:
    """The parts of the path inside the folder, of every file. Links are followed, but not in circles."""
    waiting: list[tuple[tuple[str, ...], frozenset[tuple[int, int]]]]
    seen: set[tuple[str, int, int]] = set()  # each folder once a label
    try:
        waiting = [((), frozenset({_identity(folder)}))]
    except OSError as error:
        yield Refused(str(folder), f"{error.strerror}. See that it is there.")
        return
    while waiting:
        inside, above = waiting.pop()
        path = folder.joinpath(*inside)
        try:
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            yield Refused(str(path), f"{error.strerror}. See that it may be read.")
            continue
        for entry in entries:
            within = (*inside, entry.name)
            if entry.name.startswith("."):
                if entry.is_dir():
                    passed.add(entry.path, "a hidden folder")
            elif entry.is_dir():
                if entry.name.lower() in KEPT:
                    passed.add(entry.path, "a folder that programs keep")
                    continue
                identity = _identity(Path(entry.path))
                if identity in above or (within[0], *identity) in seen:
                    passed.add(entry.path, "a link to a folder that is read already")
                else:
                    seen.add((within[0], *identity))
                    waiting.append((within, above | {identity}))
            elif not entry.is_file():
                passed.add(entry.path, "a link to nothing, or no file")
            elif content_type_of(entry.name) is None:
                passed.add(entry.path, why_unread(entry.name))
            else:
                yield within


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _splits(labels: set[str]) -> set[str]:
    """The sub-folders that are parts of one data set (train, test, …). A lone `train` is a class: a train."""
    splits = {label for label in labels if label.lower() in SPLITS}
    are_parts = splits == labels or (len(splits) > 1 and any(label.lower() in TRAIN for label in splits))
    return splits if are_parts else set()


def _label(inside: tuple[str, ...], splits: set[str]) -> str | None:
    folders = inside[:-1]
    if folders and folders[0] in splits:
        folders = folders[1:]
    return folders[0] if folders else None
