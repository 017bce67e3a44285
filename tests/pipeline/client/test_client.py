from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from pipeline.client.client import Client
from pipeline.config import Config, KafkaConfig, RedisConfig, validate
from pipeline.errors import ConfigError, NotFound, RecordError, TopicMissing
from pipeline.images import ImageInput
from pipeline.log.reader import Reader
from pipeline.records import Example, Place, Record, RecordDecoder
from pipeline.store.codec import Array, from_numpy
from pipeline.store.lineage import LineageBuilder
from pipeline.store.manifest import About, Ref
from pipeline.store.store import Store
from pipeline.store.writer import Draft
from pipeline.texts import TextInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis import Redis

    from pipeline.log.publisher import Receipt
    from tests.services import Topics

PIXELS = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)  # (H, W, C)
IMAGE = ImageInput.model_validate({"size": (6, 8)})


@pytest.fixture
def client(kafka_config: KafkaConfig, redis_url: str) -> Iterator[Client]:
    with Client(Config(kafka=kafka_config, redis=RedisConfig(url=redis_url))) as client:
        yield client


def read(config: KafkaConfig, topic: str, count: int) -> list[Record]:
    records: list[Record] = []
    with Reader(config, [topic], group="test") as reader:
        while len(records) < count:
            polled = reader.poll(10)
            assert polled is not None, f"{len(records)} of {count} records arrived"
            records += polled.records
    return records


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def commit(store: Store, *scales: float, watermark: dict[str, dict[int, int]] | None = None) -> None:
    """One version for each scale."""
    fence = store.acquire("test", 30)
    assert fence is not None
    writer = store.writer(fence)
    for scale in scales:
        writer.commit(
            Draft(
                About(
                    learner="counts",
                    input={},
                    options={},
                    config={},
                    classes=[],
                    seed=0,
                    updates=0,
                    counts={},
                    watermark=watermark or {},
                    metrics={},
                    environment={},
                    meta={},
                    worker={},
                ),
                lineage=LineageBuilder().build(),
                serving={
                    "weight": from_numpy(np.full((2, 3), scale, np.float32)),
                    "half": Array("BF16", (2,), np.array([0x80, 0x3F, 0, 0x40], np.uint8)),
                },
                training={"momentum": from_numpy(np.zeros(5))},
            )
        )
    store.release(fence)


@pytest.fixture
def store(redis: Redis, family: str) -> Store:
    """The store of a model of its own, in the family of the same name."""
    return Store(redis, family, family)


def test_a_picture_in_each_form_is_the_same_picture(
    client: Client, kafka_config: KafkaConfig, topic: str, tmp_path: Path
) -> None:
    file = tmp_path / "seven.png"
    file.write_bytes(png(PIXELS))
    for image in (file.read_bytes(), file, Image.fromarray(PIXELS), PIXELS):
        client.publish_image(topic, image, label="seven", id="x-7")
    client.flush()
    records = read(kafka_config, topic, 4)
    decode = RecordDecoder(IMAGE, needs_label=True)
    for record in records:
        example = decode(record)
        assert isinstance(example, Example)
        assert (example.label, example.id) == ("seven", "x-7")
        np.testing.assert_array_equal(example.x, PIXELS.transpose(2, 0, 1))
    assert records[0].value == records[1].value == file.read_bytes()


def test_a_text_and_a_topic_that_does_not_exist_yet(client: Client, kafka_config: KafkaConfig, topic: str) -> None:
    new_topic = f"{topic}-new"
    receipt = client.publish_text(new_topic, "漢字 🦉")
    assert receipt.result(30) == (new_topic, 0, 0)
    (record,) = read(kafka_config, new_topic, 1)
    assert record.value == "漢字 🦉".encode()
    assert record.headers == (("content-type", b"text/plain"),)
    text = TextInput.model_validate({"max_chars": 5})
    example = RecordDecoder(text, needs_label=False)(record)
    assert isinstance(example, Example)
    assert example.x.tolist() == [ord(char) for char in "漢字 🦉"] + [0]


def test_no_topic_is_made_by_a_typo(kafka_config: KafkaConfig, topic: str, topics: Topics) -> None:
    table = {
        "topics": [topic],
        "learner": "text-analytic",
        "input": {"kind": "text"},
        "labels": {"topic": f"l-{topic}"},
    }
    config = validate({"kafka": kafka_config.model_dump(), "models": {"m": table}}, "test")
    mistyped, of_labels = f"{topic}s", f"l-{topic}s"
    ways: list[tuple[str, str, Callable[..., Receipt]]] = [
        (mistyped, topic, lambda client, **way: client.publish_text(mistyped, "a", **way)),
        (mistyped, topic, lambda client, **way: client.publish_image(mistyped, PIXELS, **way)),
        (of_labels, f"l-{topic}", lambda client, **way: client.publish_label(of_labels, "1", "cat", **way)),
    ]
    with Client(config) as client:
        for name, meant, way in ways:
            with pytest.raises(TopicMissing, match=rf"There is no topic {name}, .* Did you mean {meant}\?"):
                way(client)
        assert not {mistyped, of_labels} & set(topics.admin.list_topics())
        for name, _, way in ways:
            assert way(client, new_topic=True).result(30)[0] == name
        client.publish_text(topic, "a").result(30)  # a model reads it: it is made


def test_what_waits_is_sent_when_the_client_is_closed(kafka_config: KafkaConfig, topic: str) -> None:
    with Client(Config(kafka=kafka_config)) as client:
        receipt = client.publish_text(topic, "last")
    assert receipt.result(0) == (topic, 0, 0)


@pytest.mark.parametrize("shape", [(4,), (4, 4, 2), (4, 4, 5), (4, 4, 3, 1), (0, 4), ()])
def test_an_array_that_is_no_picture(client: Client, topic: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(RecordError, match="is no picture"):
        client.publish_image(topic, np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.bool_])
def test_an_array_of_values_that_are_no_pixels(client: Client, topic: str, dtype: Any) -> None:
    with pytest.raises(RecordError, match="is no picture"):
        client.publish_image(topic, np.zeros((4, 4), dtype))


@pytest.mark.parametrize("pixels", [PIXELS[..., 0], PIXELS, np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2), np.uint16)])
def test_the_arrays_that_are_pictures(client: Client, topic: str, pixels: Any) -> None:
    client.publish_image(topic, pixels).result(30)


def test_a_pil_image_that_png_cannot_hold(client: Client, topic: str) -> None:
    with pytest.raises(RecordError, match="cannot write mode CMYK"):
        client.publish_image(topic, Image.new("CMYK", (4, 4)))


def test_a_file_that_is_not_there(client: Client, topic: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.png cannot be read"):
        client.publish_image(topic, tmp_path / "nothing.png")


@pytest.mark.parametrize(
    ("publish", "reason"),
    [
        (
            lambda client, topic: client.publish_text(topic, "cut \ud83d"),
            "undecodable: the text holds half a character",
        ),
        (lambda client, topic: client.publish_text(topic, "a", label=""), "label: '', 0 characters"),
        (lambda client, topic: client.publish_text(topic, "a", label="a\nb"), "label: .* leave out control"),
        (lambda client, topic: client.publish_text(topic, "a", id="x" * 201), "id: .* 201 characters"),
        (lambda client, topic: client.publish_text(topic, "a", label="\ud83d"), "label: "),
        (lambda client, topic: client.publish_label(topic, "", "cat"), "id: '', 0 characters"),
        (lambda client, topic: client.publish_label(topic, "1", " "), "label: ' ', 0 characters"),
    ],
)
def test_what_no_worker_could_read_is_not_published(
    client: Client, topic: str, publish: Callable[[Client, str], object], reason: str
) -> None:
    with pytest.raises(RecordError, match=reason):
        publish(client, topic)


def test_pull(client: Client, store: Store) -> None:
    commit(store, 1.0, 2.0)
    store.set_alias("stable", 1)
    pulled = client.pull(store.model)
    assert pulled.manifest.version == 2
    tensors = pulled.tensors()
    assert set(tensors) == {"weight", "half"}
    assert torch.equal(tensors["weight"], torch.full((2, 3), 2.0))
    assert torch.equal(tensors["half"], torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    for ref in ("stable", "1"):
        assert (client.pull(store.model, ref).tensors()["weight"] == 1).all()
    assert client.pull(store.model, pulled.manifest.digest[:12]).manifest == pulled.manifest
    assert [ref.version for ref in client.versions(store.model)] == [1, 2]
    assert {name: ref.version for name, ref in client.aliases(store.model).items()} == {"stable": 1}


def test_a_pull_that_waits_for_a_record(client: Client, store: Store) -> None:
    commit(store, 1.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.pull, store.model, after=["topic:0:0"])
        commit(store, 2.0, watermark={"topic": {0: 1}})
        assert waiting.result(60).manifest.version == 2
    with pytest.raises(NotFound, match="accounts for topic:0:9 within 0 s"):
        store.wait_for([Place.parsed("topic:0:9")], 0)
    with pytest.raises(ConfigError, match="no position"):
        client.pull(store.model, after=["topic"])


def test_the_history_as_the_command_line_tells_it(client: Client, store: Store, topic: str) -> None:
    commit(store, 1.0, 2.0)
    assert client.show(store.model) == store.manifest()
    assert client.show(store.model, "1").version == 1
    assert [told.version for told in client.log(store.model)] == [2, 1]
    assert [told.version for told in client.log(store.model, limit=1)] == [2]
    client.publish_text(topic, "one", id="x-1")
    client.publish_text(topic, "two", id="x-2")
    client.flush()
    assert client.find(topic, "x-2") == [(0, 1)]
    assert client.blame(store.model, topic, 0, 1).outcome == "not yet"


def test_a_pulled_version_is_one_safetensors_file(client: Client, store: Store, tmp_path: Path) -> None:
    commit(store, 3.0)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(client.pull(store.model).safetensors())
    with safe_open(path, "np") as file:
        assert set(file.keys()) == {"weight", "half"}
        assert (file.get_tensor("weight") == 3).all()


def test_a_version_that_is_not_there(client: Client, store: Store) -> None:
    with pytest.raises(NotFound, match="latest names no version"):
        client.pull(store.model)


def test_follow_starts_with_the_newest_and_misses_none(client: Client, store: Store) -> None:
    commit(store, 1.0, 2.0)
    versions = client.follow(store.model)
    assert next(versions).version == 2
    commit(Store(store._redis, store.family, "a-relative"), 1.0, 2.0, 3.0)
    commit(store, 3.0, 4.0)
    third, fourth = next(versions), next(versions)
    assert [third, fourth] == client.versions(store.model)[2:]
    commit(store, 5.0)
    assert next(versions).version == 5


def test_a_commit_while_follow_starts_is_given_once(
    client: Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = Store.head

    def late(self: Store) -> Ref | None:
        if self.model == store.model:  # a thread that another test left may look for its own
            monkeypatch.undo()
            commit(store, 2.0)  # after the events were read, before the head is
        return head(self)

    commit(store, 1.0)
    monkeypatch.setattr(Store, "head", late)
    versions = client.follow(store.model)
    assert next(versions).version == 2
    commit(store, 3.0)
    assert next(versions).version == 3


def test_follow_a_model_that_has_no_version_yet(client: Client, store: Store) -> None:
    versions = client.follow(store.model)
    commit(store, 1.0)
    assert next(versions).version == 1
