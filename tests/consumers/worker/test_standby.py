"""Standing by, as processes: one dies or hangs, the other takes its place, and the first can do nothing any more."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks.soak import workers
from benchmarks.soak.checker import read_log, recount
from pipeline.config import Config
from pipeline.errors import Fenced
from pipeline.local.servers import EmbeddedRedis
from pipeline.log.topics import ensure_topics
from pipeline.store.redis import connect
from pipeline.store.store import Store
from tests.consumers.working import PATIENCE_S, configuration, numbers, publish
from tests.services import unique

CHANGES = 10
EACH = 20  # records before every change
QUICK: dict[str, Any] = {"lease_s": 1.0, "snapshot_every_updates": 1, "keep_last": 1000, "keyframe_every": 2}


def until(true: Callable[[], object], why: str) -> None:
    """Returns once it is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, why
        threading.Event().wait(0.01)


class Pair:
    """Workers of one model, by name, and what they say."""

    def __init__(self, config: Config, folder: Path) -> None:
        [self.name] = config.models
        self.config, self.folder = config, folder
        self.store = Store(connect(config.redis.url), self.name, self.name)
        ensure_topics(config.kafka, [self.name])

    def start(self, owner: str) -> Any:
        return workers.start(self.config, self.name, self.folder / owner, owner)

    def said(self, owner: str) -> str:
        file = self.folder / owner
        return file.read_text("utf-8") if file.exists() else ""

    def holds(self, owner: str) -> None:
        """Returns once it does."""
        until(lambda: self.store.holder() == owner, f"{owner} did not take the place: {self.said(owner)}")

    def learned(self, records: int) -> None:
        """Returns once a version has so many."""
        until(
            lambda: self.store.head() and self.store.manifest().counts.get("learned", 0) >= records,
            f"not {records} records were learned",
        )

    def check(self, kafka: str, redis: Redis) -> None:
        """One chain of versions, and every record once."""
        log = read_log(kafka, [self.name])
        found = recount(redis, self.name, self.name, dict.fromkeys(log, "learned"), {})
        assert (found.problems, found.pending) == ([], 0)
        assert self.store.manifest().counts == {"learned": len(log)}


def test_two_workers_change_hands_and_history_stays_one_line(
    kafka: str, redis_url: str, redis: Redis, tmp_path: Path
) -> None:
    pair = Pair(configuration(kafka, redis_url, unique("hands"), **QUICK), tmp_path)
    holder, owner = pair.start("worker-0"), "worker-0"
    pair.holds(owner)
    for change in range(CHANGES):
        standby, next_owner = pair.start(f"worker-{change + 1}"), f"worker-{change + 1}"
        publish(pair.config, pair.name, *numbers(range(change * EACH, (change + 1) * EACH)))
        pair.learned((change + 1) * EACH - (EACH if change % 4 < 2 else 0))  # or while it still learns
        dies = change % 2 == 1
        os.kill(holder.pid, signal.SIGKILL if dies else signal.SIGSTOP)
        pair.holds(next_owner)
        if dies:
            holder.join(PATIENCE_S)
        else:
            pair.learned((change + 1) * EACH)  # by the other one: the head is its now
            head = pair.store.head()
            os.kill(holder.pid, signal.SIGCONT)
            holder.join(PATIENCE_S)
            assert holder.exitcode == Fenced.exit_status
            assert f"{next_owner} took {pair.name} from this worker" in pair.said(owner)
            assert pair.store.head() == head
        holder, owner = standby, next_owner
    pair.learned(CHANGES * EACH)
    holder.terminate()
    holder.join(PATIENCE_S)
    assert holder.exitcode == 0
    pair.check(kafka, redis)


def test_who_stands_by_while_redis_is_away_takes_over_when_it_is_back(kafka: str, tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server, Redis.from_url(server.url) as redis:
        pair = Pair(configuration(kafka, server.url, unique("standby"), **QUICK), tmp_path)
        publish(pair.config, pair.name, *numbers(range(EACH)))
        first = pair.start("first")
        pair.learned(EACH)
        second = pair.start("second")
        until(lambda: "standing by to take over" in pair.said("second"), "it did not stand by")
        server.stop()
        first.kill()
        first.join()
        until(lambda: "Redis cannot be reached" in pair.said("second"), "it did not say that Redis is away")
        publish(pair.config, pair.name, *numbers(range(EACH, 2 * EACH)))
        server.start()
        pair.holds("second")
        pair.learned(2 * EACH)
        second.terminate()
        second.join(PATIENCE_S)
        assert second.exitcode == 0
        pair.check(kafka, redis)
