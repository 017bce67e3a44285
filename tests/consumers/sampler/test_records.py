"""What a version learned last, the records themselves as the model sees them, and whether its worker lives."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from pipeline.images import ImageInput
from tests.consumers.browsing import (
    browser as browser,  # a fixture
    card,
    page as page,  # a fixture
    violations,
)
from tests.consumers.running import configuration as served, running
from tests.consumers.sampler.test_page_now import GREY, half
from tests.consumers.working import configuration, publish, working
from tests.services import Topics, unique


def test_a_version_shows_what_it_learned_last(kafka: str, redis_url: str, topics: Topics, page: Page) -> None:
    topic, name = topics(), unique("sides")
    table = {"learner": "image-analytic", "input": GREY}
    config = configuration(kafka, redis_url, topic, name=name, **table)
    with (
        working(config) as worker,
        running(served(redis_url, {name: {**table, "topics": [topic]}}, kafka)) as at,
    ):
        publish(config, topic, (half("left"), "left"))
        assert [one.predicted for one in worker.until(lambda manifest: manifest.counts.get("learned") == 1).last] == [
            None
        ]
        publish(config, topic, *[(half("left"), "left"), (half("right"), "right")] * 5)
        last = worker.until(lambda manifest: manifest.counts.get("learned") == 11).last
        assert len(last) <= 8
        assert [one.record for one in last] == [f"{topic}:0:{at}" for at in range(11 - len(last), 11)]
        assert [one.label for one in last] == [("right", "left")[at % 2] for at in range(11 - len(last), 11)]
        assert {one.predicted for one in last} <= {"left", "right"}
        assert at.serves(name, worker.store.manifest().version)
        assert at.client.get(f"/models/{name}").json()["last"] == [one.model_dump() for one in last]

        page.goto(at.url)
        shown = card(page, name).get_by_role("list", name=f"Last records of {name}").get_by_role("listitem")
        expect(shown).to_have_count(len(last))
        expect(shown.last.get_by_role("img")).to_have_attribute("alt", f"Record {topic}:0:10")
        assert violations(page) == []
        page.goto(f"{at.url}/#history")
        card(page, name).get_by_text("Last records").first.click()
        version = worker.store.manifest().version
        shown = card(page, name).get_by_role("list", name=f"Last records of version {version}").get_by_role("listitem")
        expect(shown).to_have_count(len(last))
        expect(shown.last.get_by_role("img")).to_have_attribute("alt", f"Record {topic}:0:10")
        assert violations(page) == []
        page.goto("about:blank")


def test_records_are_shown_as_the_model_sees_them(kafka: str, redis_url: str, topics: Topics) -> None:
    topic, texts = topics(), topics()
    picture, text = unique("picture"), unique("text")
    pictures: dict[str, Any] = {"learner": "image-analytic", "input": GREY}
    writing: dict[str, Any] = {"learner": "text-analytic", "input": {"kind": "text"}}
    for name, at_, table, content in (
        (picture, topic, pictures, half("left")),
        (text, texts, writing, "é".encode() * 400),
    ):
        config = configuration(kafka, redis_url, at_, name=name, **table)
        with working(config) as worker:
            publish(config, at_, (content, "left"), (b"\xff\x00", "left"))
            worker.read(2)
    tables = {picture: {**pictures, "topics": [topic]}, text: {**writing, "topics": [texts]}}
    with running(served(redis_url, tables, kafka)) as at:
        assert at.serves(picture, 1)
        assert at.serves(text, 1)
        asked: dict[str, Any] = {"model": picture, "at": ["0:0", "0:1", "0:99", "7:0"]}
        known, broken, gone, nowhere = at.client.get(f"/topics/{topic}/records", params=asked).json()
        with Image.open(io.BytesIO(base64.b64decode(known["image"]))) as image:
            assert (
                ImageInput.model_validate(GREY).array(image) == ImageInput.model_validate(GREY).array(half("left"))
            ).all()
        for one, place in ((broken, "0:1"), (gone, "0:99"), (nowhere, "7:0")):
            assert one == {"at": place, "text": None, "image": None}
        [written] = at.client.get(f"/topics/{texts}/records", params={"model": text, "at": "0:0"}).json()
        assert written["text"] == "é" * 300
        refused: list[tuple[str, dict[str, Any], int]] = [
            (texts, {"model": picture, "at": "0:0"}, 404),
            (topic, {"model": "nobody", "at": "0:0"}, 404),
            (topic, {"model": picture, "at": "0:-1"}, 422),
            (topic, {"model": picture, "at": ["0:0"] * 17}, 422),
            (topic, {"model": picture}, 422),
        ]
        for path, params, status in refused:
            assert at.client.get(f"/topics/{path}/records", params=params).status_code == status
    beyond = {"host": "0.0.0.0", "token": "a-secret-of-sixteen", "open_reading": True}  # noqa: S104
    with running(served(redis_url, tables, kafka, **beyond)) as at:
        assert at.serves(picture, 1)
        assert at.client.get(f"/models/{picture}").status_code == 200
        assert at.client.get(f"/topics/{topic}/records", params=asked).status_code == 401
        assert at.client.post(f"/models/{picture}/classify", content=half("left")).status_code == 200
        assert at.client.post(f"/models/{picture}/nearest", content=half("left")).status_code == 401


@pytest.mark.parametrize("end", ["well", "killed"])
def test_a_card_tells_whether_its_worker_lives(
    kafka: str, redis_url: str, topics: Topics, page: Page, end: str
) -> None:
    topic, name = topics(), unique("sides")
    table = {"learner": "image-analytic", "input": GREY}
    config = configuration(kafka, redis_url, topic, name=name, lease_s=3, **table)
    with running(served(redis_url, {name: {**table, "topics": [topic]}}, kafka)) as at:
        page.goto(at.url)
        alert = card(page, name).get_by_role("alert")
        with working(config) as worker:
            publish(config, topic, (half("left"), "left"))
            worker.read(1)
            expect(card(page, name).locator(".version")).to_have_text("version 1")
            expect(alert).to_have_count(0)
        expect(alert).to_have_text(f"No worker learns it: headrace train {name}")
        if end == "killed":
            assert worker.store.acquire("killed", 0.1)
            expect(alert).to_have_text("Its worker has died. Start it again, or see why nobody does.")
        page.goto("about:blank")
