"""Warns while records are published that no model will learn them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from consumers.publish.outgoing import Outgoing, shown
from pipeline.config import Config, ModelConfig
from pipeline.log import meant

#: Built-in learners that need no label. What a learner of one's own needs is not known without running it.
UNLABELLED = {"image-flow", "image-gan", "image-restorer", "image-restyler", "image-vae", "text-generator"}


def topic_warning(config: Config, topic: str) -> str | None:
    """Why nothing at all will be learned from a topic of records, if so."""
    for name, model in config.models.items():
        if model.labels is not None and model.labels.topic == topic:
            return f"{topic} is the topic of the labels of {name}: publish them with `headrace label {topic} ID LABEL`."
    if any(topic in model.topics for model in config.models.values()):
        return None
    return _nobody_reads(topic, {name: table.topics for name, table in config.models.items()})


def labels_warning(config: Config, topic: str) -> str | None:
    """Why nobody reads a topic of labels, if so."""
    of_labels = {name: (table.labels.topic,) for name, table in config.models.items() if table.labels is not None}
    return None if any(topic in topics for topics in of_labels.values()) else _nobody_reads(topic, of_labels)


@dataclass(slots=True)
class Unlearned:
    """Counts the records that a model of the topic does not learn, by model and reason; tells the first of each."""

    config: Config
    topic: str
    say: Callable[[str], None]
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def look(self, record: Outgoing) -> None:
        """Counts the record for each model that reads it in vain."""
        for name, model in self.config.models.items():
            found = _reason(name, model, record) if self.topic in model.topics else None
            if found is not None:
                outcome, why = found
                counts = self.counts.setdefault(name, Counter())
                counts[outcome] += 1
                if counts[outcome] == 1:
                    self.say(
                        f"{shown(record.where)}: is published, but {name} will not learn it, nor others like it: {why}"
                    )


def _reason(name: str, model: ModelConfig, record: Outgoing) -> tuple[str, str] | None:
    """Why a model does not learn the record: the slug of its outcome, and a sentence; None if it may learn it."""
    if model.decoder is not None:  # what it makes of the record is its own business
        return None
    if not fnmatchcase(record.content_type, model.input.media):
        return "content-type", f"it reads {model.input.kind}s."
    if len(record.value) > model.input.max_bytes:
        return "too-large", f"it reads up to models.{name}.input.max_bytes = {model.input.max_bytes:,}."
    if record.label is None and model.labels is None and ":" not in model.learner and model.learner not in UNLABELLED:
        return "unlabelled", (
            f"{model.learner} learns from labels. Put files into sub-folders that are named by them, or give --label."
        )
    return None


def _nobody_reads(topic: str, topics: Mapping[str, tuple[str, ...]]) -> str:
    read = {name for names in topics.values() for name in names}
    return f"No model of the configuration reads {topic}: nothing will be learned from it. {meant(topic, read)}"
