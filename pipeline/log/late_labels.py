"""Labels that came while their records were dead letters: a requeued record takes its own along."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress

from pipeline.config import Config, LabelsConfig, ModelConfig
from pipeline.errors import RecordError
from pipeline.log.dead_letters import DeadLetter, committed, with_values
from pipeline.records import Label, from_headers, label_in, load_decoder

Headers = tuple[tuple[str, bytes], ...]


def late_headers(config: Config, letters: Iterable[DeadLetter]) -> dict[tuple[str, str], Headers]:
    """The headers that requeued records need beside their own, by the keys of their letters.

    Where a model gets its labels from a topic of their own, that is the last label in that topic which the record would
    have been joined with, and the id that it had by its place.

    Raises:
        ConfigError: a model's decoder is not there.
        OffsetsGone: a value was removed from the log.
        LogUnavailable, LogError: Kafka cannot be reached, or refuses.
    """
    found: dict[tuple[str, str], Headers] = {}
    by_model: dict[str, list[DeadLetter]] = defaultdict(list)
    for letter in letters:
        by_model[letter.model].append(letter)
    for model, those in by_model.items():
        settings = config.models.get(model)
        if settings is not None and settings.labels is not None:
            found |= _of_model(config, settings, settings.labels, those)
    return found


def _of_model(
    config: Config, settings: ModelConfig, table: LabelsConfig, letters: list[DeadLetter]
) -> dict[tuple[str, str], Headers]:
    found: dict[tuple[str, str], Headers] = {}
    waiting: dict[str, list[DeadLetter]] = defaultdict(list)
    decode = load_decoder(settings.decoder) if settings.decoder else from_headers
    with closing(with_values(config.kafka, letters)) as originals:
        for letter in originals:
            if letter.record.value is None:
                continue  # it cannot be read, and `resolve` says so
            payload = None
            with suppress(RecordError):
                payload = decode(letter.record)
            if payload is None or payload.label is None:
                id_ = payload.id if payload else None
                found[letter.key] = () if id_ else (("id", letter.origin.encode()),)
                waiting[id_ or letter.origin].append(letter)
    for label in _labels(config, table.topic):
        for letter in waiting.get(label.id, ()):
            if abs(label.record.timestamp_ms - letter.record.timestamp_ms) <= 1000 * table.window_s:
                others = [header for header in found[letter.key] if header[0] != "label"]
                found[letter.key] = (*others, ("label", label.label.encode()))
    return found


def _labels(config: Config, topic: str) -> Iterator[Label]:
    """All that the topic holds now."""
    with closing(committed(config.kafka, topic)) as records:
        for record in records:
            if record.value is not None:
                with suppress(RecordError):
                    yield label_in(record)
