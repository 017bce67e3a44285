"""Why an answer: over HTTP, by real learners, from a real store."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from redis import Redis
from torch import Tensor

from consumers.bridge import array
from models.learner import tensor
from models.registry import BUILTIN
from pipeline.records import as_input, input_array
from pipeline.store.store import Store
from tests.consumers.answering import VAE, file, seen
from tests.consumers.marked import Maker
from tests.consumers.running import Running, configuration, running
from tests.services import unique

GREY = {"kind": "image", "size": 16, "channels": 1}
TEXT = {"kind": "text", "max_chars": 64}
SMALL = {"width": 8, "hidden": 8, "replay_slots": 32, "replay_draws": 4}
WAYS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "network": ("image-classifier", GREY, SMALL),
    "sums": ("image-analytic", GREY, {"width": 64}),
    "both": ("image-auto", GREY, {"head": {"width": 64}, "network": SMALL}),
    "recogniser": ("image-recogniser", GREY, {}),
    "drawings": ("image-vae", {**GREY, "size": 8}, VAE),
    "words": ("text-auto", TEXT, {"head": {"width": 64, "buckets": 512}, "network": {"buckets": 512, "dim": 8}}),
    "linear": ("text-analytic", TEXT, {"width": 64, "buckets": 512}),
    "counts": ("river-classifier", TEXT, {"buckets": 512}),
}


def bar(number: int, side: int = 16) -> bytes:
    """A PNG: a bar on the left or on the right, at a height of its own."""
    pixels = np.zeros((side, side), np.uint8)
    half = slice(0, 3) if number % 2 else slice(side - 3, side)
    pixels[number % (side // 2) : number % (side // 2) + side // 2, half] = 200 + number % 50
    return file(pixels)


def line(number: int) -> bytes:
    """A text of words that say which of two it is, and of others that do not."""
    words = ("good", "day") if number % 2 else ("guten", "Tag")
    return f"{words[number % 3 == 0]} x{number} {words[0]} {words[1]}".encode()


def content(name: str, number: int) -> bytes:
    return line(number) if WAYS[name][1] is TEXT else bar(number, WAYS[name][1]["size"])


@contextmanager
def sampling(redis_url: str, *names: str) -> Iterator[tuple[Running, dict[str, Maker]]]:
    """A sampler of versions that learned forty records each."""
    families = {name: unique(name) for name in names}
    tables: dict[str, dict[str, Any]] = {}
    with Redis.from_url(redis_url) as redis:
        makers: dict[str, Maker] = {}
        for name in names:
            learner, input_, options = WAYS[name]
            store = Store(redis, families[name], name)
            makers[name] = made = Maker(store, learner, BUILTIN[learner], input_, **options)
            for start in range(0, 40, 8):
                x = [input_array(content(name, number), as_input(input_)) for number in range(start, start + 8)]
                made.learn(torch.from_numpy(np.stack(x)), [str(number % 2) for number in range(start, start + 8)])
            made.commit()
            tables[name] = {"learner": learner, "input": input_, "options": options, "family": families[name]}
        with running(configuration(redis_url, tables, max_samples=16)) as at:
            assert all(at.serves(name, 1) for name in names), at.said
            yield at, makers


@pytest.fixture(scope="module")
def at(redis_url: str) -> Iterator[Running]:
    with sampling(redis_url, *WAYS) as (at, _):
        yield at


def told(answer: httpx.Response) -> dict[str, Any]:
    """An answer that says which version gave it and how fresh that is."""
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert (found["version"], found["watermark"], found["freshness_s"] >= 0) == (1, {"topic": {"0": 5}}, True)
    return found


@pytest.mark.parametrize("name", ["network", "sums", "both"])
def test_a_picture_is_explained_by_what_is_in_it(at: Running, name: str) -> None:
    found = told(at.client.post(f"/models/{name}/explain", content=bar(9)))
    asked = at.client.post(f"/models/{name}/classify", content=bar(9)).json()
    assert (found["label"], found["method"], found["parts"]) == (asked["label"], "occlusion", None)
    assert found["probability"] == pytest.approx(asked["probability"], abs=1e-4)
    heat = np.array(found["heat"])
    assert heat.shape == (14, 14)
    assert np.abs(heat[:, 7:]).max() < 1e-4  # nothing is there: windows cover the ground with the ground
    assert np.abs(heat[:, :4]).max() > 0.01
    over = seen(base64.b64decode(found["image"]))
    assert over.shape == (288, 288, 3)
    assert (over[:, 200:] == 0).all()
    other = told(at.client.post(f"/models/{name}/explain", content=bar(9), params={"label": "0"}))
    assert other["label"] == "0"
    np.testing.assert_allclose(other["heat"], -heat, atol=1e-2)  # of two classes


@pytest.mark.parametrize(("name", "method"), [("words", "left-out"), ("counts", "left-out"), ("linear", "exact")])
def test_a_text_is_explained_by_its_words(at: Running, name: str, method: str) -> None:
    found = told(
        at.client.post(f"/models/{name}/explain", content="x3 good day", headers={"content-type": "text/plain"})
    )
    assert (found["label"], found["method"], found["heat"], found["image"]) == ("1", method, None, None)
    weights = {part["text"].strip(): part["weight"] for part in found["parts"]}
    assert list(weights) == ["x3", "good", "day"]
    assert min(weights["good"], weights["day"]) > abs(weights["x3"])


def test_what_cannot_be_explained_is_refused(at: Running) -> None:
    for path, body, status, error in (
        ("network/explain?label=7", bar(1), 422, "label"),
        ("network/explain", b"no picture", 422, "undecodable"),
        ("drawings/explain", bar(1), 409, "wrong-kind"),
        ("nobody/explain", bar(1), 404, "not-found"),
        ("network/nearest?n=17", bar(1), 422, "invalid"),
    ):
        answer = at.client.post(f"/models/{path}", content=body)
        assert (answer.status_code, answer.json()["error"]) == (status, error), path


@pytest.mark.parametrize("name", ["network", "drawings", "words"])
def test_a_learned_record_is_nearest_to_itself(at: Running, name: str) -> None:
    found_again = 0
    for number in range(0, 40, 3):
        found = told(at.client.post(f"/models/{name}/nearest", content=content(name, number)))
        assert (found["kept"], len(found["records"])) == (found["compared"], 8)
        far = [record["distance"] for record in found["records"]]
        assert far == sorted(far)
        if far[0] > 0:  # it is not kept
            continue
        found_again += 1
        same = [record for record in found["records"] if record["distance"] == 0]
        assert {record["label"] for record in same} == {str(number % 2)}
        if name == "words":
            assert (same[0]["text"], same[0]["image"]) == (line(number).decode(), None)
        else:
            x = input_array(content(name, number), as_input(WAYS[name][1]))[0]
            assert any(np.array_equal(seen(base64.b64decode(record["image"])), x) for record in same)
        assert found["is_copy"] == (True if name == "drawings" else None)
    assert found_again >= 4


def test_neighbours_are_of_the_same_class(at: Running) -> None:
    for name in ("network", "both"):
        found = told(at.client.post(f"/models/{name}/nearest", content=bar(13)))
        assert [record["label"] for record in found["records"]] == ["1"] * 8


def test_a_model_that_keeps_no_record_says_so(at: Running) -> None:
    states = {state["model"]: state["answers"] for state in at.client.get("/models").json()}
    assert "nearest" in states["both"]
    for name in ("sums", "recogniser", "linear", "counts"):
        assert "nearest" not in states[name]
        answer = at.client.post(f"/models/{name}/nearest", content=content(name, 1))
        assert (answer.status_code, answer.json()["error"]) == (409, "wrong-kind")
        assert answer.json()["detail"].startswith(
            f"{name} keeps no records that it learned. What it does: classify or "
        )


HARMS: dict[str, Tensor] = {
    "memory/y": torch.full((32,), 2),
    "memory/x": torch.zeros(32, 1, 8, 8, dtype=torch.uint8),
    "memory/origins": torch.zeros(8, 3, dtype=torch.int64),
}


def test_what_is_stored_is_checked(redis_url: str) -> None:
    """Whatever a memory says that it holds, the answer is one sentence."""
    with sampling(redis_url, "network") as (at, makers):
        made, url = makers["network"], "/models/network/nearest"
        state = made.learner.capture()
        sound = {name: array(tensor(value)) for name, value in state.training.items()}
        harmed = [{"training": {**sound, name: array(value)}} for name, value in HARMS.items()]
        missing = {"training": {name: value for name, value in sound.items() if name != "memory/origins"}}
        large = {"training": sound, "meta": {**state.meta, "memory": {"size": 10**12}}}
        for changes in (*harmed, missing, large):
            version = made.commit(**changes).version
            assert at.serves("network", version)
            answer = at.client.post(url, content=bar(1))
            assert (answer.status_code, answer.json()["error"]) == (502, "corrupt")
            assert answer.json()["detail"].startswith(f"The replay memory of version {version} of network is damaged: ")
        odd = {"training": sound, "worker": {"topics": {"t": 0, "u": [7]}}}
        assert at.serves("network", made.commit(**odd).version)
        assert at.client.post(url, content=bar(1)).json()["records"][0]["position"] == "t:0:0"
        empty = {"training": sound, "meta": {**state.meta, "memory": {"size": 0}}}
        assert at.serves("network", made.commit(**empty).version)
        assert at.client.post(url, content=bar(1)).status_code == 409


def test_texts_that_are_none_are_not_shown(redis_url: str) -> None:
    with sampling(redis_url, "words") as (at, makers):
        made = makers["words"]
        sound = {name: array(tensor(value)) for name, value in made.learner.capture().training.items()}
        x = torch.zeros(*sound["network/memory/x"].shape, dtype=torch.int32)
        for point, status in ((-1, 502), (0x110000, 502), (0xD800, 200)):
            x[:, 0] = point
            version = made.commit(training={**sound, "network/memory/x": array(x)}).version
            assert at.serves("words", version)
            answer = at.client.post("/models/words/nearest", content=line(1), params={"n": 16})
            assert answer.status_code == status
        assert "\ufffd" in {record["text"] for record in answer.json()["records"]}
