"""`headrace watch`: what Redis tells of models and of their workers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from io import StringIO
from pathlib import Path

from redis import Redis
from rich.console import Console

from consumers.cli.watch import Heads, table
from pipeline.local.servers import EmbeddedRedis
from pipeline.process import tied
from pipeline.store.store import Store
from tests.consumers.cli import test_cli as shared
from tests.consumers.cli.test_cli import HEADRACE, PATIENCE_S, Headrace
from tests.consumers.marked import marked, step

folder, headrace, model, topic = shared.folder, shared.headrace, shared.model, shared.topic


def test_watch_once(headrace: Headrace, model: str, redis: Redis) -> None:
    assert headrace("watch", "--once").out == f"model {model}  records 0\n"
    step(marked(Store(redis, model, model)))
    [row] = headrace("watch", "--once", "--json").json()
    assert (row["model"], row["version"], row["records"], row["lag_records"]) == (model, 1, 1, 7)
    assert 0 <= row["freshness_s"] < PATIENCE_S
    shown = headrace("watch", "--once").out
    assert shown.startswith(f"model {model}  version 1  records 1  lag 7  freshness ")
    assert len(shown.splitlines()) == 1  # in a pipe no line is broken


def test_watch_tells_a_dead_worker_from_an_idle_one(headrace: Headrace, model: str, redis: Redis) -> None:
    store = Store(redis, model, model)
    maker = marked(store)
    maker.commit(counts={"learned": 1, "skipped/unlabelled": 2, "skipped/gone": 3, "dead-lettered/undecodable": 4})
    shown = headrace("watch", "--once").out
    assert shown.endswith("skipped 5  dead letters 4  worker alive\n")
    [row] = headrace("watch", "--once", "--json").json()
    assert (row["skipped"], row["dead_lettered"], row["worker"]["owner"]) == (5, 4, "test")
    assert row["worker"]["alive"]
    redis.delete(f"headrace:{{{model}}}:model:{model}:lease")  # it ran out
    assert re.search(r"worker dead \d+ s\n$", headrace("watch", "--once").out)
    redis.hset(f"headrace:{{{model}}}:model:{model}:fence", "seen_ms", "garbage")
    assert headrace("watch", "--once").out.endswith("worker dead –\n")
    store.release(maker.fence)
    assert headrace("watch", "--once").out.endswith("worker none\n")
    assert headrace("watch", "--once", "--json").json()[0]["worker"] is None


def test_watch_waits_for_redis(folder: Path, model: str, tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server:
        url = server.url
        command = [str(HEADRACE), "watch", "--every", "0.1"]
        with subprocess.Popen(
            tied(command),
            env=os.environ | {"HEADRACE__REDIS__URL": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == f"model {model}  records 0\n"
            server.stop()
            assert process.stderr.readline().startswith("Redis cannot be reached")
            server.start()
            while process.stdout.readline() != f"model {model}  records 0\n":
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE_S)
            assert (process.returncode, "Traceback" in said) == (0, False)


def test_what_redis_says_is_shown_as_it_is(redis: Redis, model: str) -> None:
    store = Store(redis, model, model)
    marked(store).commit(diagnoses={"few-records": "[/bold] [link=x]a label\x1b[2J"})
    [row] = Heads().look({model: store})
    console = Console(force_terminal=True, width=120, file=StringIO(), color_system=None)
    console.print(table([row], "\n".join(row.warnings())))
    assert isinstance(console.file, StringIO)
    assert "[/bold] [link=x]a label\\x1b[2J" in console.file.getvalue()
