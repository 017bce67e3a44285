"""The third door: the block of README, "Pull", classifies pictures with weights that it takes from Redis itself."""

from __future__ import annotations

import io
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

README = Path(__file__).parents[2] / "README.md"
OURS = re.compile(r"^\s*(import|from) (pipeline|models|consumers|headrace)\b", re.MULTILINE)
MAX_LINES = 25


@pytest.fixture
def block() -> str:
    """The Python block below "## Pull" that needs Redis alone."""
    section = README.read_text("utf-8").partition("\n## Pull\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    [found] = [block for block in blocks if "import redis\n" in block]
    return str(found)


def test_the_block_is_short_and_imports_nothing_of_ours(block: str) -> None:
    assert len([line for line in block.splitlines() if line.strip()]) <= MAX_LINES
    assert not OURS.search(block)


def test_anyone_can_pull_the_newest_weights_and_classify_with_them(
    learned: Any, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, here in (("redis://127.0.0.1:6379/0", learned.redis_url), ("{pictures}", "{doors}")):
        assert block.count(place) == 1
        block = block.replace(place, here)
    script = tmp_path / "pull.py"
    script.write_text(block, "utf-8")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    kinds = learned.kinds * 5
    told = []
    for kind in kinds:
        Image.open(io.BytesIO(learned.draw(kind, rng))).save("cat.png")
        runpy.run_path(str(script))
        told.append(capsys.readouterr().out.split()[0])
    assert sum(kind == answer for kind, answer in zip(kinds, told, strict=True)) >= 14
