"""Builds the site, strictly: `make docs`.

Pages are written for whoever reads the repository, so they link to files as they lie there. A link to another page
stays one in the site. A link to anything else, to code for example, leads to the repository on GitHub.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGED = ROOT / "build" / "docs"
CONFIG = ROOT / "build" / "zensical.toml"  # beside them, since a site lies below its configuration
GITHUB = "https://github.com/headrace/headrace/blob/main"
LINK = re.compile(r"(?<=\]\()(?!https?://|#)([^)\s#]+)")
KINDS = (".md", ".png", ".svg")


def pages() -> dict[Path, Path]:
    """From each file of the site, as it lies in the repository, to its place in the site."""
    folders = {ROOT / "docs": Path(), ROOT / "benchmarks": Path("benchmarks")}
    found = {
        path: to / path.relative_to(folder)
        for folder, to in folders.items()
        for path in sorted(folder.rglob("*"))
        if path.suffix in KINDS
    }
    found |= {path: Path(path.name.lower()) for path in ROOT.glob("*.md") if path.stem != "README"}
    return {path: to.with_name("index.md") if to.name == "README.md" else to for path, to in found.items()}


def rewritten(page: Path, where: dict[Path, Path]) -> str:
    """The page as it is in the site: links lead to its pages, or to GitHub."""

    def link(match: re.Match[str]) -> str:
        target = (page.parent / match[1]).resolve()
        if target in where:
            return os.path.relpath(where[target], where[page].parent)
        if not target.exists():
            return match[0]  # zensical says so
        return f"{GITHUB}/{target.relative_to(ROOT)}"

    return LINK.sub(link, page.read_text("utf-8"))


def stage() -> None:
    """Writes every page of the site into `STAGED`."""
    shutil.rmtree(STAGED, ignore_errors=True)
    where = pages()
    CONFIG.parent.mkdir(exist_ok=True)
    shutil.copyfile(ROOT / "docs" / CONFIG.name, CONFIG)
    for path, to in where.items():
        (STAGED / to).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            (STAGED / to).write_text(rewritten(path, where), "utf-8")
        else:
            shutil.copyfile(path, STAGED / to)


if __name__ == "__main__":
    stage()
    zensical = Path(sys.executable).with_name("zensical")
    sys.exit(subprocess.call([zensical, "build", "--clean", "--strict", "--config-file", CONFIG], cwd=ROOT))
