"""Publishing through the sampler, and reading what was published: `POST /topics/{topic}` and `?after=`."""

from __future__ import annotations

import base64
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from kafka import KafkaConsumer, TopicPartition
from redis import Redis

from consumers.sampler import after, outbox
from models.registry import BUILTIN
from pipeline.client import SamplingClient
from pipeline.errors import SamplerError, SamplerUnavailable
from pipeline.local.servers import EmbeddedKafka
from pipeline.records import Partition, Place
from pipeline.store.lineage import Runs
from pipeline.store.store import Store
from tests.consumers.answering import file, photo
from tests.consumers.marked import TEXT, Maker, marked
from tests.consumers.running import PATIENCE_S, Running, configuration, running
from tests.services import Topics, unique

TOKEN = "a token of the tests"
FOREIGN = {"Origin": "http://elsewhere.example"}


def held(kafka: str, topic: str) -> list[tuple[int, bytes | None, bytes | None, dict[str, bytes]]]:
    """Offset, key, value and headers of all records of a topic of one partition, as another client reads them."""
    consumer = KafkaConsumer(bootstrap_servers=kafka, group_id=None, metrics_enabled=False)
    try:
        at = TopicPartition(topic, 0)
        consumer.assign([at])
        consumer.seek_to_beginning(at)
        [end] = consumer.end_offsets([at]).values()
        found: list[Any] = []
        while len(found) < end:
            found += consumer.poll(1000).get(at, [])
        return [(record.offset, record.key, record.value, dict(record.headers)) for record in found]
    finally:
        consumer.close()


@pytest.fixture
def labels(topics: Topics) -> str:
    return topics()


@pytest.fixture
def at(redis_url: str, kafka: str, topic: str, labels: str) -> Iterator[Running]:
    table = {"topics": [topic], "labels": {"topic": labels}}
    with running(configuration(redis_url, {unique("model"): table}, kafka)) as at:
        yield at


def test_what_is_sent_is_in_the_log(at: Running, kafka: str, topic: str) -> None:
    """Of every form of a body; the answer names the places, and the ids."""
    picture = file(photo(4, 4))
    data = base64.b64encode(picture).decode()
    lines = '{"text": "four", "id": "4"}\n\n{"text": "five"}\n'
    sent: list[dict[str, Any]] = [
        {"content": picture, "headers": {"Content-Type": "image/png"}, "params": {"label": " cat ", "id": "c1"}},
        {"content": "grüße".encode(), "headers": {"Content-Type": "text/plain; charset=utf-8"}},
        {"files": {"image": ("a.png", picture, "image/png")}, "params": {"label": "cat"}},
        {"data": {"text": "a form"}},
        {"json": {"text": "one", "label": "two", "id": "three"}},
        {"json": {"records": [{"data": data, "content_type": "image/png"}, {"text": "x", "label": "e\u0301"}]}},
        {"content": lines, "headers": {"Content-Type": "application/x-ndjson"}},
    ]
    answers = [at.client.post(f"/topics/{topic}", **one) for one in sent]
    assert [answer.status_code for answer in answers] == [200] * len(sent), answers[-1].text
    records = held(kafka, topic)
    known = [(value, {**headers, "id": b""}) for _, _, value, headers in records]
    assert known == [
        (picture, {"content-type": b"image/png", "label": b"cat", "id": b""}),
        ("grüße".encode(), {"content-type": b"text/plain; charset=utf-8", "id": b""}),
        (picture, {"label": b"cat", "id": b""}),
        (b"a form", {"id": b""}),
        (b"one", {"content-type": b"text/plain", "label": b"two", "id": b""}),
        (picture, {"content-type": b"image/png", "id": b""}),
        (b"x", {"content-type": b"text/plain", "label": "\u00e9".encode(), "id": b""}),
        (b"four", {"content-type": b"text/plain", "id": b""}),
        (b"five", {"content-type": b"text/plain", "id": b""}),
    ]
    said = [record for answer in answers for record in answer.json()["records"]]
    assert said == [
        {"position": f"{topic}:0:{offset}", "id": headers["id"].decode()} for offset, _, _, headers in records
    ]
    assert [said[0]["id"], said[4]["id"], said[7]["id"]] == ["c1", "three", "4"]
    assert said[2]["id"] == said[5]["id"] != said[1]["id"]  # of the content, where the producer gives none
    assert answers[-1].json()["after"] == [said[-1]["position"]]


def test_labels_go_to_topics_of_labels_alone(at: Running, kafka: str, topic: str, labels: str) -> None:
    label = {"id": "photo-17", "label": "cat"}
    assert at.client.post(f"/topics/{labels}", json=label).status_code == 200
    assert held(kafka, labels) == [(0, b"photo-17", b"cat", {})]
    for there, record in ((topic, label), (labels, {"text": "cat", **label})):
        answer = at.client.post(f"/topics/{there}", json=record)
        assert (answer.status_code, answer.json()["error"]) == (422, "invalid")


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        ({"json": {"records": [{"text": "good"}, {"text": "bad", "label": "\n"}]}}, 422, "Record 2, its label"),
        ({"json": {"records": [{"text": "good"}, {"text": ""}]}}, 422, "Record 2, its content"),
        ({"json": {"records": []}}, 422, "records"),
        ({"json": {"records": [{"text": "good"}] * 1001}}, 422, "1000"),
        ({"json": {"records": [{"text": "good"}, {"txt": "bad"}]}}, 422, "records.1"),
        ({"json": {"text": "a", "data": "YQ=="}}, 422, "give a text, or data"),
        ({"json": {"data": "no base64!"}}, 422, "data"),
        ({"json": {"id": "alone"}}, 422, "an id and its label"),
        ({"json": {"text": "a"}, "params": {"label": "b"}}, 422, "inside the JSON"),
        ({"json": ["a"]}, 422, "the record"),
        ({"content": b'{"text": "good"}\n{"text"', "headers": {"Content-Type": "application/x-ndjson"}}, 422, "Line 2"),
        ({"content": b"\n\n", "headers": {"Content-Type": "application/x-ndjson"}}, 422, "1 to 1000"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 422, "not JSON"),
        ({"content": b'{"text": "\\ud800"}', "headers": {"Content-Type": "application/json"}}, 422, "not JSON"),
        ({"content": b""}, 422, "there is none"),
        ({"files": {"a": b"1", "b": b"2"}}, 400, "files"),
        ({"content": b"x" * 2000}, 413, "kafka.max_bytes"),
        ({"json": {"records": [{"text": "good"}, {"text": "x" * 2000}]}}, 413, "Record 2"),
    ],
)
def test_all_or_none(redis_url: str, kafka: str, topic: str, sent: dict[str, Any], status: int, says: str) -> None:
    log = {"bootstrap_servers": kafka, "max_bytes": 1024}
    with running(configuration(redis_url, {unique("model"): {"topics": [topic]}}, log)) as at:
        answer = at.client.post(f"/topics/{topic}", **sent)
        assert (answer.status_code, says in answer.json()["detail"]) == (status, True), answer.text
    assert held(kafka, topic) == []


def test_who_may_publish_and_where(redis_url: str, kafka: str, topic: str) -> None:
    tables: dict[str, dict[str, Any]] = {unique("model"): {"topics": [topic]}}
    record: dict[str, Any] = {"json": {"text": "a"}}
    with running(configuration(redis_url, tables, kafka)) as at:
        answer = at.client.post(f"/topics/{topic}x", **record)
        assert (answer.status_code, f"mean {topic}?" in answer.json()["detail"]) == (404, True)
        assert at.client.post(f"/topics/{topic}", headers=FOREIGN, **record).status_code == 403
        assert at.client.post("/topics/%20", **record).status_code == 422
    with running(configuration(redis_url, tables, kafka, token=TOKEN)) as at:
        assert at.client.post(f"/topics/{topic}", **record).status_code == 401
        assert at.client.post(f"/topics/{topic}", headers={"Authorization": f"Bearer {TOKEN}"}, **record).is_success
    with running(configuration(redis_url, tables, kafka, publish=False)) as at:
        answer = at.client.post(f"/topics/{topic}", **record)
        assert (answer.status_code, answer.json()["error"]) == (403, "closed")
    assert len(held(kafka, topic)) == 1


def test_a_sampler_of_models_that_are_found_knows_their_topics(
    redis_url: str, redis: Redis, kafka: str, family: str, topics: Topics
) -> None:
    topic, labels = topics(), topics()
    maker = Maker(Store(redis, family, family), "text-classifier", BUILTIN["text-classifier"], TEXT)
    maker.commit(watermark={topic: {0: 0}, labels: {0: 0}}, config={"labels": {"topic": labels}})
    with running(configuration(redis_url, {}, kafka, max_models=10_000)) as at:
        while family not in at.service.serving.followers():
            at.client.get("/models").raise_for_status()
        assert at.serves(family, 1)
        assert at.client.post(f"/topics/{topic}", json={"text": "a"}).is_success
        assert at.client.post(f"/topics/{labels}", json={"id": "a", "label": "b"}).is_success


def test_a_log_that_pushes_back(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 where it cannot be reached, 504 where it took the record and says nothing, then 429; then it goes on."""
    monkeypatch.setattr(outbox, "ACKNOWLEDGED_S", 0.5)
    with EmbeddedKafka(tmp_path) as server:
        tables: dict[str, dict[str, Any]] = {unique("model"): {"topics": ["signs"]}}
        with running(configuration(redis_url, tables, server.bootstrap_servers)) as at:

            def post() -> httpx.Response:
                return at.client.post("/topics/signs", json={"text": "a"})

            assert post().json()["after"] == ["signs:0:0"] or post().is_success
            assert server.process is not None
            server.process.send_signal(signal.SIGSTOP)
            try:
                assert (answer := post()).status_code == 504
                assert answer.json()["error"] == "unacknowledged"
                assert (answer := post()).status_code == 429
                assert answer.headers["retry-after"] == "1"
            finally:
                server.process.send_signal(signal.SIGCONT)
            while (answer := post()).status_code == 429:
                pass
            assert answer.is_success
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        log = {"bootstrap_servers": address, "client": {"bootstrap_timeout_ms": 300}}
        with running(configuration(redis_url, tables, log)) as at:
            answer = at.client.post("/topics/signs", json={"text": "a"})
            assert (answer.status_code, answer.json()["error"], answer.headers["retry-after"]) == (503, "log", "1")


def test_many_publish_at_one_time(at: Running, kafka: str, topic: str) -> None:
    """What is answered with 200 is in the log, once; the others are told to come again."""

    def post(number: int) -> httpx.Response:
        return at.client.post(f"/topics/{topic}", json={"text": str(number)})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(post, range(100)))
    assert {answer.status_code for answer in answers} <= {200, 429}
    acknowledged = {answer.json()["after"][0]: str(n) for n, answer in enumerate(answers) if answer.is_success}
    assert acknowledged == {
        f"{topic}:0:{offset}": value.decode() for offset, _, value, _ in held(kafka, topic) if value
    }


def test_the_client_publishes_and_reads_what_it_published(
    redis_url: str, redis: Redis, kafka: str, family: str, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(after, "AFTER_S", 0.2)
    maker = marked(Store(redis, family, family))
    maker.commit(watermark={topic: {0: 0}})
    picture = tmp_path / "four.png"
    picture.write_bytes(file(photo(4, 4)))
    with (
        running(configuration(redis_url, {family: {"topics": [topic]}}, kafka)) as at,
        SamplingClient(at.url) as client,
    ):
        assert at.serves(family, 1)
        sent = client.publish(topic, "one", label="two", id="three")
        assert (sent.records[0].id, sent.after) == ("three", [f"{topic}:0:0"])
        assert client.publish(topic, picture).after == [f"{topic}:0:1"]
        assert [value for _, _, value, _ in held(kafka, topic)] == [b"one", picture.read_bytes()]
        with pytest.raises(SamplerError, match="No model reads"):
            client.publish("nowhere", "one")
        fresh = client.after(*sent.after)
        with pytest.raises(SamplerUnavailable, match="has not read"):
            fresh.classify(family, "x")
        maker.commit(watermark={topic: {0: 1}})
        assert at.serves(family, 2)
        assert (fresh.classify(family, "x").version, fresh.answers(family)[0]) == (2, "classify")


# --- after ---


def test_it_answers_once_a_version_accounts_for_the_record(redis_url: str, redis: Redis, family: str) -> None:
    maker = marked(Store(redis, family, family))
    maker.commit(watermark={"topic": {0: 5}})
    pending = Runs.of([Place(Partition("topic", 0), 6)])
    with running(configuration(redis_url, {family: {}})) as at, ThreadPoolExecutor(1) as pool:
        assert at.serves(family, 1)

        def ask(position: str) -> Any:
            return at.client.post(f"/models/{family}/classify", content=b"x", params={"after": position})

        assert ask("topic:0:4").json()["version"] == 1
        waiting = pool.submit(ask, "topic:0:6")
        for version, more in ((2, {"watermark": {"topic": {0: 6}}}), (3, {"watermark": {"topic": {0: 7}}})):
            maker.commit(**more, pending=pending if version == 3 else Runs())
            assert at.serves(family, version)
            assert not waiting.done()
        maker.commit(watermark={"topic": {0: 7}})
        assert waiting.result(PATIENCE_S).json()["version"] == 4
        for path in ("", "/versions", "/versions/latest", "/versions/latest/weights"):
            assert at.client.get(f"/models/{family}{path}", params={"after": "topic:0:6"}).is_success


def test_the_wait_is_bounded_and_says_how_far_it_is(
    redis_url: str, redis: Redis, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(after, "AFTER_S", 0.2)
    pending = Runs.of([Place(Partition("topic", 0), 3)])
    marked(Store(redis, family, family)).commit(watermark={"topic": {0: 5}}, pending=pending)
    with running(configuration(redis_url, {family: {}, "empty": {"family": unique("family")}})) as at:
        assert at.serves(family, 1)
        for position, why in (("topic:0:5", "has not read topic:0:5"), ("topic:0:3", "waits for the label of")):
            answer = at.client.post(f"/models/{family}/classify", params={"after": position}, content=b"x")
            assert (answer.status_code, answer.json()["error"]) == (504, "not-yet")
            assert (why in answer.json()["detail"], answer.json()["watermark"]) == (True, {"topic": {"0": 5}})
        answer = at.client.get("/models/empty", params={"after": "topic:0:0"})
        assert (answer.status_code, answer.json()["watermark"]) == (504, {})
        for position in ("other:0:5", "topic", "topic:0:-1", "topic:0:" + "9" * 30):
            assert at.client.get(f"/models/{family}", params={"after": position}).status_code == 422
        assert at.client.get("/models/nobody", params={"after": "topic:0:5"}).status_code == 404
