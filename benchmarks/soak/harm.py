"""What is done to the workers and their servers."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from redis import Redis

from benchmarks.soak.proxy import Trap
from benchmarks.soak.stage import POLL_S, Handle, Stage, Ticker

LEARN_S = 2.0  # how long the holder may take to learn something before it loses its place
TRAP_S = 20.0  # how long a trap waits for the next commit
UPLOAD_BYTES = 40_000
COMMIT_BYTES = 4_000
NOTE_BYTES = 300
SHORT_S = 5.0  # an outage
DELAY_S = 30.0  # of an answer; the workers give up on one then

KINDS = ("starting", "learning", "note", "upload", "commit", "answer")


def kill_often(
    stage: Stage, handle: Handle, kills: int, records: int, rng: random.Random, ticker: Ticker
) -> Counter[str]:
    """Starts a worker and kills it, so often; publishes before each kill. Leaves one that runs."""
    done: Counter[str] = Counter()
    for _ in range(kills):
        handle.start()
        stage.publish(records)
        kind = rng.choice(KINDS)
        if kind == "starting":
            time.sleep(rng.uniform(0, 1.5))
        else:
            head = stage.head(handle.name)
            handle.until(partial(_grew, stage, handle, head), TRAP_S)
            if kind == "learning":
                time.sleep(rng.uniform(0, 0.3))
            else:
                kind = _inside(stage, handle, kind, records, rng)
        handle.kill()
        done[kind] += 1
        ticker.tick()
    handle.start()
    return done


def _inside(stage: Stage, handle: Handle, kind: str, records: int, rng: random.Random) -> str:
    """Breaks the next commit at a random byte, by cutting or by stalling; what came of it."""
    cut = rng.random() < 0.5
    traps: dict[str, Callable[[], Trap]] = {
        "note": lambda: Trap(f"headrace-{handle.name}".encode(), rng.randrange(NOTE_BYTES), cut),
        "upload": lambda: Trap(b":tensor:", rng.randrange(UPLOAD_BYTES), cut),
        "commit": lambda: Trap(b'{"format":1,"model"', rng.randrange(COMMIT_BYTES), cut),
        "answer": lambda: Trap(b'{"format":1,"model"', cut=cut, answer=True),
    }
    trap = (handle.kafka if kind == "note" else handle.redis).arm(traps[kind]())
    stage.publish(records)
    if not handle.until(trap.sprung.is_set, TRAP_S):
        return f"{kind}: none came"
    time.sleep(rng.uniform(0, 0.1))  # a connection that was cut is made again meanwhile, perhaps
    return f"{kind}, {'cut' if cut else 'stalled'}"


def change_hands(
    stage: Stage, handle: Handle, changes: int, records: int, ticker: Ticker
) -> tuple[Counter[str], list[str]]:
    """Two workers for one model: the one that holds it is stopped, or killed, and the other one takes over.

    One that was stopped wakes up again, finds its place taken, and must end with status 5.
    """
    done: Counter[str] = Counter()
    problems: list[str] = []
    holder, name = handle.start(), f"{handle.name}-{handle.starts}"
    for change in range(changes):
        stage.publish(records)
        _wait(partial(_holds, stage, handle, name))
        standby, next_name = handle.start(), f"{handle.name}-{handle.starts}"
        _wait(partial(_grew, stage, handle, stage.head(handle.name)), LEARN_S)
        # By a machine that stood still for as long as the lease. One that ran out and was not taken is prolonged.
        lost = _holds(stage, handle, next_name)
        kill = change % 3 == 0 and not lost
        if not lost:
            os.kill(holder.pid or 0, signal.SIGKILL if kill else signal.SIGSTOP)
        if not _wait(partial(_holds, stage, handle, next_name)):
            problems.append(f"change of hands {change}: {next_name} did not take over")
        if not kill and not lost:
            os.kill(holder.pid or 0, signal.SIGCONT)
        holder.join(60)
        wanted = -signal.SIGKILL if kill else 5
        if holder.exitcode != wanted:
            problems.append(f"change of hands {change}: {name} ended with {holder.exitcode}, not {wanted}")
            holder.kill()
        done["killed" if kill else "by itself" if lost else "stopped and awake again"] += 1
        holder, name = standby, next_name
        ticker.tick()
    return done, problems


def _holds(stage: Stage, handle: Handle, owner: str) -> bool:
    return stage.owner(handle.name) == owner


def _grew(stage: Stage, handle: Handle, head: int) -> bool:
    return stage.head(handle.name) > head


def outages(stage: Stage, records: int) -> list[str]:
    """Servers killed and started again, connections cut, answers late, no memory: the workers must live on."""
    redis, kafka = stage.servers.redis, stage.servers.kafka
    problems: list[str] = []
    pids = {name: handle.process.pid for name, handle in stage.workers.items() if handle.process}

    def calm(what: str) -> None:
        """All workers live, and go on to new versions."""
        heads = {name: stage.head(name) for name in stage.workers}
        stage.publish(records)
        for name, handle in stage.workers.items():
            if not handle.until(partial(_grew, stage, handle, heads[name])):
                problems.append(f"{what}: {name} did not go on ({handle.process and handle.process.exitcode})")
        stage.say(f"{what}: over")

    def late(seconds: float) -> None:
        for name, handle in stage.workers.items():
            (handle.kafka if name == "texts" else handle.redis).delay_s = seconds

    calm("before the outages")
    for what, server in (("Redis", redis), ("Kafka", kafka)):
        stage.publish(records)
        if server.process:
            server.process.kill()
        time.sleep(SHORT_S)
        server.stop()
        server.start()
        calm(f"{what} killed and started again")
    for _ in range(20):
        stage.publish(1)
        for handle in stage.workers.values():
            handle.redis.cut()
            handle.kafka.cut()
        time.sleep(0.2)
    calm("connections cut 20 times")
    late(DELAY_S)
    stage.publish(records)
    time.sleep(1.3 * DELAY_S)
    late(0)
    calm(f"answers {DELAY_S:.0f} s late")
    stage.redis.config_set("maxmemory", 1)
    stage.publish(records)
    time.sleep(SHORT_S)
    stage.redis.config_set("maxmemory", 0)
    calm(f"Redis without memory for {SHORT_S:.0f} s")
    with full_disk(stage.redis, redis.folder):
        stage.publish(records)
        time.sleep(SHORT_S)
    calm(f"Redis without disk for {SHORT_S:.0f} s")
    for name, handle in stage.workers.items():
        if handle.process and handle.process.pid != pids.get(name):
            problems.append(f"{name}: another process than before the outages")
    return problems


@contextmanager
def full_disk(redis: Redis, folder: Path) -> Iterator[None]:
    """Redis refuses writes, since it cannot save: a folder is where its dump belongs."""
    redis.config_set("save", "3600 1")
    (folder / "dump.rdb").mkdir()
    redis.bgsave()
    _wait(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err")
    yield
    (folder / "dump.rdb").rmdir()
    redis.config_set("save", "")


def _wait(true: Callable[[], object], patience_s: float = 60.0) -> bool:
    deadline = time.monotonic() + patience_s
    while not true():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True
