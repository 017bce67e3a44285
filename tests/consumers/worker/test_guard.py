"""The guard: what is not finite never becomes a version, and the records that did it are found."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from consumers.worker import worker as trainer
from consumers.worker.evaluator import Evaluator
from consumers.worker.guard import Row, _culprits
from pipeline.config import HoldOutConfig
from pipeline.errors import Diverged
from pipeline.log.dead_letters import read_dead_letters
from pipeline.records import Example, Partition, Place, Record
from tests.consumers.fragile import BAD_LOSS, BAD_TOGETHER, BAD_TRAINING, BAD_WEIGHT, NUMBERS
from tests.consumers.working import Working, configuration, numbers, publish, verified, working

FRAGILE: dict[str, Any] = {"learner": "tests.consumers.fragile:blueprint", "keep_last": 1000}
GOOD = list(numbers(range(64)))


def checked(run: Working, values: Sequence[bytes], culprits: Sequence[int]) -> None:
    """Exactly the culprits are dead-lettered, all else is learned exactly once, and no version is broken."""
    head = run.store.manifest()
    assert head.counts == {"learned": len(values) - len(culprits), "dead-lettered/non-finite": len(culprits)}
    outcome = dict.fromkeys(culprits, "dead-lettered/non-finite")
    [topic] = head.watermark
    assert run.outcomes() == {
        (topic, 0, offset): [outcome.get(int(value), "learned")] for offset, value in enumerate(values)
    }
    shall = np.zeros(NUMBERS, np.float32)
    for value in values:
        shall[int(value)] += int(value) not in culprits
    np.testing.assert_array_equal(run.store.arrays(head, "serving")["counts"].numpy()[:, 0], shall)
    for ref in run.store.versions():
        manifest = run.store.manifest(ref)
        for group in ("serving", "training"):
            for array in run.store.arrays(manifest, group).values():
                assert np.isfinite(array.numpy()).all()


@pytest.mark.parametrize("bad", [BAD_LOSS, BAD_WEIGHT, BAD_TRAINING])
@pytest.mark.parametrize("every", [1, 5, 1000])
def test_exactly_the_records_that_break_the_state_are_dead_lettered(
    kafka: str, redis_url: str, topic: str, bad: range, every: int
) -> None:
    """At the update or at the capture; with a version before, and without one."""
    rhythm: dict[str, Any] = {"snapshot_every_updates": every, "snapshot_every_s": None, "keyframe_every": 3}
    config = configuration(kafka, redis_url, topic, **FRAGILE, **rhythm)
    culprits = [bad[0], bad[3], bad[4]]
    values = [*GOOD[:20], *numbers(culprits[:1]), *GOOD[20:50], *numbers(culprits[1:]), *GOOD[50:]]
    publish(config, topic, *values)
    with working(config) as run:
        run.learns(64 if bad == BAD_LOSS else 67)  # the metric counts what was undone later, too
        run.finish()
        checked(run, values, culprits)
        letters = read_dead_letters(config.kafka, topic)
        assert sorted({(letter.reason, letter.record.offset) for letter in letters}) == [
            ("non-finite", values.index(b"%d" % number)) for number in culprits
        ]
        guards = run.changes("guard")
        assert sum(guard["records"] for guard in guards) == len(culprits)
        assert run.metric("headrace_guard_events_total") == len(guards)
        assert run.metric("headrace_records_total", outcome="dead-lettered", reason="non-finite") == len(culprits)
        assert any("dead-lettered" in line and "; going on" in line for line in run.said)
        assert verified(run, config).same


def test_records_that_break_the_state_only_together(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, **FRAGILE, max_wait_ms=60_000)
    values = [*GOOD[:9], b"930", *GOOD[9:13], b"931", GOOD[13], *GOOD[14:21], b"930"]  # in one batch, and alone
    publish(config, topic, *values)
    with working(config) as run:
        head = run.read(len(values))
        run.finish()
    assert head.counts == {"learned": len(values) - 2, "dead-lettered/non-finite": 2}
    lost = [place for place, outcomes in run.outcomes().items() if outcomes != ["learned"]]
    assert lost == [(topic, 0, 9), (topic, 0, 14)]
    assert {int(values[offset]) for _, _, offset in lost} == BAD_TOGETHER


@pytest.mark.parametrize("broken", ["loss", "weights"])
def test_a_learner_that_always_diverges_ends(kafka: str, redis_url: str, topic: str, broken: str) -> None:
    whole = configuration(kafka, redis_url, topic, **FRAGILE)
    publish(whole, topic, *GOOD)
    with working(whole) as run:
        before = run.read(64)
        run.finish()
    publish(whole, topic, *GOOD)
    with working(configuration(kafka, redis_url, topic, **FRAGILE, options={"broken": broken})) as run:
        with pytest.raises(Diverged, match=f"{topic}: update 8 gives numbers that are not finite.* learning rate") as e:
            run.join()
        assert e.value.exit_status == 7
        head = run.store.manifest()  # perhaps a newer one: that the configuration changed
        assert (head.counts, head.updates, head.watermark) == (before.counts, before.updates, before.watermark)
    assert read_dead_letters(whole.kafka, topic) == []  # nothing was blamed on records


def test_batches_of_one_record_do_not_hide_that_all_of_them_diverge(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, **FRAGILE, options={"broken": "loss"}, batch_size=1)
    publish(config, topic, *GOOD)
    with working(config) as run, pytest.raises(Diverged, match="Again and again"):
        run.join()
    assert len(read_dead_letters(config.kafka, topic)) <= 3


def test_without_a_guard_it_is_learned_and_goes_on(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, **FRAGILE, guard=False, keyframe_every=3)
    publish(config, topic, *GOOD[:8], b"900", b"910", b"920")
    for records in (11, 12):
        with working(config) as run:
            head = run.read(records)
            run.finish() if records == 12 else run.crash()
        publish(config, topic, GOOD[11])
        assert head.counts == {"learned": records}
        assert np.isnan(run.store.arrays(head, "serving")["counts"].numpy()).any()
    assert run.changes("guard") == []
    assert verified(run, config).same


def test_a_loss_far_above_its_range_alarms_and_changes_nothing(kafka: str, redis_url: str, topic: str) -> None:
    tables: dict[str, Any] = {**FRAGILE, "batch_size": 4, "max_wait_ms": 60_000, "options": {"surprise": 50.0}}
    config = configuration(kafka, redis_url, topic, **tables)
    publish(config, topic, *(GOOD * 7)[: 4 * 105])
    with working(config) as run:
        run.read(4 * 105)
        head = run.finish()
    assert run.changes("loss") == [{"update": 101, "loss": 50.0}]
    assert run.metric("headrace_loss_alarms_total") == 1
    assert any("loss is far above its range (update 101)" in line for line in run.said)
    assert head.counts == {"learned": 4 * 105}


def test_a_new_class_stops_nothing(kafka: str, redis_url: str, topic: str) -> None:
    texts: dict[str, Any] = {
        "learner": "text-classifier",
        "input": {"kind": "text", "max_chars": 16},
        "options": {"buckets": 64, "replay_slots": 32},
        "batch_size": 4,
    }
    config = configuration(kafka, redis_url, topic, **texts)
    publish(config, topic, *[(b"aaaa", "a"), (b"bbbb", "b")] * 120, *[(b"cccc", "c")] * 40)
    with working(config) as run:
        run.read(280)
        head = run.finish()
    assert head.counts == {"learned": 280}
    assert head.classes == ["a", "b", "c"]
    assert not run.changes("guard")


@pytest.mark.parametrize(
    "sets", [[{3}], [{0}, {63}], [{1, 2}], [{0, 63}], [{5, 31, 32}], [{7}, {9}, {20, 40}], [set(range(0, 64, 3))]]
)
def test_the_smallest_sets_of_rows_that_break_it_are_found(sets: list[set[int]]) -> None:
    rows: list[Row] = [(Place(Partition("topic", 0), offset),) for offset in range(64)]
    asked = 0

    def breaks(some: Sequence[Row]) -> bool:
        nonlocal asked
        asked += 1
        return any(bad <= {offset for [(_, offset)] in some} for bad in sets)

    found: list[int] = []
    while breaks(left := [row for row in rows if row[0][1] not in found]):
        found += [offset for [(_, offset)] in _culprits(breaks, left)]
    assert sorted(found) == sorted(set[int]().union(*sets))
    assert asked <= 12 * sum(map(len, sets)) + 12


class Noting(Evaluator):
    """Notes the records that it may compare drawings with."""

    known: ClassVar[list[Place]] = []

    def learned(self, examples: Iterable[Example]) -> None:
        self.known.extend(example.record.place for example in examples)

    def unlearned(self, places: Collection[Place]) -> None:
        self.known[:] = [place for place in self.known if place not in places]


@pytest.mark.parametrize("bad", [BAD_LOSS, BAD_TRAINING])
def test_what_was_not_learned_is_not_compared_with(
    kafka: str, redis_url: str, topic: str, bad: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found at its own update, or after others were learned."""
    monkeypatch.setattr(trainer, "Evaluator", Noting)
    Noting.known.clear()
    rhythm: dict[str, Any] = {"snapshot_every_updates": 5, "snapshot_every_s": None}
    config = configuration(kafka, redis_url, topic, **FRAGILE, **rhythm, hold_out={"slots": 1, "share": 1e-9})
    values = [*GOOD[:20], *numbers(bad[:1]), *GOOD[20:]]
    publish(config, topic, *values)
    with working(config) as run:
        run.learns(64 if bad == BAD_LOSS else 65)
        run.finish()
    assert sorted(offset for _, offset in Noting.known) == [n for n in range(len(values)) if n != 20]


def test_an_evaluator_forgets_what_was_not_learned() -> None:
    extractor: Any = torch.nn.Identity()
    evaluator = Evaluator(HoldOutConfig(slots=1), extractor)
    record = Record("topic", 0, 7, 0, None, b"")
    evaluator.learned(Example(replace(record, offset=offset), np.zeros(1, np.uint8), None, "") for offset in range(5))
    evaluator.unlearned({Place(Partition("topic", 0), 3)})
    assert [place[1] for place, _ in evaluator._learned] == [0, 1, 2, 4]
