"""The built-in learners at a size at which an update takes a millisecond, and the one that counts."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from PIL import Image

from tests.consumers.working import COUNTING

FAMILIES: dict[str, dict[str, Any]] = {
    "counting": COUNTING,
    "text": {
        "learner": "text-classifier",
        "input": {"kind": "text", "max_chars": 16},
        "options": {"buckets": 64, "dim": 8, "replay_slots": 16},
    },
    "picture": {
        "learner": "image-classifier",
        "input": {"kind": "image", "size": 8, "channels": 1},
        "options": {"width": 8, "hidden": 8, "replay_slots": 16},
    },
    "drawing": {
        "learner": "image-vae",
        "input": {"kind": "image", "size": 8, "channels": 1},
        "options": {"width": 8, "latent": 4, "label_dim": 4, "replay_slots": 16, "replay_draws": 8},
    },
}


def picture(shade: int) -> bytes:
    """A grey PNG of 8×8 pixels."""
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "PNG")
    return file.getvalue()


def records(family: str) -> Iterator[tuple[bytes, str]]:
    """Records that the learner takes, with labels; each another one, up to 256."""
    images = FAMILIES[family]["input"]["kind"] == "image"
    for number in range(256):
        yield picture(number) if images else b"%d" % number, f"class {number % 3}"
