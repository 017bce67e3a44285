"""An outside client, which imports nothing of headrace: publishes at a rate, and notes when each record is served.

A record counts as served once the model that the sampler answers with has a watermark beyond the record's offset.
Prints JSON: the latencies in seconds, in the order of serving.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import threading
import time
from collections import deque
from typing import Any

import numpy as np
from confluent_kafka import Producer
from PIL import Image

TICK_S = 0.01
POLL_S = 0.02  # between two looks at the sampler: latencies are too long by half of it, in the mean
PATIENCE_S = 30.0


class Client:
    """Publishes on one thread, looks on another."""

    def __init__(self, bootstrap_servers: str, address: str, model: str, topic: str) -> None:
        # No linger: what is measured is the way of a record, not of a batch of the producer.
        self._producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 0})
        self._http = http.client.HTTPConnection(address)
        self._model, self._topic = model, topic
        self._acknowledged: dict[int, deque[tuple[int, float]]] = {}  # partition → (offset, time of publishing)
        self._published = threading.Event()
        self.latencies_s: list[float] = []

    def run(self, rate_per_s: float, seconds: float) -> None:
        """Publishes for so long, and waits until all is served."""
        looking = threading.Thread(target=self._look, name="look")
        looking.start()
        rng = np.random.default_rng(0)
        pictures = [_png(rng.integers(0, 64, (28, 28), np.uint8) * (digit + 1) // 5) for digit in range(10)]
        started_s = time.perf_counter()
        sent = 0
        while (now_s := time.perf_counter() - started_s) < seconds:
            while sent < now_s * rate_per_s:
                self._publish(pictures[sent % 10], str(sent % 10))
                sent += 1
            self._producer.poll(TICK_S)
        self._producer.flush(PATIENCE_S)
        self._published.set()
        looking.join()
        if len(self.latencies_s) != sent:
            raise SystemExit(f"{sent} records were published, {len(self.latencies_s)} were served in time.")

    def _publish(self, picture: bytes, label: str) -> None:
        published_s = time.perf_counter()

        def acknowledged(error: Any, message: Any) -> None:
            if error is not None:
                raise SystemExit(str(error))
            waiting = self._acknowledged.setdefault(message.partition(), deque())
            waiting.append((message.offset(), published_s))

        self._producer.produce(self._topic, picture, headers={"label": label.encode()}, on_delivery=acknowledged)

    def _look(self) -> None:
        ends_s = float("inf")
        while time.perf_counter() < ends_s:
            self._http.request("GET", f"/models/{self._model}")
            state = json.load(self._http.getresponse())
            now_s = time.perf_counter()
            watermark = (state["standing"] or {"watermark": {}})["watermark"].get(self._topic, {})
            for partition, waiting in list(self._acknowledged.items()):
                while waiting and waiting[0][0] < watermark.get(str(partition), 0):
                    self.latencies_s.append(now_s - waiting.popleft()[1])
            if self._published.is_set():
                ends_s = min(ends_s, now_s + PATIENCE_S)
                if not any(self._acknowledged.values()):
                    return
            time.sleep(POLL_S)


def _png(grey: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("bootstrap_servers", "address", "model", "topic"):
        parser.add_argument(name)
    parser.add_argument("rate_per_s", type=float)
    parser.add_argument("seconds", type=float)
    given = parser.parse_args()
    client = Client(given.bootstrap_servers, given.address, given.model, given.topic)
    client.run(given.rate_per_s, given.seconds)
    print(json.dumps(client.latencies_s))
