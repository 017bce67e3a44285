"""The view Now, while a worker learns and versions come and go."""

from __future__ import annotations

import io
import re
import time
from contextlib import ExitStack
from threading import Event, Thread
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect

from pipeline.store.lineage import LineageBuilder
from pipeline.store.manifest import Learned
from tests.consumers.answering import serving
from tests.consumers.browsing import (
    SCHEMES,
    browser as browser,  # a fixture
    card,
    page as page,  # a fixture
    violations,
)
from tests.consumers.running import configuration as served, running
from tests.consumers.working import configuration, publish, working
from tests.services import Topics, unique

GREY = {"kind": "image", "size": 8, "channels": 1}


def half(side: str) -> bytes:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, slice(0, 4) if side == "left" else slice(4, 8)] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_card_lives_while_its_model_learns(kafka: str, redis_url: str, topics: Topics, page: Page) -> None:
    topic, name = topics(), unique("sides")
    often: dict[str, Any] = {
        "learner": "image-classifier",
        "snapshot_every_updates": 1,
        "snapshot_every_s": None,
        "keep_last": 4,
        "input": GREY,
    }
    config = configuration(kafka, redis_url, topic, name=name, **often)
    stop = Event()

    def producing() -> None:
        while not stop.is_set():
            publish(config, topic, *[(half(side), side) for side in ("left", "right")] * 8)

    producer = Thread(target=producing)
    with ExitStack() as stack:
        stack.callback(producer.join)
        stack.callback(stop.set)
        worker = stack.enter_context(working(config))
        producer.start()
        worker.until(lambda manifest: manifest.version >= 3)
        at = stack.enter_context(running(served(redis_url, {name: {"learner": "image-classifier", "input": GREY}})))
        page.goto(at.url)
        shown = card(page, name)
        expect(shown.locator(".kind")).to_have_text(f"image-classifier learns from {topic}")
        expect(shown.locator(".big")).to_have_text(re.compile(r"^\d+\.\d %$"))
        for term in ("records", "records/s", "lag", "learned"):
            expect(shown.locator("dl div").filter(has=page.get_by_text(term, exact=True)).locator("dd")).to_have_text(
                re.compile(r"\d")
            )
        version = shown.locator(".version").text_content()
        expect(shown.locator(".version")).not_to_have_text(str(version))
        curve = shown.locator(".line.first").get_attribute("d")
        expect(shown.locator(".line.first")).not_to_have_attribute("d", str(curve))


def test_what_is_held_out_is_shown_beside_and_by_class(redis_url: str, page: Page) -> None:
    with serving(redis_url, "eyes") as (at, makers):
        probes = {"dark": {"now": 0.5, "best": 0.75, "first": 0.5, "records": 4}}
        for accuracy in (0.5, 0.75):
            metrics = {"prequential_accuracy": accuracy, "held_out_accuracy": accuracy / 2}
            makers["eyes"].commit(metrics=metrics, probes=probes)
        assert at.serves("eyes", 5)
        page.goto(at.url)
        shown = card(page, "eyes")
        expect(shown.locator(".big")).to_have_text("75.0 %")
        expect(shown.locator(".line")).to_have_count(2)
        expect(shown.get_by_role("img")).to_have_attribute(
            "aria-label", "Curve of eyes: before learning 75 %, held out 38 %. Arrow keys read the curve."
        )
        shown.get_by_text("Per class").click()
        expect(shown.locator(".bars li")).to_have_text("dark50.0 %, was 75.0 %")


def test_a_card_without_records_says_how_to_start(redis_url: str, page: Page) -> None:
    with serving(redis_url, "eyes") as (at, makers):
        makers["eyes"].commit(counts={}, watermark={"photos": {0: 0}}, metrics={})
        page.goto(at.url)
        meaning = card(page, "eyes").locator(".meaning")
        expect(meaning).to_have_text("Nothing is learned yet. To begin: headrace publish photos FOLDER")
        makers["eyes"].commit(counts={"learned": 16}, metrics={"prequential_accuracy": 0.5})
        expect(meaning).to_have_text("right before they were learned, of the last 16")


def test_a_stream_that_pauses_leaves_the_newest_records_on_the_card(redis_url: str, page: Page) -> None:
    with serving(redis_url, "eyes") as (at, makers):
        makers["eyes"].store.renew(makers["eyes"].fence, 3600)  # its end would be one more event
        page.clock.install()
        page.goto(at.url)
        page.clock.pause_at(time.time() + 3600)  # the page's time stands still: these versions come at one moment
        shown = card(page, "eyes").get_by_role("list", name="Last records of eyes").get_by_role("listitem")
        for offset in range(3):
            makers["eyes"].commit(last=[Learned(record=f"photos:0:{offset}", label="dark")])
            assert at.serves("eyes", offset + 4)
            expect(card(page, "eyes").locator(".version")).to_have_text(f"version {offset + 4}")
        page.clock.run_for(5000)
        expect(shown).to_have_attribute("title", "photos:0:2")


def test_what_happened_is_marked_on_the_curve_and_listed(redis_url: str, page: Page) -> None:
    with serving(redis_url, "drawings") as (at, makers):
        page.goto(at.url)
        shown = card(page, "drawings")
        expect(shown.locator(".version")).to_have_text("version 3")
        expect(shown.locator(".mark")).to_have_count(0)
        lineage = LineageBuilder()
        lineage.change({"drift": {"update": 3, "reaction": "flush"}})
        lineage.change({"guard": {"update": 3, "records": 2}})
        lineage.change({"sources": {"eyes": "0" * 64}})  # which is no event
        makers["drawings"].commit(lineage=lineage.build(), metrics={"prequential_loss": 2.5})
        makers["drawings"].commit(metrics={"prequential_loss": 2.25})
        expect(shown.locator(".mark")).to_have_count(2)
        expect(shown.locator(".events li")).to_have_text(
            [re.compile("Guard: 2 records taken out, version 4"), re.compile(r"Drift \(flush\), version 4")]
        )
        expect(shown.locator(".big")).to_have_text("2.250")
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
            assert violations(page) == []


def test_it_says_why_a_model_does_badly_and_what_to_do(kafka: str, redis_url: str, topics: Topics, page: Page) -> None:
    """As `watch` does, and as long as the newest version has it."""
    topic, name = topics(), unique("sides")
    config = configuration(kafka, redis_url, topic, name=name, learner="image-classifier", input=GREY)
    with ExitStack() as stack:
        worker = stack.enter_context(working(config))
        publish(config, topic, *[(half(side), side) for side in ["left"] * 40 + ["right"] * 40])
        worker.read(80)
        told = worker.finish().diagnoses
        at = stack.enter_context(running(served(redis_url, {name: {"learner": "image-classifier", "input": GREY}})))
        page.goto(at.url)
        advice = card(page, name).locator("p.advice")
        expect(advice).to_have_text(" ".join(told.values()))
        expect(advice).to_have_text(re.compile("One class at a time: .* Publish shuffled.* expect about "))
