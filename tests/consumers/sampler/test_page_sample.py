"""The view Sample: every control of every learner, and what is downloaded."""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image, ImageSequence
from playwright.sync_api import Locator, Page, expect

from tests.consumers.answering import VERSIONS, file, photo, serving
from tests.consumers.browsing import (
    browser as browser,  # a fixture
    card,
    page as page,  # a fixture
)
from tests.consumers.running import Running
from tests.consumers.sampler.test_openapi import at as at  # a fixture
from tests.consumers.worker.test_every_learner import given as given  # a fixture

PHOTO = {"name": "photo.png", "mimeType": "image/png", "buffer": file(photo(40, 32))}


def test_every_control_of_every_learner_works(at: Running, page: Page) -> None:
    failed = list[str]()
    page.on("response", lambda answer: failed.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    page.goto(at.url)
    for state in at.client.get("/models").json():
        page.goto(f"{at.url}/#sample/{state['model']}")
        panel = card(page, state["model"])
        expect(panel).to_be_visible()
        for title in panel.get_by_role("tab").all_text_contents():
            panel.get_by_role("tab", name=title, exact=True).click()
            part = panel.get_by_role("tabpanel")
            use(page, part)
            answered(part, title)
            told = part.locator(".problem:visible").all_text_contents()
            assert (told, failed) == ([], []), (state["learner"], title)


def answered(part: Locator, title: str) -> None:
    """Waits for what a tab shows."""
    if title in ("Classify", "Recognise"):
        expect(part.locator("ol li")).not_to_have_count(0)
    elif title == "Write":
        expect(part.get_by_role("button", name="Write")).to_be_visible()
        expect(part.locator(".text span").last).not_to_be_empty()
    elif title in ("Draw", "Film", "Compare"):
        for picture in part.locator("canvas").all():
            expect(picture).to_have_attribute("aria-label", re.compile("drawings by version 1"))
    else:
        for picture in part.locator("img").all():
            expect(picture).to_have_attribute("src", re.compile("^data:image/png"))
            assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)")


def use(page: Page, part: Locator) -> None:
    """Every control of a tab, once."""
    for box in part.locator("input[type=file]").all():
        box.set_input_files(PHOTO)  # type: ignore[arg-type]
    for canvas in part.locator("canvas.pad:visible, canvas.smooth:visible").all():
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
        if not re.match("Clear|Unpaint|Camera|Download", button.inner_text()):
            button.click()


def test_a_tap_is_a_dot(redis_url: str, page: Page) -> None:
    with serving(redis_url, "eyes") as (at, _):
        page.goto(f"{at.url}/#sample/eyes")
        page.locator("canvas.pad").click()
        expect(page.locator("ol li")).not_to_have_count(0)
        expect(page.get_by_role("status").filter(has_text="dark, ")).to_be_visible()
        page.get_by_role("button", name="Clear").click()
        expect(page.locator("ol li")).to_have_count(0)


def test_downloads_tell_what_drew_them(redis_url: str, page: Page, tmp_path: Path) -> None:
    with serving(redis_url, "drawings") as (at, _):
        page.goto(f"{at.url}/#sample/drawings/Draw")
        panel = card(page, "drawings")
        expect(panel.get_by_role("img")).to_have_attribute("aria-label", re.compile("by version 3 of drawings, seed 1"))
        panel.get_by_label("Version", exact=True).select_option("1")
        panel.get_by_label("Seed", exact=True).fill("7")
        panel.get_by_label("Seed", exact=True).press("Tab")
        expect(panel.get_by_role("img")).to_have_attribute("aria-label", re.compile("by version 1 of drawings, seed 7"))
        with page.expect_download() as told:
            panel.get_by_role("button", name="Download").click()
        assert told.value.suggested_filename == "drawings-v1-seed7.png"
        panel.get_by_role("tab", name="Film").click()
        expect(panel.locator("output")).to_have_text(f"version {VERSIONS}, {VERSIONS} of {VERSIONS} kept")
        with page.expect_download() as told:
            panel.get_by_role("button", name="Download the film").click()
        assert told.value.suggested_filename == f"drawings-v1-v{VERSIONS}-seed1.png"
        film = Image.open(io.BytesIO(Path(told.value.path()).read_bytes()))
        frames = [frame.convert("L").tobytes() for frame in ImageSequence.Iterator(film)]
        assert len(frames) == VERSIONS
        assert len(set(frames)) == VERSIONS  # each version draws in its own way


def test_the_film_plays_all_kept_versions_and_follows_the_newest(redis_url: str, page: Page) -> None:
    with serving(redis_url, "drawings") as (at, makers):
        page.goto(f"{at.url}/#sample/drawings/Film")
        panel = card(page, "drawings")
        where = panel.locator("output")
        expect(where).to_have_text("version 3, 3 of 3 kept")
        makers["drawings"].commit()
        expect(where).to_have_text("version 4, 4 of 4 kept")
        panel.get_by_role("button", name="Play").click()
        for version in (1, 2, 3, 4):
            expect(where).to_have_text(f"version {version}, {version} of 4 kept")
        panel.get_by_role("button", name="Pause").click()


def test_two_versions_are_compared_under_a_wipe(redis_url: str, page: Page) -> None:
    with serving(redis_url, "drawings") as (at, makers):
        makers["drawings"].store.set_alias("stable", 2)
        page.goto(f"{at.url}/#sample/drawings/Compare")
        panel = card(page, "drawings")
        below, above = panel.locator("canvas").first, panel.locator("canvas").last
        expect(below).to_have_attribute("aria-label", re.compile("version 1"))
        expect(above).to_have_attribute("aria-label", re.compile("version 3"))
        panel.get_by_label("Left", exact=True).select_option("stable")
        expect(below).to_have_attribute("aria-label", re.compile("version 2"))
        panel.get_by_label("Wipe", exact=True).press("Home")
        assert "inset(0px" in above.evaluate("canvas => canvas.style.clipPath")
