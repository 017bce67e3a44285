"""The page as people see it: in a browser, while a worker learns and versions come and go."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright
from redis import Redis

from models.registry import BUILTIN
from pipeline.local.servers import EmbeddedRedis
from pipeline.store.store import Store
from tests.consumers.answering import file, photo
from tests.consumers.marked import Maker
from tests.consumers.running import Running, configuration as serving, running
from tests.consumers.sampler.test_openapi import at as at  # a fixture
from tests.consumers.worker.test_every_learner import given as given  # a fixture
from tests.consumers.working import configuration, publish, working
from tests.services import Topics, unique

PATIENCE_MS = 60_000  # a slow machine is no failure
GREY = {"kind": "image", "size": 8, "channels": 1}
NUMBER = r"\d+\.\d+"
VAE = {"width": 8, "latent": 4, "label_dim": 4, "replay_slots": 16, "replay_draws": 8}


@pytest.fixture
def page() -> Iterator[Page]:
    """An empty page. What goes wrong in it fails the test."""
    chromium = shutil.which("chromium")
    assert chromium, "Chromium is missing: install it (Debian: apt-get install chromium)."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page, errors = browser.new_page(), list[str]()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
        yield page
        browser.close()
        assert errors == []


def half(side: str) -> bytes:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, slice(0, 4) if side == "left" else slice(4, 8)] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_it_shows_what_models_learn_and_draws_strips_of_versions_that_are_being_removed(
    kafka: str, redis_url: str, topics: Topics, page: Page
) -> None:
    topic, sides, drawings = topics(), unique("sides"), unique("drawings")
    often = {"snapshot_every_updates": 1, "snapshot_every_s": None, "keep_last": 4, "input": GREY}
    tables: dict[str, dict[str, Any]] = {
        sides: {"learner": "image-classifier", "hold_out": {"slots": 8, "share": 0.2, "every_s": 0.1}, **often},
        drawings: {"learner": "image-vae", "options": VAE, **often},
    }
    configs = [configuration(kafka, redis_url, topic, name=name, **table) for name, table in tables.items()]
    stop = Event()

    def producing() -> None:
        while not stop.is_set():
            publish(configs[0], topic, *[(half(side), side) for side in ("left", "right")] * 8)

    producer = Thread(target=producing)
    served = {name: {"learner": table["learner"], "input": GREY} for name, table in tables.items()}
    with ExitStack() as stack:
        stack.callback(producer.join)
        stack.callback(stop.set)
        workers = [stack.enter_context(working(config)) for config in configs]
        producer.start()
        for worker in workers:
            worker.until(lambda manifest: manifest.version >= 6 and "prequential_loss" in manifest.metrics)
        at = stack.enter_context(running(serving(redis_url, served)))
        page.goto(at.url)
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        card = page.locator("section").filter(has=page.get_by_role("heading", name=sides))
        expect(card.locator(".facts").first).to_have_text(
            re.compile(f"version .* records · accuracy {NUMBER} % · (held out {NUMBER} % · )?loss {NUMBER} · learned")
        )
        other = page.locator("section").filter(has=page.get_by_role("heading", name=drawings))
        expect(other.locator(".facts").first).to_have_text(re.compile(r"records · loss \d+\.\d{3} · learned"))
        other.get_by_role("button", name="Film-strip").click()
        strip = other.locator("img.wide")
        for _ in range(4):
            expect(strip).to_have_attribute("src", re.compile("^data:image/png"))
            expect(other.locator(".row span")).to_have_text(re.compile("versions? \\d+"))
            expect(other.locator(".part .problem:visible")).to_have_count(0)
            strip.evaluate("image => image.removeAttribute('src')")
            other.get_by_role("button", name="Newest").click()


def test_it_says_why_a_model_does_badly_and_what_to_do(kafka: str, redis_url: str, topics: Topics, page: Page) -> None:
    """As `watch` does, and as long as the newest version has it."""
    topic, name = topics(), unique("sides")
    config = configuration(kafka, redis_url, topic, name=name, learner="image-classifier", input=GREY)
    with ExitStack() as stack:
        worker = stack.enter_context(working(config))
        publish(config, topic, *[(half(side), side) for side in ["left"] * 40 + ["right"] * 40])
        worker.read(80)
        told = worker.finish().diagnoses
        at = stack.enter_context(running(serving(redis_url, {name: {"learner": "image-classifier", "input": GREY}})))
        page.goto(at.url)
        card = page.locator("section").filter(has=page.get_by_role("heading", name=name))
        advice = card.locator("p.hint").first
        expect(advice).to_have_text(" ".join(told.values()), timeout=PATIENCE_MS)
        expect(advice).to_have_text(re.compile("One class at a time: .* Publish shuffled.* expect about "))


def test_every_control_of_every_learner_works(at: Running, page: Page) -> None:
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    failed = list[str]()
    page.on("response", lambda answer: failed.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    page.goto(at.url)
    states = at.client.get("/models").json()
    expect(page.locator("section")).to_have_count(len(states))
    for state in states:
        card = page.locator("section").filter(has=page.get_by_role("heading", name=state["model"], exact=True))
        for title in card.locator("nav button").all_text_contents():
            with_tabs = card.locator("nav").is_visible()
            if with_tabs:
                card.get_by_role("button", name=title, exact=True).click()
            part = card.locator(".part > .part:visible")
            use(page, part)
            page.wait_for_load_state("networkidle")
            told = part.locator(".problem:visible").all_text_contents()
            assert (told, failed) == ([], []), (state["learner"], title)
            empty = part.locator("img:visible").evaluate_all("images => images.some(image => !image.naturalWidth)")
            assert not empty, (state["learner"], title)
            if title in ("Classify", "Recognise"):
                expect(part.locator("ol li")).not_to_have_count(0)


def use(page: Page, part: Locator) -> None:
    """Every control of a tab, once."""
    upload = {"name": "photo.png", "mimeType": "image/png", "buffer": file(photo(40, 32))}
    for box in part.locator("input[type=file]").all():
        box.set_input_files(upload)  # type: ignore[arg-type]
    for canvas in part.locator("canvas:visible").all():
        canvas.scroll_into_view_if_needed()
        place = canvas.bounding_box()
        assert place is not None
        page.mouse.move(place["x"] + 20, place["y"] + 20)
        page.mouse.down()
        page.mouse.move(place["x"] + 60, place["y"] + 60, steps=3)
        page.mouse.up()
    for box in part.locator("textarea:visible").all():
        box.fill("Guten Morgen")
    for choice in part.locator("select:visible").all():
        choice.select_option(index=choice.locator("option").count() - 1)
    for slider in part.locator("input[type=range]:visible").all():
        slider.press("End")
    for number in part.locator("input[type=number]:visible").all():
        number.fill("5")
        number.press("Tab")
    for button in part.get_by_role("button").all():
        if button.inner_text() not in ("Clear", "Unpaint"):
            button.click()


def test_a_model_that_is_there_no_more_is_shown_no_more(tmp_path: Path, page: Page) -> None:
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as redis, running(serving(server.url, {})) as at:
        names = ("first", "second")
        makers = {
            name: Maker(Store(redis, name, name), "image-vae", BUILTIN["image-vae"], GREY, **VAE) for name in names
        }
        for maker in makers.values():
            maker.commit()
        page.goto(at.url)
        expect.set_options(timeout=PATIENCE_MS)
        expect(page.locator("section")).to_have_count(2)
        strip = page.locator("section").filter(has=page.get_by_role("heading", name="first")).locator("img.wide")
        page.get_by_role("button", name="Film-strip").first.click()
        expect(strip).to_have_attribute("src", re.compile("^data:image/png"))
        assert strip.evaluate("image => image.clientHeight < innerHeight")  # of one version, too
        for maker in makers.values():
            maker.store.release(maker.fence)
        makers["second"].store.delete()
        expect(page.locator("section")).to_have_count(1)
        makers["first"].store.reset()
        expect(page.get_by_text("It has no version yet.")).to_be_visible()
        Maker(Store(redis, "first", "first"), "image-vae", BUILTIN["image-vae"], GREY, **VAE).commit()
        expect(page.locator("section > .facts").first).to_have_text(re.compile("version"))
        expect(strip).to_be_visible()  # the tab that was open


def test_a_tap_is_a_dot(at: Running, page: Page) -> None:
    expect.set_options(timeout=PATIENCE_MS)
    page.goto(at.url)
    card = page.locator("section").filter(has=page.locator("canvas[aria-label^='Drawing']")).first
    card.locator("canvas").click()
    expect(card.locator("ol li")).not_to_have_count(0)
