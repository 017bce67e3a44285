"""The view Dead letters, and the routes below it: what could not be learned is listed, dropped and requeued."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Page, expect

from tests.consumers.browsing import (
    PHONE,
    SCHEMES,
    browser as browser,  # a fixture
    card,
    page as page,  # a fixture
    violations,
    wide,
)
from tests.consumers.running import configuration as served, running
from tests.consumers.sampler.test_page_now import GREY, half
from tests.consumers.working import configuration, publish, working
from tests.services import Topics, unique


def test_what_could_not_be_learned_is_listed_dropped_and_requeued(
    kafka: str, redis_url: str, topics: Topics, page: Page
) -> None:
    topic, name = topics(), unique("signs")
    table = {"learner": "image-analytic", "input": GREY}
    config = configuration(kafka, redis_url, topic, name=name, **table)
    with working(config) as worker:
        publish(config, topic, (half("left"), "left"), (b"no picture", "left"), (b"\xff\x00", "left"))
        worker.read(3)
        with running(served(redis_url, {name: {**table, "topics": [topic]}}, kafka)) as at:
            page.goto(f"{at.url}/#letters")
            shown = card(page, name)
            letters = shown.get_by_role("list", name="Dead letters").get_by_role("listitem")
            expect(letters).to_have_count(2)
            expect(letters.first).to_have_text(re.compile(f"^2 bytes.*{topic}:0:2.*undecodable, for {name} at "))
            expect(letters.last.locator("q")).to_have_text("no picture")
            for scheme in SCHEMES:
                page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
                assert violations(page) == []
            page.set_viewport_size(PHONE)  # type: ignore[arg-type]
            assert (wide(page), violations(page)) == (0, [])
            letters.first.get_by_role("button", name="Drop").click()
            page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
            expect(letters).to_have_count(2)
            letters.first.get_by_role("button", name="Drop").click()
            page.get_by_role("dialog").get_by_role("button", name="Drop it").click()
            expect(letters).to_have_count(1)
            letters.get_by_role("button", name="Requeue").press("Enter")
            worker.read(4)  # it is read again, and dead again
            shown.get_by_role("button", name="Look again").click()
            expect(letters).to_have_text(re.compile(f"{topic}:0:3"))
            page.goto("about:blank")


def test_only_what_is_open_is_resolved_and_only_where_it_may(kafka: str, redis_url: str, topics: Topics) -> None:
    topic, name = topics(), unique("signs")
    table = {"learner": "image-analytic", "input": GREY}
    config = configuration(kafka, redis_url, topic, name=name, **table)
    with working(config) as worker:
        publish(config, topic, (b"no picture", "left"))
        worker.read(1)
    tables, path = {name: {**table, "topics": [topic]}}, f"/topics/{topic}/dead-letters"
    asked = {"origin": f"{topic}:0:0", "model": name, "resolution": "dropped"}
    with running(served(redis_url, tables, kafka, publish=False)) as at:
        assert at.client.post(path, json=asked).status_code == 403
        [letter] = at.client.get(path).json()
        assert (letter["origin"], letter["text"], letter["bytes"]) == (f"{topic}:0:0", "no picture", 10)
        assert at.client.get("/topics/nobody/dead-letters").status_code == 404
    with running(served(redis_url, tables, kafka)) as at:
        assert at.serves(name, 1)
        ahead = {**asked, "origin": f"{topic}:0:7", "resolution": "requeued"}
        assert at.client.post(path, json=ahead).status_code == 409
        assert at.client.post(path, json=asked).status_code == 200
        assert at.client.post(path, json=asked).status_code == 404
        assert at.client.get(path).json() == []


def test_a_text_and_its_label_are_mended_and_learned(kafka: str, redis_url: str, topics: Topics, page: Page) -> None:
    topic, name = topics(), unique("texts")
    table: dict[str, Any] = {"learner": "text-analytic", "input": {"kind": "text"}}
    config = configuration(kafka, redis_url, topic, name=name, **table)
    tables, path = {name: {**table, "topics": [topic]}}, f"/topics/{topic}/dead-letters"
    with working(config) as worker, running(served(redis_url, tables, kafka)) as at:
        publish(config, topic, (b"guten Tag", "de"), (b"bon \xff jour", "fr\n"))
        worker.read(2)
        assert at.serves(name, worker.store.manifest().version)
        page.goto(f"{at.url}/#letters")
        letters = card(page, name).get_by_role("list", name="Dead letters").get_by_role("listitem")
        expect(letters).to_have_count(1)
        letters.get_by_text("Mend").click()
        letters.get_by_label("Label").fill("fr")
        letters.get_by_label("Text").fill("bon jour")
        assert violations(page) == []
        letters.get_by_role("button", name="Requeue").click()
        expect(letters).to_have_count(0)
        head = worker.until(lambda manifest: manifest.counts.get("learned") == 2)
        assert head.classes == ["de", "fr"]
        letter = {"origin": f"{topic}:0:1", "model": name, "resolution": "requeued"}
        assert at.client.post(path, json={**letter, "label": "a\nb"}).status_code == 422
        page.goto("about:blank")
