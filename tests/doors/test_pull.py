"""The third door: the block of docs/pull.md classifies pictures with weights that it takes from Redis itself."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load, save

PAGE = Path(__file__).parents[2] / "docs" / "pull.md"
OURS = re.compile(r"^\s*(import|from) (pipeline|models|consumers|headrace)\b", re.MULTILINE)
MAX_LINES = 20


@pytest.fixture
def block() -> str:
    """The Python block that needs Redis alone."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    [found] = [block for block in blocks if "import redis\n" in block]
    return str(found)


def test_the_block_is_short_and_imports_nothing_of_ours(block: str) -> None:
    assert len([line for line in block.splitlines() if line.strip()]) <= MAX_LINES
    assert not OURS.search(block)


class Puller:
    """Runs the block as it stands on the page, but for where Redis is and the name of the model's family."""

    def __init__(self, block: str, folder: Path, redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.block = block
        self.script = folder / "pull.py"
        self.redis_url = redis_url
        self.capsys = capsys

    def pull(self, family: str, picture: bytes) -> str:
        """What it prints."""
        block = self.block
        for place, here in (("redis://127.0.0.1:6379/0", self.redis_url), ("{pictures}", f"{{{family}}}")):
            assert block.count(place) == 1
            block = block.replace(place, here)
        self.script.write_text(block, "utf-8")
        self.script.with_name("cat.png").write_bytes(picture)
        runpy.run_path(str(self.script))
        return self.capsys.readouterr().out


@pytest.fixture
def puller(
    learned: Any, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Puller:
    monkeypatch.chdir(tmp_path)
    return Puller(block, tmp_path, learned.redis_url, capsys)


def test_anyone_can_pull_the_newest_weights_and_classify_with_them(learned: Any, puller: Puller) -> None:
    rng = np.random.default_rng(2)
    kinds = learned.kinds * 5
    told = [puller.pull("doors", learned.draw(kind, rng)).split()[0] for kind in kinds]
    assert sum(kind == answer for kind, answer in zip(kinds, told, strict=True)) >= 14


def test_a_tensor_in_several_objects_is_put_together(learned: Any, puller: Puller) -> None:
    """As a tensor above the size of one object is; the layout is that of docs/formats.md."""
    redis, manifest = learned.redis, learned.manifest()
    for tensor in manifest["serving"].values():
        [part] = tensor["parts"]
        rows = load(redis.get("headrace:{doors}:tensor:" + part["digest"]))["rows"]
        tensor["parts"] = []
        for first in range(0, len(rows), 3):
            content = save({"rows": rows[first : first + 3].contiguous()})
            digest = hashlib.sha256(content).hexdigest()
            tensor["parts"].append({"digest": digest, "bytes": len(content), "first": first})
            redis.set("headrace:{parted}:tensor:" + digest, content)
    version = manifest["version"]
    redis.set("headrace:{parted}:model:pictures:head", f"{version}:{'0' * 64}")
    redis.set(f"headrace:{{parted}}:model:pictures:manifest:{version}", json.dumps(manifest))
    picture = learned.draw("lying", np.random.default_rng(3))
    assert puller.pull("parted", picture) == puller.pull("doors", picture)
