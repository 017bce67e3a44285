"""The page as people see it: in a browser, while a worker learns and versions come and go."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tests.consumers.running import configuration as serving
from tests.consumers.running import running
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
