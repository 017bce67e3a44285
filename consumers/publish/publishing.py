"""One `headrace publish`: sources, a topic, and what became of the records."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO

from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from consumers.cli.command import err
from consumers.publish.dropbox import Dropbox
from consumers.publish.outgoing import Outgoing, Refused, shown
from consumers.publish.records import Way, are_lines, entries, from_entries, from_stdin, reading
from consumers.publish.sending import Sender, Tally, patiently
from consumers.publish.unlearned import Unlearned, topic_warning
from pipeline.client import Essence, Mark, mark, sent_since
from pipeline.closing import Closing
from pipeline.config import Config, KafkaConfig
from pipeline.errors import ConfigError, LogError
from pipeline.folders import private
from pipeline.log import ensure_topics, refuse_typo
from pipeline.words import counted

FOLDER = Path(".headrace/publish")  # where tries are remembered, so that the next one can go on
STDIN, STDIN_FILENO = "-", 0
CONNECT_MS = 2_000  # of one try to reach Kafka, and so the longest that an end is waited for
TELL_S = 20.0  # how often it tells how far it is, where there is no terminal
MANY_LINES = 20  # of a file that is named: they may be meant as records
ENOUGH = 20  # records of a label: from there on most kinds are told apart (docs/learners/index.md)

Records = Iterable[Outgoing | Refused | None]  # None: what was sent is waited for


def records(number: int) -> str:
    return counted(number, "record")


@dataclass(eq=False)
class Publishing:
    """Publishes to a topic until all is sent, or `stop`; `tally` and `is_ended` tell how it went."""

    config: Config
    topic: str
    way: Way
    stop: Event
    say: Callable[[str], None]
    _: KW_ONLY
    id: str | None = None  # of the one record that there is
    again: bool = False  # also what a try published that ended early
    new_topic: bool = False  # the topic is made, also where no model reads it

    def __post_init__(self) -> None:
        self.tally = Tally()
        self.is_ended = True  # before all was sent
        self.unlearned = Unlearned(self.config, self.topic, self.say)
        self._kafka = impatient(self.config.kafka)

    def json(self) -> dict[str, Any]:
        """What became of the records, for programs."""
        return {
            "published": self.tally.published,
            "published_before": self.tally.before,
            "not_published": self.tally.missing,
            "id": self.tally.id if self.tally.published == 1 else None,
            "after": self.tally.after,
            "labels": dict(self.tally.labels),
            "unlearned": {model: dict(counts) for model, counts in self.unlearned.counts.items()},
            "ended_early": self.is_ended,
        }

    @property
    def is_shown(self) -> bool:
        """Whether the labels are those of a set, and not one that was given for all."""
        return self.way.label is None and self.tally.published > 1

    def files(self, paths: list[Path], repeat: int = 1) -> None:
        """Publishes files and what is in folders, `repeat` times, in another order each time.

        Raises:
            ConfigError: a file that is named is not there, or the id is that of several records.
            LogError: Kafka refuses.
            Stopped: it is away, and the command is to end.
        """
        with err.status("looking through the folders") if err.is_terminal else ExitStack():
            found = entries(paths, self.way, self.say)
        total = None if any(map(are_lines, found)) else repeat * len(found)
        passes = (
            from_entries(found, self.way, self.stop),
            *(self._once_more(paths, number) for number in range(1, repeat)),
        )
        sources = [] if total == 1 else [str(path) for path in paths]
        outgoing: Records = itertools.chain.from_iterable(passes)
        self._run(map(self._looked_at, outgoing) if total == 1 else outgoing, total, sources)

    def _looked_at(self, record: Outgoing | Refused | None) -> Outgoing | Refused | None:
        """The one record there is; a file of lines may be meant as many."""
        if isinstance(record, Outgoing) and record.content_type.startswith("text/"):
            lines = record.value.strip().count(b"\n") + 1
            if lines >= MANY_LINES:
                self.say(
                    f"{shown(record.where)} is one record. Its {lines:,} lines are one each with "
                    f"`headrace publish {self.topic} - < FILE`."
                )
        return record

    def lines(self) -> None:
        """Publishes the lines of standard input. Raises as `files`."""
        self._run(from_stdin(reading(STDIN_FILENO, self.stop), self.way), None, [STDIN], is_stream=_is_stream())

    def follow(self, folder: Path) -> None:
        """Publishes what is dropped into the folder until `stop`. Raises as `files`."""
        memory = file_of(self.topic, self._kafka.bootstrap_servers, [str(folder)], ".seen")
        self.is_ended = False  # there is no other end than by `stop`
        dropbox = Dropbox(folder, self.way, self.say, memory)
        self._prepare()
        self._send(dropbox.records(self.stop), None, Counter(), dropbox.sent)

    def _run(self, outgoing: Records, total: int | None, sources: list[str], *, is_stream: bool = False) -> None:
        """Publishes, and remembers where it started if it has `sources` that can be read once more.

        What comes through a pipe may be there once more only where all of it was read, and a line could not be sent.
        """
        if self.id is not None:
            outgoing = _named(outgoing, self.id)
        self._prepare()
        with ExitStack() as stack:
            attempt, start = self._attempt(sources, stack) if sources else (None, None)
            if attempt is not None and start is not None and not is_stream:
                attempt.keep(start)
            self._send(outgoing, total, self._before(attempt))
            self.is_ended = self.stop.is_set()
            is_left = self.tally.missing and not self.is_ended if is_stream else self.tally.missing or self.is_ended
            if attempt is not None and start is not None:
                attempt.keep(start) if is_left else attempt.done()

    def _prepare(self) -> None:
        if not self.new_topic:
            config = self.config.model_copy(update={"kafka": self._kafka})
            patiently(lambda: refuse_typo(config, self.topic), self.stop, self.say)
        if warning := topic_warning(self.config, self.topic):
            self.say(warning)
        patiently(lambda: ensure_topics(self._kafka, [self.topic]), self.stop, self.say)

    def _attempt(self, sources: list[str], stack: ExitStack) -> tuple[Try | None, Mark | None]:
        """This try, and where it started: where the one before did, if that ended early."""
        try:
            attempt = stack.enter_context(Try(file_of(self.topic, self._kafka.bootstrap_servers, sources, ".json")))
            if attempt.start is not None and not self.again:
                return attempt, attempt.start
            attempt.start = None
            return attempt, patiently(lambda: mark(self._kafka, self.topic), self.stop, self.say)
        except (OSError, LogError) as error:
            self.say(f"This try cannot be gone on with, should it end early: {error}")
            return None, None

    def _before(self, attempt: Try | None) -> Counter[Essence]:
        """What the tries before published."""
        if attempt is None or attempt.start is None:
            return Counter()
        start = attempt.start
        self.say("The try before ended early. What it published is left out (--again: published once more).")
        return patiently(lambda: sent_since(self._kafka, start, self.stop), self.stop, self.say)

    def _send(
        self,
        outgoing: Records,
        total: int | None,
        before: Counter[Essence],
        sent: Callable[[Outgoing], None] = lambda _: None,
    ) -> None:
        sender = Sender(self._kafka, self.topic, self.stop, self.say, before, sent)
        self.tally = sender.tally
        try:
            for record in self._progress(outgoing, total):
                if isinstance(record, Outgoing):
                    self.unlearned.look(record)
                if record is None:
                    sender.flush()
                else:
                    sender.send(record)
                if self.stop.is_set():
                    break
            sender.flush()
        except LogError:
            self.say(f"{records(self.tally.published)} published to {self.topic} before it failed.")
            raise
        finally:
            sender.close()

    def _progress(self, outgoing: Records, total: int | None) -> Iterator[Outgoing | Refused | None]:
        """The records, while it shows how far it is."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        said_s = time.monotonic()
        with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
            task = progress.add_task(f"publishing to {self.topic}", total=total)
            number = 0
            for record in outgoing:
                yield record
                if record is None:
                    continue
                number += 1
                progress.advance(task)
                if not err.is_terminal and time.monotonic() - said_s >= TELL_S:
                    said_s = time.monotonic()
                    self.say(f"{number:,} of {total:,} records so far" if total else f"{records(number)} so far")

    def _once_more(self, paths: list[Path], number: int) -> Iterator[Outgoing]:
        """A further pass; what cannot be published was named in the first one."""
        seed = None if self.way.seed is None else f"{self.way.seed} {number}"
        way = Way(self.way.limit, self.way.label, seed)
        again = from_entries(entries(paths, way, lambda _: None), way, self.stop)
        yield from (record for record in again if isinstance(record, Outgoing))


def advice(tally: Tally) -> str:
    """How many records of each label there are, and whether a model learns well from them as they came."""
    labels = tally.labels
    if len(labels) == 1:
        return f"All have one label, {next(iter(labels))}: there is nothing to be told apart until others come."
    text = f"{len(labels):,} labels, of the rarest {records(min(labels.values()))}."
    few = sorted(label for label, number in labels.items() if number < ENOUGH)
    if few:
        named = ", ".join(few[:3]) + (f" and {len(few) - 3:,} more" if len(few) > 3 else "")
        text += f" A label needs some {ENOUGH} to be told apart, and 100 to be told apart well: {named} fewer."
    if tally.turns == len(labels) and tally.published > 2 * len(labels):
        text += " They came label after label, of which networks forget the first ones: mix the lines (shuf) or files."
    return text


def impatient(kafka: KafkaConfig) -> KafkaConfig:
    """Returns settings with which a failed connection is reported soon: the caller tries again itself."""
    client: dict[str, Any] = {"bootstrap_timeout_ms": CONNECT_MS, **kafka.client}
    return kafka.model_copy(update={"client": client})


def _is_stream() -> bool:
    """Whether standard input is no file, and so nothing that is read once more.

    Raises:
        ConfigError: it is closed.
    """
    try:
        return not stat.S_ISREG(os.fstat(STDIN_FILENO).st_mode)
    except OSError:
        raise ConfigError("Standard input is closed. Send lines to it, or name files.") from None


def _named(outgoing: Records, id_: str) -> Iterator[Outgoing | Refused | None]:
    """The one record, with this id.

    Raises:
        ConfigError: there are more.
    """
    found = list(itertools.islice(outgoing, 2))
    if len(found) > 1:
        raise ConfigError(
            "--id is of one record, and here are several. Publish them one by one; nothing was published."
        )
    yield from (replace(record, id=id_) if isinstance(record, Outgoing) else record for record in found)


def file_of(topic: str, servers: str, sources: Iterable[str], suffix: str) -> Path:
    """The file that remembers what is published from these sources to a topic."""
    named = [servers, *(source if source == "-" else str(Path(source).absolute()) for source in sources)]
    digest = hashlib.blake2b(json.dumps(named).encode(), digest_size=8).hexdigest()
    return FOLDER / f"{topic[:100]}-{digest}{suffix}"


class Try(Closing):
    """One try. Only one process at a time has it.

    Raises:
        OSError: the file cannot be written, or another process is at it.
    """

    def __init__(self, path: Path) -> None:
        private(path.parent)
        self._path = path
        self.start: Mark | None = None  # of one that ended early
        self._file: BinaryIO = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.seek(0)
            with suppress(ValidationError):
                self.start = Mark.model_validate_json(self._file.read())
        except BlockingIOError:
            self._file.close()
            raise OSError("another process publishes the same at this moment.") from None
        except BaseException:
            self._file.close()
            raise

    def keep(self, mark: Mark) -> None:
        """Remembers where it started, until it is done."""
        self._file.truncate(0)
        self._file.write(mark.model_dump_json().encode())
        self._file.flush()

    def done(self) -> None:
        """Nothing is left for another try."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets another process have it."""
        self._file.close()
