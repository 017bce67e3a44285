"""Learning again what a lineage records: the same records in the same batches, from the log."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from consumers.bridge import array, tensor, tensors
from consumers.worker.environment import environment
from consumers.worker.feed import Uplink, collate
from consumers.worker.fitting import differences
from consumers.worker.fold import HELD_OUT, Fold, Recipe, whole
from consumers.worker.joiner import Correction
from models.learner import State
from pipeline.config import ModelConfig
from pipeline.errors import NotRepeatable, OffsetsGone, RecordError
from pipeline.log import Fetcher
from pipeline.records import Example, Label, Partition, Place, Record, RecordDecoder, load_decoder
from pipeline.store import Array, Change, Group, HistoryEntry, Lineage, LineageBuilder, Manifest, Store

MAX_THREADS = 1024
#: what an update depends on
LEARNED_BY = {"topics", "input", "options", "seed", "guard", "drift", "hold_out", "labels"}


@dataclass(eq=False)
class Replay:
    """Feeds recorded batches to a fold once more.

    Args:
        topic_ids: the ids of the topics, as the version names them that the batches start from. `entries` updates them.
        held: the first offsets that the log still holds. Given, `entries` leaves out the records that are gone.
    """

    fetcher: Fetcher
    topic_ids: dict[str, str]
    held: Mapping[Partition, int] | None = None

    def __post_init__(self) -> None:
        self.topic_ids = dict(self.topic_ids)
        self.gone = 0  # records and labels that an update had and that were left out

    def records(self, places: Iterable[Place]) -> Iterator[Record]:
        """The records at these places, in this order.

        Raises:
            OffsetsGone: the log does not hold one any more, or `TopicReplaced`: its topic was made again.
        """
        return self.fetcher.records(places, self.topic_ids)

    def learn(self, fold: Fold, updates: Iterable[Sequence[Place]], lineage: Lineage) -> Iterator[None]:
        """One update after the other, each when the next one is asked for.

        Args:
            lineage: says what was held out before a correction.

        Raises:
            OffsetsGone: the log does not hold a record any more.
            NotRepeatable: a record does not decode any more.
            Diverged: as `Fold.learn`.
        """
        uplink = Uplink(fold.device)
        counted = [change["held_out"] for change in lineage.changes if "held_out" in change]
        held_out = {tuple(one["before"]): one["records"] for one in counted}
        for examples, corrections in self._updates(fold, updates):
            for record in [correction.label.record for correction in corrections[:1]]:
                self._hold_out(fold, lineage, held_out.get((record.topic, record.partition, record.offset), 0))
            if examples:
                batch = collate(examples, fold.topics, uplink)
                uplink.arrive(batch.x)
                fold.learn(batch, examples)
            else:
                fold.correct(corrections)
            yield

    def entries(self, fold: Fold, entries: Iterable[HistoryEntry]) -> Fold:
        """The fold after these versions, with their changes of configuration, threads and topics.

        Its lineage is empty then, and torch left with the last version's number of threads.

        Raises:
            OffsetsGone, NotRepeatable, Diverged: as `learn`.
        """
        for entry in entries:
            for change in entry.lineage.changes:
                if "config" in change:
                    fold = fold.configured(changed(fold.settings, change["config"]))
                if "threads" in change.get("environment", {}):
                    use_threads(change["environment"]["threads"][1])
                if "jump" in change and "ids" in change["jump"]:
                    self.topic_ids[change["jump"]["topic"]] = change["jump"]["ids"][1]
            lineage = entry.lineage if self.held is None else self._rest(entry.lineage, fold.settings)
            try:
                for _ in self.learn(fold, lineage.learned(), lineage):
                    pass
                self.others(fold, lineage)
            except OffsetsGone:  # compaction left a record out, or the topic was made again: on with the next version
                if self.held is None:
                    raise
                self.gone += sum(map(len, lineage.learned()))
            fold.lineage.build()
        return fold

    def _rest(self, lineage: Lineage, settings: ModelConfig) -> Lineage:
        """What a version learned and held out of records that the log still holds."""
        assert self.held is not None  # noqa: S101 - the caller looked
        held, rest = self.held, LineageBuilder()

        def kept(places: Iterable[Place]) -> list[Place]:
            pairs = joined(places, settings)
            there = (pair for pair in pairs if all(at.offset >= held.get(at.partition, math.inf) for at in pair))
            return list(itertools.chain.from_iterable(there))

        for update in lineage.learned():
            if there := kept(update):
                rest.learned(there)
            self.gone += len(update) - len(there)
        for place in kept(place for name, place in lineage.others() if name == HELD_OUT):
            rest.outcome(HELD_OUT, place)
        for change in lineage.changes:
            rest.change(change)
        return rest.build()

    def others(self, fold: Fold, lineage: Lineage) -> None:
        """What became of the records that a version did not learn.

        Raises:
            OffsetsGone, NotRepeatable: as `learn`, for those that were held out.
        """
        self._hold_out(fold, lineage)
        for name, place in lineage.others():
            if name != HELD_OUT:
                fold.outcome(name, place)

    def _hold_out(self, fold: Fold, lineage: Lineage, end: int | None = None) -> None:
        """What a version held out, up to its `end`-th record or label, less what the fold has of it."""
        aside = [place for name, place in lineage.others() if name == HELD_OUT]
        uplink = Uplink(torch.device("cpu"))
        left = aside[fold.lineage.count(HELD_OUT) : end]
        for examples, _ in self._updates(fold, joined(left, fold.settings)):
            fold.hold_out(collate(examples, fold.topics, uplink), examples)

    def _updates(
        self, fold: Fold, updates: Iterable[Sequence[Place]]
    ) -> Iterator[tuple[list[Example], list[Correction]]]:
        """What each update learned, or else what it corrected."""
        decoder = decoder_of(fold)
        sizes, wanted = itertools.tee(updates)
        records = self.records(itertools.chain.from_iterable(wanted))
        for update in sizes:
            examples: list[Example] = []
            corrections: list[Correction] = []
            for record in itertools.islice(records, len(update)):
                decoded = _decoded(decoder, record)
                if isinstance(decoded, Example):
                    examples.append(decoded)
                elif examples:
                    examples[-1] = replace(examples[-1], label=decoded.label, label_record=record)
                else:
                    corrections.append(Correction(decoded))
            yield examples, corrections


def use_threads(stored: object) -> None:
    """Has torch use as many threads as a version was learned with.

    Raises:
        NotRepeatable: no worker has so many.
    """
    if not isinstance(stored, int) or not 0 < stored <= MAX_THREADS:
        raise NotRepeatable(f"It was learned with {stored!r:.40} threads, it is said. Use another version.")
    torch.set_num_threads(stored)


def joined(places: Iterable[Place], settings: ModelConfig) -> list[tuple[Place, ...]]:
    """Admission of records as a lineage lists them, each with that of its label where this came later."""
    found: list[tuple[Place, ...]] = []
    for place in places:
        is_label = settings.labels is not None and place.partition.topic == settings.labels.topic
        if is_label and found and len(found[-1]) == 1 and found[-1][0].partition.topic != place.partition.topic:
            found[-1] += (place,)
        else:
            found.append((place,))
    return found


def decoder_of(fold: Fold) -> RecordDecoder:
    """What turns records into the examples that this fold learns from."""
    settings = fold.settings
    return RecordDecoder(
        settings.input,
        needs_label=fold.learner.needs_label,
        decode=load_decoder(settings.decoder) if settings.decoder else None,
        model=fold.name,
        labels=settings.labels.topic if settings.labels else None,
        reads_whole=fold.blueprint.reads_whole(fold.options),
    )


def _decoded(decoder: RecordDecoder, record: Record) -> Example | Label:
    decoded: object = None
    try:
        decoded = decoder(record)
        why = "it would be skipped"
    except RecordError as error:
        why = str(error)
    if not isinstance(decoded, Example | Label):
        raise NotRepeatable(
            f"{record.place} was learned and cannot be any more: {why}. Put the decoder back that was used."
        )
    return decoded


def at_version(
    recipe: Recipe, store: Store, manifest: Manifest, replay: Replay, say: Callable[[str], None] = lambda line: None
) -> Fold:
    """The state of a version: as it was stored, or learned again from its keyframe on and checked against it.

    Args:
        recipe: with the settings that hold from then on.

    Raises:
        StateMismatch: these settings do not fit.
        NotRepeatable: learned again in the same environment, it came out different.
        OffsetsGone: the log does not reach back to the keyframe.
    """
    keyframe = store.keyframe(manifest)
    serving, training = (tensors(store.arrays(keyframe, group)) for group in ("serving", "training"))
    is_stored = keyframe.version == manifest.version
    shall = recipe.settings
    first = recipe if is_stored else recipe._replace(settings=recorded(keyframe, shall))
    fold = Fold.of_keyframe(first, keyframe, State(serving, training, keyframe.meta))
    if is_stored:
        return fold
    use_threads(keyframe.environment["threads"])
    between = [entry for entry in store.histories(above=keyframe.version) if entry.version <= manifest.version]
    try:
        fold = replay.entries(fold, between)
    except OffsetsGone as error:
        raise type(error)(
            f"{error} Version {manifest.version} of {manifest.model} is no keyframe and learned it after "
            f"{keyframe.version}, the last one: `headrace train {manifest.model} --jump` goes on from that one and "
            f"what the log still holds, `headrace reset {manifest.model}` starts anew."
        ) from None
    apart = differing(fold, store.arrays(manifest, "serving"), "serving")
    fold.keep_books(manifest)
    if apart or replay.gone:
        other = differences(manifest.environment, environment(fold.device))
        if not other and not replay.gone:
            raise NotRepeatable(
                f"Version {manifest.version} of {manifest.model}, learned again from its keyframe {keyframe.version}, "
                f"has other weights in the same environment: {gaps_text(apart)}. Look for a learner or decoder whose "
                f"code changed; `headrace verify` tells more, `headrace reset {manifest.model}` starts anew."
            )
        why = f"another environment ({environment_text(other)})"
        if replay.gone:
            why = f"{replay.gone} records that it learned after that are gone"
        say(
            f"{manifest.model}: version {manifest.version}, learned again from its keyframe {keyframe.version}, has "
            f"other weights ({gaps_text(apart)}): {why}; going on with these."
        )
        change: Change = {"replayed": {"from": keyframe.version, "differs": apart, "environment": other}}
        if replay.gone:
            change["replayed"]["gone"] = replay.gone
        fold.lineage.change(change)
    torch.set_num_threads(shall.threads)
    fold.send_all()
    return fold.configured(shall)


def differing(fold: Fold, stored: Mapping[str, Array], group: Group) -> dict[str, float | None]:
    """Tensors of the fold that are not bit for bit as stored, with the largest absolute difference, if it is finite."""
    state = fold.capture()
    now = {name: value.detach().cpu() for name, value in whole(getattr(state, group)).items()}
    apart: dict[str, float | None] = dict.fromkeys(now.keys() ^ stored.keys())
    for name in now.keys() & stored.keys():
        live, kept = now[name], tensor(stored[name])
        if live.shape != kept.shape or live.dtype != kept.dtype:
            apart[name] = None
        elif not np.array_equal(array(live).data, stored[name].data):
            largest = float((live.double() - kept.double()).abs().max())
            apart[name] = largest if math.isfinite(largest) else None
    return dict(sorted(apart.items()))


def gaps_text(apart: Mapping[str, float | None]) -> str:
    """What `differing` found, for people."""
    return ", ".join(name if gap is None else f"{name} by up to {gap:.3g}" for name, gap in apart.items())


def environment_text(other: Mapping[str, Sequence[Any]]) -> str:
    """What is not as it was, for people."""
    shown = {key: [value if value is not None else "not noted" for value in values] for key, values in other.items()}
    return "; ".join(f"{key} was {then}, is {now}" for key, (then, now) in shown.items())


def recorded(manifest: Manifest, now: ModelConfig) -> ModelConfig:
    """The settings that a version was learned under; what no update depends on is this process's own."""
    return changed(now, differences(now.model_dump(mode="json"), manifest.config))


def changed(settings: ModelConfig, changes: Mapping[str, Sequence[Any]]) -> ModelConfig:
    """The settings after changes as the lineage has them: key → [before, now]."""
    values = {key: now for key, (_, now) in changes.items() if key in LEARNED_BY and now is not None}
    return ModelConfig.model_validate({**settings.model_dump(mode="json"), **values})
