"""The view Teach: a new kind of sign is drawn, taught, and recognised by a named version."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

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
            expect(lessons.first).to_have_text(re.compile("cross, .* sure, as before$"))
            assert violations(page) == []
            page.goto("about:blank")  # before the sampler ends: it answers 503 then


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
