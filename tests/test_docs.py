"""The pages: links lead somewhere, in the repository and in the site, which asks no other host; rooms are real."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.test_layout import MODULES, imported, parse

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "site"
OURS = ("docs", "benchmarks")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in OURS for page in (ROOT / folder).rglob("*.md"))])
LINK = re.compile(r"\]\((?!https?://)([^)\s#]*)(?:#([^)\s]+))?\)")
ROOM = re.compile(r"^\| `([a-z.]+)` \| .+ \| (.*) \|$", re.MULTILINE)
LOADED = re.compile(
    r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//|url\(\s*[\"']?(?:https?:)?//"
)


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text("utf-8")):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_the_site_is_built_and_needs_no_other_host() -> None:
    built = subprocess.run([sys.executable, ROOT / "docs" / "build.py"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    written = [path for path in SITE.rglob("*") if path.suffix in (".html", ".css")]
    assert len(written) > len(PAGES)
    assert [path for path in written if LOADED.search(path.read_text("utf-8"))] == []
    assert asked(SITE / "index.html") == []


def asked(page: Path) -> list[str]:
    """What a browser that opens the page asks other hosts for."""
    chromium, urls = shutil.which("chromium"), list[str]()
    assert chromium, "Chromium is missing: install it (Debian: apt-get install chromium)."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.on("request", lambda request: urls.append(request.url))
        opened.goto(page.as_uri(), wait_until="networkidle")
        browser.close()
    assert urls
    return [url for url in urls if not url.startswith(("file:", "data:", "blob:"))]


def room(module: str) -> str:
    """The package that a module is in: `pipeline.log`, or `pipeline` itself."""
    return ".".join(MODULES[module].parent.relative_to(ROOT).parts[:2])


def test_the_rooms_and_the_arrows_between_them_are_those_of_the_code() -> None:
    arrows: dict[str, set[str]] = {room(module): set() for module in MODULES}
    for module, path in MODULES.items():
        arrows[room(module)] |= {room(name) for name in imported(parse(path)) if name in MODULES} - {room(module)}
    rows = ROOM.findall((ROOT / "docs" / "architecture.md").read_text("utf-8"))
    assert {name: set(re.findall(r"`([a-z.]+)`", to)) for name, to in rows} == arrows
