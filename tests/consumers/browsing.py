"""The system's Chromium for tests, and what must never happen in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

PATIENCE_MS = 60_000  # a slow machine is no failure
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 800}
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")  # nobody is asked for leave
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")  # its event loop is in the way of other modules
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "Chromium is missing: install it (Debian: apt-get install chromium)."
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", *CAMERA])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page. It asks no other host, and its console stays empty, but for a sampler that is gone."""
    page, errors, hosts = browser.new_page(viewport=DESK), list[str](), set[str | None]()  # type: ignore[arg-type]
    page.set_default_timeout(PATIENCE_MS)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    yield page
    page.close()
    wrong = [error for error in errors if "net::ERR_" not in error]
    assert not wrong, wrong
    assert hosts - {None} <= {"127.0.0.1"}, hosts  # None: of data


def card(page: Page, model: str) -> Locator:
    """A model's card in the view Now, or its panel in another one."""
    return page.locator("section.card").filter(has=page.get_by_role("heading", name=model, exact=True))


def violations(page: Page) -> list[str]:
    """What axe finds, a line each."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]


def wide(page: Page) -> int:
    """Pixels that are beyond the window's side."""
    beyond: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return beyond
