"""Code of a user's own that never returns: its record gets its outcome, or at least it is told what it is at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from consumers.cli.watch import Heads
from consumers.worker import decoding, stalls
from pipeline.errors import Exhausted
from tests.consumers import endless
from tests.consumers.working import configuration, numbers, publish, working

SOON_S = 2.0  # long enough that nothing else is taken for what never ends
DECODER = {"decoder": "tests.consumers.endless:decode"}


@pytest.fixture(autouse=True)
def _endless() -> Iterator[None]:
    endless.at_work.clear()
    endless.goes_on.clear()
    yield
    endless.goes_on.set()  # threads that were given up end with the test


@pytest.mark.parametrize("decode_threads", [1, 3])
def test_a_decoder_that_never_returns_loses_its_record_alone(
    kafka: str, redis_url: str, topic: str, monkeypatch: pytest.MonkeyPatch, decode_threads: int
) -> None:
    monkeypatch.setattr(decoding, "STALLED_S", SOON_S)
    config = configuration(kafka, redis_url, topic, **DECODER, decode_threads=decode_threads)
    values = [*numbers(range(10)), b"endless", *numbers(range(10, 20)), b"endless", b"20"]
    publish(config, topic, *values)
    with working(config) as run:
        head = run.read(len(values))
        run.finish()
    assert head.counts == {"learned": 21, "dead-lettered/stalled": 2}
    assert run.counts() == [1] * 21
    expected = {(topic, 0, at): ["dead-lettered/stalled" if at in (10, 21) else "learned"] for at in range(len(values))}
    assert run.outcomes() == expected
    told = [line for line in run.said if "did not return within" in line]
    assert [f"{topic}:0:{at} is dead-lettered" in line for at, line in zip((10, 21), told, strict=True)] == [True] * 2
    assert run.metric("headrace_records_total", outcome="dead-lettered", reason="stalled") == 2


def test_a_decoder_that_never_returns_holds_up_no_end(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, **DECODER)
    with working(config) as run:
        publish(config, topic, b"endless")
        assert endless.at_work.wait(20)
        run.stop.set()
        run.join()
        assert run.store.holder() is None


def test_a_worker_ends_where_too_many_threads_were_given_up(
    kafka: str, redis_url: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one goes on behind these records, and has threads of its own."""
    monkeypatch.setattr(decoding, "STALLED_S", SOON_S)
    monkeypatch.setattr(decoding, "GIVEN_UP", 2)
    config = configuration(kafka, redis_url, topic, **DECODER, decode_threads=2)
    values = [b"0", b"endless", b"1", b"endless", b"2", b"endless", b"3"]
    publish(config, topic, *values)
    with working(config) as run:
        with pytest.raises(Exhausted, match="not returned from 2 records, and each keeps a thread"):
            run.join()
        assert run.store.manifest().counts["dead-lettered/stalled"] == 2
        assert run.store.holder() is None
    with working(config) as run:
        head = run.read(len(values))
        run.finish()
    assert head.counts == {"learned": 4, "dead-lettered/stalled": 3}
    assert sorted(map(len, run.outcomes().values())) == [1] * len(values)
    assert Exhausted.exit_status == 10


def test_a_learner_that_never_returns_is_reported_with_its_records(
    kafka: str, redis_url: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalls, "STALLED_S", SOON_S)
    config = configuration(kafka, redis_url, topic, learner="tests.consumers.endless:blueprint", lease_s=0.5)
    publish(config, topic, *numbers(range(3)), b"666", *numbers(range(3, 6)))
    with working(config) as run:
        assert endless.at_work.wait(20)
        records = f"7 records ({topic}:0:0..6)"
        run.waits(lambda: (holding := run.store.holding()) and holding.alive and holding.stalled == records)
        assert (run.metric("headrace_stalled_seconds") or 0) > 0
        assert any(f"has been at {records} for more than" in line for line in run.said)
        [row] = Heads().look({topic: run.store})
        assert row.cells()[-1] == "stalled"
        endless.goes_on.set()
        run.waits(lambda: (holding := run.store.holding()) and not holding.stalled)
        assert run.metric("headrace_stalled_seconds") == 0
        assert any("has ended; going on." in line for line in run.said)
        run.read(7)
