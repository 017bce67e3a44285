"""Every built-in learner the whole way: published → learned → snapshot → killed → restarted → proved → sampled."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from models.registry import BUILTIN
from pipeline.store.redis import connect
from pipeline.store.store import Store
from tests.consumers.marked import Maker
from tests.consumers.running import configuration as serving, running
from tests.consumers.working import configuration, publish, verified, working
from tests.models.encoders import save_encoder
from tests.services import Topics, unique

JUDGE, FOLDER = "JUDGE", "FOLDER"  # in options: what is made for the test
Record = tuple[bytes, str]
PICTURE = {"kind": "image", "size": 16, "channels": 1}
REPLAY = {"replay_slots": 16, "replay_draws": 4}


def picture(number: int, side: int = 16, channels: int = 1) -> bytes:
    """A PNG with a bar, at a place of its own."""
    pixels = np.full((side, side, channels), 40, np.uint8)
    pixels[:, number % side] = 60 + number % 190
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def pictures() -> Iterator[Record]:
    for number in range(1000):
        yield picture(number), f"class {number % 3}"


def texts() -> Iterator[Record]:
    words = random.Random(3)
    for number in range(1000):
        yield " ".join(words.choices(["über", "day", "утро", "早上", "good"], k=4)).encode(), f"class {number % 3}"


@dataclass(frozen=True)
class Way:
    """How a learner is configured, fed and asked."""

    learner: str
    options: Mapping[str, Any]
    records: Callable[[], Iterator[Record]]
    ask: Callable[[httpx.Client], None]
    input: Mapping[str, Any] = field(default_factory=lambda: PICTURE)


def classifies(body: bytes) -> Callable[[httpx.Client], None]:
    def ask(client: httpx.Client) -> None:
        answer = client.post("/classify", content=body).raise_for_status().json()
        assert answer["label"] in {"class 0", "class 1", "class 2"}
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)

    return ask


def draws(client: httpx.Client) -> None:
    answer = client.get("/generate", params={"n": 4, "label": "class 1", "seed": 1}).raise_for_status()
    assert Image.open(io.BytesIO(answer.content)).size == (32, 32)


def completes(client: httpx.Client) -> None:
    told = {"prompt": "day", "max_bytes": 12, "seed": 1}
    answer = client.post("/complete", json=told, headers={"accept": "application/json"}).raise_for_status().json()
    assert len(answer["text"].encode()) <= 12


def restores(client: httpx.Client) -> None:
    body = picture(3, side=20)
    answer = client.post("/restore", content=body, params={"kind": "noise"}).raise_for_status()
    assert Image.open(io.BytesIO(answer.content)).size == (20, 20)


def recognises(client: httpx.Client) -> None:
    answer = client.post("/recognise", content=picture(1)).raise_for_status().json()
    assert answer["unknown"] == (answer["label"] is None)
    assert answer["probabilities"].keys() == {"class 0", "class 1", "class 2"}


def restyles(client: httpx.Client) -> None:
    answer = client.post("/restyle", content=picture(3, side=20)).raise_for_status()
    assert Image.open(io.BytesIO(answer.content)).size == (20, 20)


def pictures_and_styles() -> Iterator[Record]:
    for number in range(1000):
        yield picture(number), "style" if number % 2 else "anything else"


TEXT = {"kind": "text", "max_chars": 32}
NETWORK = {"width": 8, **REPLAY}
ACQUAINTED = {"unknown": 0.05}
CLASSES = classifies(picture(1))
WORDS = classifies("早上 day".encode())
WAYS = {
    "image-analytic": Way("image-analytic", {"width": 16}, pictures, CLASSES),
    "image-analytic over a version": Way(
        "image-analytic", {"width": 16, "features": {"source": JUDGE}}, pictures, CLASSES
    ),
    "image-auto": Way("image-auto", {"head": {"width": 16}, "network": {**NETWORK, "hidden": 8}}, pictures, recognises),
    "image-classifier": Way("image-classifier", {**NETWORK, "hidden": 8}, pictures, CLASSES),
    "image-resnet": Way("image-resnet", {**NETWORK, **ACQUAINTED}, pictures, recognises),
    "image-transfer": Way(
        "image-transfer", {"source": JUDGE, "top_layers": (8,), **REPLAY, **ACQUAINTED}, pictures, recognises
    ),
    "image-vae": Way("image-vae", {**NETWORK, "latent": 4, "label_dim": 4}, pictures, draws),
    "image-flow": Way("image-flow", {**NETWORK, "code": 8, "steps": 2}, pictures, draws),
    "image-gan": Way("image-gan", {**NETWORK, "latent": 4, "hidden": 8, "label_dim": 4}, pictures, draws),
    "image-restorer": Way("image-restorer", {**NETWORK, "depth": 1}, pictures, restores),
    "image-recogniser": Way("image-recogniser", {"source": JUDGE}, pictures, recognises),
    "image-restyler": Way("image-restyler", {"source": JUDGE, **NETWORK}, pictures_and_styles, restyles),
    "text-analytic": Way("text-analytic", {"width": 16, "buckets": 64}, texts, WORDS, TEXT),
    "text-auto": Way(
        "text-auto",
        {"head": {"width": 16, "buckets": 64}, "network": {"buckets": 64, "dim": 8, **REPLAY}},
        texts,
        WORDS,
        TEXT,
    ),
    "text-classifier": Way("text-classifier", {"buckets": 64, "dim": 8, **REPLAY, **ACQUAINTED}, texts, WORDS, TEXT),
    "text-gru": Way("text-gru", {"dim": 8, "hidden": 8, **REPLAY}, texts, WORDS, TEXT),
    "text-encoder": Way("text-encoder", {"folder": FOLDER, **REPLAY, **ACQUAINTED}, texts, WORDS, TEXT),
    "river-classifier": Way("river-classifier", {"buckets": 64, **ACQUAINTED}, texts, WORDS, TEXT),
    "text-generator": Way(
        "text-generator", {"hidden": 8, "embedding": 8, "slots": 1 << 12, "history": 256}, texts, completes, TEXT
    ),
}


@pytest.fixture(scope="module")
def given(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What learners start from: a version of a classifier, and the folder of an encoder."""
    judge = unique("judge")
    store = Store(connect(redis_url), judge, judge)
    options = {"width": 8, "hidden": 8, "replay_slots": 8, **ACQUAINTED}
    maker = Maker(store, "image-classifier", BUILTIN["image-classifier"], PICTURE, **options)
    x = torch.arange(2 * 16 * 16, dtype=torch.int64).view(2, 1, 16, 16).remainder(251).to(torch.uint8)
    maker.learn(x, ["a", "b"])
    maker.commit()
    folder = tmp_path_factory.mktemp("encoder")
    save_encoder(folder)
    return {JUDGE: judge, FOLDER: str(folder)}


def filled(options: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """These options, with what was made for the test in the place of its name."""
    return {
        key: filled(value, given)
        if isinstance(value, Mapping)
        else given.get(value, value)
        if isinstance(value, str)
        else value
        for key, value in options.items()
    }


@pytest.mark.parametrize("way", WAYS)
def test_the_whole_way(kafka: str, redis_url: str, topics: Topics, given: Mapping[str, str], way: str) -> None:
    it, topic, name = WAYS[way], topics(), unique("model")
    table = {
        "learner": it.learner,
        "options": filled(it.options, given),
        "input": dict(it.input),
        "snapshot_every_updates": 2,
        "hold_out": {"slots": 4, "share": 0.1},
    }
    config = configuration(kafka, redis_url, topic, name=name, **table)
    records = it.records()
    with working(config) as run:
        publish(config, topic, *[next(records) for _ in range(20)])
        run.read(16)
        run.crash()
    if it.learner == "text-encoder":  # what it started from is in the store
        (Path(given[FOLDER]) / "model.safetensors").rename(Path(given[FOLDER]) / "away")
    with working(config) as run:
        publish(config, topic, *[next(records) for _ in range(20)])
        run.read(40)
        head = run.finish()
    if it.learner == "text-encoder":
        (Path(given[FOLDER]) / "away").rename(Path(given[FOLDER]) / "model.safetensors")
    assert sum(head.counts.values()) == 40
    assert sorted(map(len, run.outcomes().values())) == [1] * 40
    assert verified(run, config).differs == {}
    with running(serving(redis_url, {name: {"learner": it.learner, "input": dict(it.input)}})) as at:
        assert at.serves(name, head.version), at.said
        with httpx.Client(base_url=f"{at.url}/models/{name}", timeout=20) as client:
            it.ask(client)


def test_every_built_in_learner_goes_it() -> None:
    assert {way.learner for way in WAYS.values()} == BUILTIN.keys()
