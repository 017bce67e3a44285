"""The view Teach: a new kind of sign is drawn, taught, and recognised by a named version."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.consumers.answering import VAE, serving
from tests.consumers.browsing import (
    PHONE,
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

TIMES = 5


def test_a_new_sign_is_taught_and_then_recognised(kafka: str, redis_url: str, topics: Topics, page: Page) -> None:
    topic, name = topics(), unique("signs")
    table = {"learner": "image-analytic", "input": GREY}
    config = configuration(kafka, redis_url, topic, name=name, **table)
    with working(config) as worker:
        publish(config, topic, *[(half(side), side) for side in ("left", "right")] * 8)
        worker.read(16)
        with running(served(redis_url, {name: {**table, "topics": [topic]}}, kafka)) as at:
            page.goto(f"{at.url}/#teach")
            shown = card(page, name)
            expect(shown.locator(".version")).to_have_text(re.compile("version [0-9]+"))
            shown.get_by_role("button", name="Teach").click()
            expect(shown.get_by_role("alert")).to_have_text("Draw, choose or type something first.")
            lessons = shown.get_by_role("list", name="What was taught").get_by_role("listitem")
            for number in range(TIMES):
                draw(page)
                expect(shown.locator(".said")).to_have_text(re.compile("sure$"))
                shown.get_by_label("It is …").fill("cross")
                shown.get_by_role("button", name="Teach").click()
                expect(lessons).to_have_count(number + 1)
                expect(lessons.first).to_have_text(re.compile("^cross ?learned by version [0-9]+: "))
                shown.get_by_role("button", name="Clear").click()
            expect(lessons.first).to_have_text(re.compile("learned by version [0-9]+: cross, .* sure"))
            draw(page)
            expect(shown.locator(".said")).to_have_text(re.compile("^cross, "))
            shown.get_by_role("button", name="Right: cross").click()
            expect(lessons).to_have_count(TIMES + 1)
            expect(lessons.first).to_have_text(re.compile("cross, .* sure, was cross, .* sure$"))
            assert violations(page) == []
            page.goto("about:blank")  # before the sampler ends: it answers 503 then


def test_a_lesson_is_undone_by_a_correction(kafka: str, redis_url: str, topics: Topics, page: Page) -> None:
    """The topic of labels is no place for records, and the one for corrections."""
    topic, answers, name = topics(), topics(), unique("signs")
    table = {"learner": "image-classifier", "input": GREY, "labels": {"topic": answers}}
    config = configuration(kafka, redis_url, topic, name=name, **table)
    with working(config) as worker:
        publish(config, topic, *[(half(side), side) for side in ("left", "right")] * 8)
        worker.read(16)
        with running(served(redis_url, {name: {**table, "topics": [topic]}}, kafka)) as at:
            assert at.serves(name, 1)
            state = at.client.get(f"/models/{name}").json()
            assert (state["topics"], state["labels"]) == ([topic], answers)
            page.goto(f"{at.url}/#teach")
            shown = card(page, name)
            expect(shown.get_by_text(f"published to {topic},")).to_be_visible()
            draw(page)
            expect(shown.locator(".said")).to_have_text(re.compile("sure$"))
            shown.get_by_label("It is …").fill("cross")
            shown.get_by_role("button", name="Teach").click()
            lesson = shown.get_by_role("list", name="What was taught").get_by_role("listitem")
            lesson.get_by_role("button", name="Undo").click()
            expect(lesson).to_have_text(re.compile("corrected to (left|right) by version [0-9]+: "))
            worker.until(lambda manifest: manifest.counts.get("corrected") == 1)
            page.goto("about:blank")  # before the sampler ends: it answers 503 then


def test_a_model_that_draws_takes_up_what_is_dropped(
    kafka: str, redis_url: str, topics: Topics, page: Page, tmp_path: Path
) -> None:
    topic, name = topics(), unique("sides")
    table = {"learner": "image-vae", "input": GREY, "options": VAE}
    config = configuration(kafka, redis_url, topic, name=name, **table)
    with working(config) as worker:
        publish(config, topic, *[(half("left"), "left")] * 8)
        worker.read(8)
        with running(served(redis_url, {name: {**table, "topics": [topic]}}, kafka)) as at:
            page.goto(f"{at.url}/#teach")
            shown = card(page, name)
            sheet = shown.get_by_role("img", name=re.compile(f"Drawn by version [0-9]+ of {name}"))
            before = sheet.get_attribute("src")
            files = [tmp_path / f"{number}.png" for number in range(3)]
            for file in files:
                file.write_bytes(half("right"))
            shown.get_by_label("They are …").fill("right")
            shown.get_by_label("Choose pictures").set_input_files(files)
            lesson = shown.get_by_role("list", name="What was taught").get_by_role("listitem")
            expect(lesson).to_have_text(re.compile("^right ?3 pictures learned by version [0-9]+: the sheet shows it"))
            expect(sheet).not_to_have_attribute("src", str(before))
            assert worker.finish().counts["learned"] == 11
            page.set_viewport_size(PHONE)  # type: ignore[arg-type]
            assert (wide(page), violations(page)) == (0, [])
            page.goto("about:blank")


def test_a_model_that_writes_learns_a_text(kafka: str, redis_url: str, topics: Topics, page: Page) -> None:
    topic, name = topics(), unique("voice")
    table = {"learner": "text-generator", "input": {"kind": "text"}}
    config = configuration(kafka, redis_url, topic, name=name, **table)
    with working(config) as worker:
        publish(config, topic, b"Where the mill is, the water runs.")
        worker.read(1)
        with running(served(redis_url, {name: {**table, "topics": [topic]}}, kafka)) as at:
            page.goto(f"{at.url}/#teach")
            shown = card(page, name)
            shown.get_by_role("button", name="Teach").click()
            expect(shown.get_by_role("alert")).to_have_text("Write something first.")
            shown.get_by_label("A text").fill("The water runs where the mill is.")
            shown.get_by_role("button", name="Teach").click()
            lesson = shown.get_by_role("list", name="What was taught").get_by_role("listitem")
            expect(lesson).to_have_text(re.compile(r"mill is\. ?learned by version [0-9]+$"))
            expect(shown.get_by_role("region", name="How it goes on")).to_have_text(re.compile("^The water ru."))
            assert worker.finish().counts["learned"] == 2
            page.set_viewport_size(PHONE)  # type: ignore[arg-type]
            assert (wide(page), violations(page)) == (0, [])
            page.goto("about:blank")


def test_a_photograph_by_the_camera_is_taught(kafka: str, redis_url: str, topics: Topics, page: Page) -> None:
    """Chromium's own camera for tests: a moving picture."""
    topic, name = topics(), unique("signs")
    table = {"learner": "image-analytic", "input": GREY}
    config = configuration(kafka, redis_url, topic, name=name, **table)
    with working(config) as worker:
        publish(config, topic, *[(half(side), side) for side in ("left", "right")])
        worker.read(2)
        with running(served(redis_url, {name: {**table, "topics": [topic]}}, kafka)) as at:
            page.goto(f"{at.url}/#teach")
            shown = card(page, name)
            shown.get_by_role("button", name="Camera").click()
            expect(shown.locator("video")).to_be_visible()
            shown.get_by_role("button", name="Take it").click()
            expect(shown.locator("video")).to_be_hidden()
            expect(shown.locator(".said")).to_have_text(re.compile("sure$"))
            shown.get_by_label("It is …").fill("camera")
            shown.get_by_role("button", name="Teach").click()
            lesson = shown.get_by_role("list", name="What was taught").get_by_role("listitem")
            expect(lesson).to_have_text(re.compile("^camera ?learned by version [0-9]+: "))
            assert worker.finish().classes == ["left", "right", "camera"]
            page.goto("about:blank")


def test_where_nothing_is_published_it_says_so(redis_url: str, page: Page) -> None:
    with serving(redis_url, "eyes", publish=False) as (at, _):
        page.goto(f"{at.url}/#teach")
        shown = card(page, "eyes")
        expect(shown.get_by_text("This sampler publishes nothing: sampler.publish = false.")).to_be_visible()
        draw(page)
        expect(shown.locator(".said")).to_have_text(re.compile("sure$"))
        expect(shown.get_by_role("button", name="Teach")).to_have_count(0)


def draw(page: Page) -> None:
    """A cross over the whole pad."""
    place = page.locator("canvas.pad").bounding_box()
    assert place is not None
    x, y, side = place["x"], place["y"], place["width"]
    for start, end in (((0.1, 0.1), (0.9, 0.9)), ((0.9, 0.1), (0.1, 0.9))):
        page.mouse.move(x + start[0] * side, y + start[1] * side)
        page.mouse.down()
        page.mouse.move(x + end[0] * side, y + end[1] * side, steps=6)
        page.mouse.up()
