"""`make soak`: kills, outages and changes of hands; then an independent recount, and everything learned again."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.machine import machine, versions
from benchmarks.soak import harm, report, strange, traffic
from benchmarks.soak.checker import Recount, Seen, read_log, recount, weights
from benchmarks.soak.stage import BOTH, MODELS, TOPICS, WANTED, Stage, Ticker, together
from consumers.loading import resolve_blueprint
from consumers.sampler.app import open_server
from consumers.worker.fold import Recipe
from consumers.worker.replay import Replay
from consumers.worker.sources import Sources
from consumers.worker.verify import verify
from consumers.worker.worker import pick_device
from pipeline.log.fetcher import Fetcher
from pipeline.store.redis import connect
from pipeline.store.store import Store

HERE = Path(__file__).parents[1]
KILLED = ("pictures", "drawings", "texts", "joined", "counts")
MOST_TOLD = 20  # problems


def main() -> int:
    """Status 0: nothing was lost, nothing was learned twice, and all of it can be learned again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--hands", type=int, default=100, help="changes of hands between two workers")
    parser.add_argument("--records", type=int, default=15, help="published to each topic before each kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="of the workers; on cuda in the deterministic mode")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for soak.md and soak.json")
    parser.add_argument("--keep", action="store_true", help="leave the servers' data and the workers' words")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") if not options.keep else _kept() as place:
        say(f"seed {options.seed}; data in {place}")
        found = soak(Path(place), options)
    report.write(options.out, found)
    for problem in found["problems"][:MOST_TOLD]:
        say(f"PROBLEM: {problem}")
    say(f"{len(found['problems'])} problems in {found['seconds']} s; see {options.out / 'soak.md'}")
    return 1 if found["problems"] else 0


def soak(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything; what was found, for soak.json."""
    started_s = time.monotonic()
    numbers = (3 * options.kills + 2 * options.hands) * options.records + 20_000
    with Stage(folder, numbers, options.device, say) as stage, _asked(stage) as sampler:
        say("servers run; now the kills, and meanwhile the changes of hands")
        shares = [options.kills // len(KILLED) + (n < options.kills % len(KILLED)) for n in range(len(KILLED))]
        killing = Ticker(options.kills, "kills", say)
        changing = Ticker(options.hands, "changes of hands", say)
        done = threading.Event()
        meanwhile = ThreadPoolExecutor(1).submit(strange.until, done, stage, options.seed)
        *killed, (hands, problems) = together(
            *(
                lambda n=n, share=share: harm.kill_often(
                    stage, stage.workers[KILLED[n]], share, options.records, random.Random(options.seed + n), killing
                )
                for n, share in enumerate(shares)
            ),
            lambda: harm.change_hands(stage, stage.workers["hands"], options.hands, 1, changing),
        )
        done.set()
        odd = meanwhile.result()
        say("the outages")
        problems += harm.outages(stage, options.records)
        problems += [
            f"{name} ended by itself with status {status}, {times} times"
            for name, handle in stage.workers.items()
            for status, times in handle.ended.items()
        ]
        problems += _drain(stage)
        say("all is learned, the workers have ended; the recount")
        recounts, records, more = _recount(stage)
        problems += more + [f"{r.model}: {problem}" for r in recounts for problem in r.problems]
        problems += [f"the sampler failed: {failure}" for failure in sampler["failures"]]
        verified = {name: _verified(stage, name) for name in MODELS}
        problems += [
            f"{name}: learned again it differs: {v['differs']}" for name, v in verified.items() if not v["same"]
        ]
        server = str(stage.redis.info("server")["redis_version"])
        kills: Counter[str] = sum(killed, Counter())
        return {
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "versions": versions(server),
            "seed": options.seed,
            "seconds": round(time.monotonic() - started_s),
            "records": records,
            "kills": dict(sorted(kills.items())),
            "hands": dict(hands),
            "strange": dict(sorted(odd.items())),
            "starts": {name: handle.starts for name, handle in stage.workers.items()},
            "sampler": {"requests": sampler["requests"], "failed": len(sampler["failures"])},
            "models": {r.model: asdict(r) | {"problems": len(r.problems)} for r in recounts},
            "verified": verified,
            "problems": problems,
        }


def _drain(stage: Stage) -> list[str]:
    """Waits until all that was published is accounted for, and ends the workers."""
    problems = []
    stage.publish(0)  # the labels that are owed
    for name, handle in stage.workers.items():
        store = Store(connect(stage.servers.redis.url), name, name)
        topics = stage.direct.model(name).read_topics
        places = [*(receipt.result(60) for receipt in stage.published), *stage.strange]
        total = sum(topic in topics for topic, *_ in places)
        if not handle.until(lambda s=store, t=total: sum(s.manifest().counts.values()) >= t):  # type: ignore[misc]
            problems.append(f"{name}: not all was learned in time ({store.manifest().counts} of {total})")
    for name, handle in stage.workers.items():
        if status := handle.end():
            problems.append(f"{name} ended with status {status}")
    return problems


def _recount(stage: Stage) -> tuple[list[Recount], int, list[str]]:
    """What the checker says, and the number of records in the log."""
    log = read_log(stage.servers.kafka.bootstrap_servers, TOPICS)
    letters = read_log(stage.servers.kafka.bootstrap_servers, [f"{topic}.dead-letters" for topic in BOTH])
    problems = []
    kinds: dict[tuple[str, int, int], str | None] = {
        receipt.result(60): log[receipt.result(60)].headers[traffic.KIND].decode()
        for receipt in stage.published
        if receipt.result(60) in log
    }
    kinds |= stage.strange
    if log.keys() != kinds.keys() or len(kinds) != len(stage.published) + len(stage.strange):
        problems.append(
            f"the log has {len(log)} records, and {len(stage.published) + len(stage.strange)} were acknowledged"
        )
    reports = []
    for model, table in MODELS.items():
        labels = table.get("labels", {}).get("topic")
        ours = {place: seen for place, seen in log.items() if place[0] in [*table["topics"], labels]}
        wanted = {place: _wanted(model, kinds.get(place)) for place in ours}
        reports.append(recount(stage.redis, model, model, wanted, letters, labels))
        learned = [seen for place, seen in ours.items() if wanted[place] == "learned"]
        if "decoder" in table and not _counted(stage, model, learned):
            problems.append(f"{model}: the weights do not count each learned record once")
    return reports, len(log), problems


def _wanted(model: str, kind: str | None) -> str | None:
    return None if kind is None else WANTED[model][kind]


def _counted(stage: Stage, model: str, learned: list[Seen]) -> bool:
    counts = weights(stage.redis, model, model, "counts")[:, 0]
    shall = np.zeros_like(counts)
    for seen in learned:
        shall[int(seen.key or b"")] += 1
    return bool(np.array_equal(counts, shall))


def _verified(stage: Stage, model: str) -> dict[str, Any]:
    """Learned again from nothing."""
    settings = stage.direct.model(model)
    store = Store(connect(stage.servers.redis.url), model, model)
    target = store.manifest()
    with Fetcher(stage.direct.kafka) as fetcher:
        replay = Replay(fetcher, target.topic_ids)
        recipe = Recipe(model, settings, resolve_blueprint(settings.learner), pick_device(settings.device))
        found = verify(store, recipe, replay, Sources(store, stage.direct.family), target)
    say(f"{model}: {found.versions} versions, {found.updates} updates learned again: {'same' if found.same else found}")
    return found.json()


@contextmanager
def _asked(stage: Stage) -> Iterator[dict[str, Any]]:
    """A sampler that is asked all the time: requests so far, and what failed."""
    server, listener = open_server(stage.direct, lambda _: None)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    told: dict[str, Any] = {"requests": 0, "failures": []}
    done = threading.Event()

    def ask() -> None:
        known: set[str] = set()  # models that have answered once must do so for ever
        with httpx.Client(base_url=url, timeout=30) as client:
            while not done.wait(0.05):
                for model, kind in (("texts", "text"), ("pictures", "image")):
                    body = traffic.text(1).value if kind == "text" else traffic.picture(1).value
                    try:
                        status = client.post(f"/models/{model}/classify", content=body or b"").status_code
                    except httpx.HTTPError as error:
                        told["failures"].append(repr(error))
                        continue
                    told["requests"] += 1
                    if status == 200:
                        known.add(model)
                    elif model in known:
                        told["failures"].append(f"{model}: status {status}")

    threads = [threading.Thread(target=server.run, args=([listener],)), threading.Thread(target=ask)]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        done.set()
        threads[1].join()
        server.should_exit = True
        threads[0].join()
        listener.close()


@contextmanager
def _kept() -> Iterator[str]:
    yield tempfile.mkdtemp(prefix="soak-")


def say(line: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
