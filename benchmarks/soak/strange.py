"""What other producers put among the records: odd bytes, odd batches, transactions that end in every way."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from benchmarks.soak import traffic
from benchmarks.soak.stage import BOTH, Stage
from pipeline.log.publisher import Publisher
from tests.pipeline import raw

NO_TEXT = "Gr\u00fc\u00dfe".encode("latin-1")  # a header's name
UNFOLDED_BYTES = 32 << 20  # of a batch that takes a thousandth of it
LEFT_OPEN_S = 1.0
KINDS = ("odd header name", "null label", "unfolds to much", "random batch", "transaction")
EVERY_S = 0.5


def until(done: threading.Event, stage: Stage, seed: int) -> Counter[str]:
    """Publishes something strange again and again; what it was."""
    rng, counts = random.Random(seed), Counter[str]()
    with raw.sending(stage.servers.kafka.bootstrap_servers) as send:
        while not done.wait(EVERY_S):
            topic, kind = rng.choice(BOTH), rng.choice(KINDS)
            if kind == "null label":
                topic = traffic.PICTURES  # a text would wait for one
            if kind == "transaction":
                kind = _transaction(stage, topic, rng, done)
            elif not _batch(stage, send, topic, kind, rng):
                kind = "refused by the broker"
            counts[kind] += 1
    return counts


def _batch(stage: Stage, send: Any, topic: str, kind: str, rng: random.Random) -> bool:
    """Whether the broker took it."""
    partition, now_ms = rng.randrange(traffic.PARTITIONS), int(1000 * time.time())  # an old one is soon deleted
    kinds: list[str | None]
    if kind == "random batch":
        made = [raw.record(n, _bytes(rng), key=_bytes(rng), headers=_headers(rng)) for n in range(rng.randint(1, 4))]
        batch, kinds = raw.batch(made, codec=rng.choice(sorted(raw.CODECS)), timestamp_ms=now_ms), [None] * len(made)
    else:
        sent = _good(stage, topic)
        headers = [(name.encode(), value) for name, value in sent.headers]
        odd: dict[str, list[tuple[bytes, bytes | None]]] = {"odd header name": [(NO_TEXT, b"5")]}
        odd["null label"] = [(b"label", None)]  # the last one of a name counts
        good = raw.record(0, sent.value, key=sent.key, headers=[*headers, *odd.get(kind, [])])
        batch, kinds = (
            raw.batch([good], timestamp_ms=now_ms),
            [traffic.UNLABELLED if kind == "null label" else traffic.GOOD],
        )
        if kind == "unfolds to much":
            large = raw.record(1, bytes(UNFOLDED_BYTES), headers=[(traffic.KIND.encode(), traffic.HUGE.encode())])
            batch, kinds = raw.batch([good, large], codec=1, timestamp_ms=now_ms), [traffic.GOOD, traffic.HUGE]
    code, first = send(topic, batch, partition)
    stage.strange |= {(topic, partition, first + n): kind_ for n, kind_ in enumerate(kinds)} if not code else {}
    return not code


def _transaction(stage: Stage, topic: str, rng: random.Random, done: threading.Event) -> str:
    """One that is committed, aborted, or left open for a while: what follows it waits."""
    how = rng.choice(("committed", "aborted", "left open"))
    with Publisher(stage.direct.kafka, transactional_id="soak-strange") as publisher:
        transaction = publisher.transaction()
        transaction.__enter__()
        receipts = []
        for _ in range(3):
            sent = _good(stage, topic)
            receipts.append(publisher.publish(topic, sent.value, key=sent.key, headers=sent.headers))
        publisher.flush(30)
        if how == "left open":
            done.wait(LEFT_OPEN_S)
        if how == "committed":
            transaction.__exit__(None, None, None)
            stage.strange |= dict.fromkeys([receipt.result(30) for receipt in receipts], traffic.GOOD)
        elif how == "aborted":
            with suppress(KeyError):
                transaction.__exit__(KeyError, KeyError(how), None)
    if how == "left open":  # it comes back, and what was open is aborted
        Publisher(stage.direct.kafka, transactional_id="soak-strange").close()
    return f"transaction {how}"


def _good(stage: Stage, topic: str) -> traffic.Sent:
    """The next one that is fine, with a number of its own."""
    while traffic.kind_of(number := stage.number()) != traffic.GOOD:
        continue
    return (traffic.picture if topic == traffic.PICTURES else traffic.text)(number)


def _bytes(rng: random.Random) -> bytes | None:
    return rng.randbytes(rng.randrange(40)) if rng.random() < 0.8 else None


def _headers(rng: random.Random) -> list[tuple[bytes, bytes | None]]:
    names = (b"label", b"id", b"content-type", b"headrace-for", b"headrace-origin", NO_TEXT, rng.randbytes(3))
    odd = [(rng.choice(names), _bytes(rng)) for _ in range(rng.randrange(4))]
    return [*odd, (b"label", b"class 0")]  # else it may wait for one
