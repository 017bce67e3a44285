"""Publish → served: from a record's publishing to an answer of the sampler that has learned it, seen from outside.

`headrace train` and `headrace serve` run as processes. Full load is what this very worker learns from a full topic;
then a client (benchmarks/client.py) publishes at half of it.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys

import numpy as np

from benchmarks.data import digits, publish
from benchmarks.report import Figure, Findings
from benchmarks.stage import ROOT, Stage
from benchmarks.throughput import TOPIC, learned, rate_per_s, settings

MODEL = "live"
P50_S, P99_S = 0.5, 1.5


def measure(stage: Stage, *, seconds: float, snapshot_every_s: float, records: int) -> Findings:
    """Publishes `records` at once to know the full load, then `seconds` long at half of it."""
    port = free_port()
    stage.configure({MODEL: {**settings(1, "cpu"), "snapshot_every_s": snapshot_every_s}}, sampler_port=port)
    kafka = stage.config().kafka
    publish(kafka, TOPIC, digits(records).records())
    store = stage.store(MODEL)
    with stage.headrace("serve") as sampler, stage.headrace("train", MODEL) as worker:
        worker.until(lambda: learned(store) >= records or None)
        full_per_s = rate_per_s(store, records)
        stage.say(f"full load is {full_per_s:.0f} records/s; publishing half of it for {seconds:.0f} s")
        sampler.until(lambda: ready(port) or None)
        before = store.resolve("latest").version
        address = [kafka.bootstrap_servers, f"127.0.0.1:{port}"]
        client = subprocess.run(
            [
                sys.executable,
                str(ROOT / "benchmarks/client.py"),
                *address,
                MODEL,
                TOPIC,
                str(full_per_s / 2),
                str(seconds),
            ],
            stdout=subprocess.PIPE,
            check=True,
        )
        versions = store.resolve("latest").version - before
    latencies_s = np.array(json.loads(client.stdout))
    p50_s, p99_s = np.percentile(latencies_s, [50, 99]).tolist()
    told = f"{full_per_s / 2:,.0f} records/s (half of full load), a snapshot every {snapshot_every_s:g} s"
    figures = [
        Figure(f"Publish → served, {told}: p50", f"**{p50_s:.2f} s**", f"< {P50_S:g} s", p50_s < P50_S),
        Figure("the same: p99", f"**{p99_s:.2f} s**", f"< {P99_S:g} s", p99_s < P99_S),
    ]
    counted = (
        f"{len(latencies_s):,} records in {seconds:.0f} s, {versions} versions; the longest {latencies_s.max():.2f} s."
    )
    quantiles = {f"p{q:g}": float(np.percentile(latencies_s, q)) for q in (0, 1, 5, 25, 50, 75, 90, 95, 99, 99.9, 100)}
    raw = {"full_per_s": full_per_s, "records": len(latencies_s), "versions": versions, "latency_s": quantiles}
    return Findings(figures, [counted], raw)


def free_port() -> int:
    """One that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def ready(port: int) -> bool:
    """Whether every model of the sampler has a version."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except ConnectionError:  # it does not listen yet
        return False
    finally:
        connection.close()
