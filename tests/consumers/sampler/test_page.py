"""The page's frame: what is served, how it looks and reads in every view, and that it comes back."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from redis import Redis

from models.registry import BUILTIN
from pipeline.local import free_port
from pipeline.local.servers import EmbeddedRedis
from pipeline.process import tied
from pipeline.store.store import Store
from tests.consumers.answering import GREY, VAE, serving
from tests.consumers.browsing import (
    PHONE,
    SCHEMES,
    browser as browser,  # a fixture
    card,
    page as page,  # a fixture
    violations,
    wide,
)
from tests.consumers.marked import Maker
from tests.consumers.running import Running, configuration, running
from tests.consumers.sampler.test_openapi import at as at  # a fixture
from tests.consumers.worker.test_every_learner import given as given  # a fixture

HEADRACE = str(Path(sys.executable).with_name("headrace"))
VIEWS = ("now", "teach", "sample", "explain", "history")  # and "letters", which asks Kafka
MOST_BYTES = 200_000  # of all that the page loads


def test_its_files_are_small_and_cached_and_run_nothing_else(at: Running) -> None:
    index = at.client.get("/")
    policy = index.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script[^>]*>[^<]|<style|\son\w+=|\sstyle=", index.text)
    names = re.findall(r'(?:href|src)="(/page/[^"]+)"', index.text)
    sizes = [len(index.content)]
    while names:
        name = names.pop()
        answer = at.client.get(name)
        assert answer.status_code == 200, name
        again = at.client.get(name, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        sizes.append(len(answer.content))
    folder = Path(__file__).parents[3] / "consumers" / "sampler" / "page"
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES
    assert at.client.get("/", headers={"If-None-Match": index.headers["etag"]}).status_code == 304
    missing = at.client.get("/page/nothing.js")
    assert (missing.status_code, missing.json()["error"]) == (404, "not-found")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_everybody_can_use_each_view(at: Running, page: Page, scheme: str) -> None:
    """Axe finds nothing, in the desktop's width and a phone's, where nothing is cut off."""
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    drawings = next(s["model"] for s in at.client.get("/models").json() if "vary" in s["answers"])
    eyes = next(s["model"] for s in at.client.get("/models").json() if "restore" in s["answers"])
    for hash in (*VIEWS, f"sample/{drawings}/Film", f"sample/{drawings}/Compare", f"sample/{eyes}/Restore"):
        page.goto(f"{at.url}/#{hash}")
        expect(page.locator("section.card").first).to_be_visible()
        assert violations(page) == [], hash
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        assert wide(page) == 0, hash
        assert violations(page) == [], hash
        page.set_viewport_size({"width": 1280, "height": 800})


def test_a_keyboard_is_enough(redis_url: str, page: Page) -> None:
    """From the top of the page to what a tab shows, by Tab, Enter and arrows."""
    with serving(redis_url, "drawings", "eyes") as (at, makers):
        makers["drawings"].commit(metrics={"prequential_loss": 2.5})
        assert at.serves("drawings", 4)
        page.goto(at.url)
        expect(card(page, "eyes")).to_be_visible()
        focused = page.locator("*:focus")
        page.keyboard.press("Tab")
        expect(focused).to_have_text("Skip to the content")
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        page.keyboard.press("Tab")
        expect(focused).to_have_attribute("aria-label", re.compile("Curve of drawings: .* Arrow keys"))
        page.keyboard.press("ArrowLeft")
        expect(page.locator(".reading").first).to_have_text(re.compile(r"\d\d:\d\d:\d\d · loss"))
        for _ in range(10):
            page.keyboard.press("Shift+Tab")
            if focused.text_content() == "Sample":
                break
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        expect(page).to_have_title("Sample · headrace")
        for name in ("drawings", "eyes", "Draw"):
            page.keyboard.press("Tab")
            expect(focused).to_have_text(name)
        page.keyboard.press("ArrowRight")
        expect(focused).to_have_text("Film")
        expect(focused).to_have_attribute("aria-selected", "true")
        page.keyboard.press("Tab")  # the panel
        page.keyboard.press("Tab")
        expect(focused).to_have_attribute("aria-valuetext", "version 4")
        page.keyboard.press("Home")
        expect(focused).to_have_attribute("aria-valuetext", "version 1")


CONFIG = """
redis.url = "{redis_url}"
sampler.port = {port}
[models.drawings]
family = "{family}"
topics = ["topic"]
learner = "image-vae"
input = {{ kind = "image", size = 8, channels = 1 }}
"""


@contextmanager
def served(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`headrace serve` in a folder with its file, once it has said that it serves."""
    with subprocess.Popen(
        tied([HEADRACE, "serve", "--json"]), cwd=folder, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_it_says_that_the_sampler_was_killed_and_comes_back(redis_url: str, page: Page, tmp_path: Path) -> None:
    with serving(redis_url, "drawings") as (_, makers):
        made, port = makers["drawings"], free_port()
        config = CONFIG.format(redis_url=redis_url, port=port, family=made.store.family)
        (tmp_path / "headrace.toml").write_text(config, "utf-8")
        with served(tmp_path) as process:
            page.goto(f"http://127.0.0.1:{port}")
            expect(page.locator("#state")).to_have_text("Live: 1 model")
            process.kill()
        expect(page.locator("#state")).to_have_text("The sampler does not answer")
        expect(card(page, "drawings")).to_be_visible()  # what was known stays
        made.commit()
        with served(tmp_path):
            expect(page.locator("#state")).to_have_text("Live: 1 model")
            expect(card(page, "drawings").locator(".version")).to_have_text("version 4")
            page.goto("about:blank")


def test_it_asks_where_no_stream_comes_through(redis_url: str, page: Page) -> None:
    with serving(redis_url, "drawings") as (at, makers):
        page.route("**/events", lambda route: route.abort())
        page.goto(at.url)
        expect(page.locator("#state")).to_have_text("Live: 1 model")
        expect(card(page, "drawings").locator(".version")).to_have_text("version 3")
        makers["drawings"].commit()
        expect(card(page, "drawings").locator(".version")).to_have_text("version 4")


def test_a_model_that_is_there_no_more_is_shown_no_more(tmp_path: Path, page: Page) -> None:
    with (
        EmbeddedRedis(tmp_path) as server,
        Redis.from_url(server.url) as redis,
        running(configuration(server.url, {})) as at,
    ):
        names = ("first", "second")
        makers = {
            name: Maker(Store(redis, name, name), "image-vae", BUILTIN["image-vae"], GREY, **VAE) for name in names
        }
        for maker in makers.values():
            maker.commit()
        page.goto(at.url)
        expect(page.locator("section.card")).to_have_count(2)
        for maker in makers.values():
            maker.store.release(maker.fence)
        makers["second"].store.delete()
        expect(page.locator("section.card")).to_have_count(1)
        page.goto(f"{at.url}/#sample/first/Film")
        picture = page.get_by_role("img", name=re.compile("drawings by version 1 of first"))
        expect(picture).to_be_visible()
        makers["first"].store.reset()
        expect(page.get_by_text("It has no version yet.")).to_be_visible()
        Maker(Store(redis, "first", "first"), "image-vae", BUILTIN["image-vae"], GREY, **VAE).commit()
        expect(page.get_by_role("img", name=re.compile("drawings by version 2 of first"))).to_be_visible()
        expect(page.get_by_role("tab", name="Film")).to_have_attribute("aria-selected", "true")  # which was open
