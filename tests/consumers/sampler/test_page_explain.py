"""The view Explain: what speaks for an answer, and which learned records it resembles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page, expect

from tests.consumers.browsing import (
    DESK,
    PHONE,
    SCHEMES,
    browser as browser,  # a fixture
    card,
    page as page,  # a fixture
    violations,
    wide,
)
from tests.consumers.running import Running
from tests.consumers.sampler.test_explain import bar, line, sampling

if TYPE_CHECKING:
    from playwright.sync_api import FilePayload


@pytest.fixture(scope="module")
def at(redis_url: str) -> Iterator[Running]:
    with sampling(redis_url, "drawings", "linear", "network", "sums", "words") as (at, _):
        yield at


def picture(content: bytes) -> FilePayload:
    return {"name": "bar.png", "mimeType": "image/png", "buffer": content}


def everybody_can_use(page: Page) -> None:
    """In both schemes and both widths."""
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        for size in (PHONE, DESK):
            page.set_viewport_size(size)  # type: ignore[arg-type]
            assert (wide(page), violations(page)) == (0, [])


def test_a_picture_has_heat_and_neighbours(at: Running, page: Page) -> None:
    page.goto(f"{at.url}/#explain/network")
    shown = card(page, "network")
    shown.get_by_role("button", name="Why?").click()
    expect(shown.get_by_role("alert")).to_have_text("Draw, choose or type something first.")
    shown.get_by_label("Choose a picture").set_input_files(picture(bar(9)))
    expect(shown.locator(".said").first).to_have_text(re.compile("^1, .* sure$"))
    shown.get_by_role("button", name="Why?").click()
    heat = shown.get_by_role("img", name=re.compile("^The picture with its heat. Most for 1: the .*left"))
    expect(heat).to_be_visible()
    records = shown.get_by_role("list", name="It looks like these").get_by_role("listitem")
    expect(records).to_have_count(8)
    expect(records.first).to_have_text(re.compile("^1[0-9]+.[0-9]+ away$"))
    expect(records.first.get_by_role("img", name="A learned record: 1")).to_be_visible()
    everybody_can_use(page)
    shown.get_by_label("Explain").select_option("0")
    shown.get_by_role("button", name="Why?").click()
    expect(shown.get_by_role("img", name=re.compile("heat. .*[aA]gainst (it|0): the .*left"))).to_be_visible()


def test_words_are_weighed(at: Running, page: Page) -> None:
    page.goto(f"{at.url}/#explain/linear")
    shown = card(page, "linear")
    expect(shown.get_by_text("text-analytic keeps no records that it learned")).to_be_visible()
    shown.get_by_label("A text").fill("good x3 Tag")
    shown.get_by_role("button", name="Why?").press("Enter")
    text = shown.get_by_role("region", name="The words, and what they are worth")
    expect(text).to_have_text("good x3 Tag")
    expect(shown.get_by_text(re.compile("^Most for [01]: “(good|Tag)”.*; against it: “(good|Tag)”"))).to_be_visible()
    assert {word.get_attribute("class") for word in text.locator("span").all()} >= {"for", "against"}
    everybody_can_use(page)


def test_teach_leads_there_by_keyboard(at: Running, page: Page) -> None:
    page.goto(f"{at.url}/#teach/words")
    taught = card(page, "words")
    taught.get_by_label("A text").fill(line(7).decode())
    why = taught.get_by_role("button", name="Why?")
    expect(why).to_be_enabled()
    page.keyboard.press("Tab")
    expect(why).to_be_focused()
    page.keyboard.press("Enter")
    expect(page).to_have_title("Explain · headrace")
    shown = card(page, "words")
    expect(shown.get_by_label("A text")).to_have_value(line(7).decode())
    expect(shown.locator(".worth")).to_have_text(line(7).decode())
    expect(shown.get_by_role("list", name="It looks like these").get_by_role("listitem").first).to_contain_text("x7")
    everybody_can_use(page)


def test_a_picture_goes_from_teach_to_explain(at: Running, page: Page) -> None:
    page.goto(f"{at.url}/#teach/sums")
    taught = card(page, "sums")
    taught.get_by_label("Choose a picture").set_input_files(picture(bar(8)))
    taught.get_by_role("button", name="Why?").click()
    shown = card(page, "sums")
    expect(
        shown.get_by_role("img", name=re.compile("^The picture with its heat. Most for 0: the .*right"))
    ).to_be_visible()
    expect(shown.get_by_text("image-analytic keeps no records that it learned, so none can be shown.")).to_be_visible()


def test_a_copy_is_called_one(at: Running, page: Page) -> None:
    page.goto(f"{at.url}/#explain/drawings")
    shown = card(page, "drawings")
    expect(shown.get_by_role("img", name="Drawn by version 1, seed 1")).to_be_visible()
    records = shown.get_by_role("list", name="The learned records that are nearest").get_by_role("listitem")
    expect(records).to_have_count(8)
    shown.get_by_role("button", name="Draw another").click()
    expect(shown.get_by_role("img", name="Drawn by version 1, seed 2")).to_be_visible()
    copied = picture(bar(3, 8))
    shown.get_by_label("Choose a picture").set_input_files(copied)
    expect(shown.get_by_text("It is a copy of the first of these")).to_be_visible()
    expect(records.first).to_have_text(re.compile(r"^10\.0\d away$"))
    everybody_can_use(page)
