"""What `headrace publish --follow` makes of what is dropped into a folder: looks without waiting, files as people write
them."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consumers.publish.dropbox import LOOKS, POLL_S, SHARE, Dropbox
from consumers.publish.outgoing import Outgoing, Refused
from consumers.publish.records import Way
from pipeline.errors import ConfigError

WAY = Way(10_000)
LONG = LOOKS + 2  # looks after which what has settled is published


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Looks(threading.Event):
    """Stands for the time between two looks: there things happen, until nothing more does."""

    def __init__(self, happening: Mapping[int, Callable[[], object]]) -> None:
        super().__init__()
        self._happening = dict(happening)
        self._last = max(happening, default=0) + LONG
        self._look = 0

    def wait(self, timeout: float | None = None) -> bool:
        self._happening.get(self._look, lambda: None)()
        self._look += 1
        return self._look > self._last


def followed(
    folder: Path, happening: Mapping[int, Callable[[], object]], memory: Path | None = None
) -> tuple[list[bytes], list[str]]:
    """The values that are published while this happens, and what is said."""
    said: list[str] = []
    box = Dropbox(folder, WAY, said.append, memory)
    values = []
    for one in box.records(Looks(happening)):
        if isinstance(one, Outgoing):
            values.append(one.value)
            box.sent(one)
        elif isinstance(one, Refused):
            said.append(str(one))
    return values, said


def test_what_is_dropped_is_published_once_and_what_was_there_is_not(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes(b"old")
    (tmp_path / "birds").mkdir()
    box = Dropbox(tmp_path, WAY, print, None)

    def drop() -> None:
        (tmp_path / "birds" / "a.png").write_bytes(png(0))
        (tmp_path / "odd.bin").write_bytes(b"?")
        (tmp_path / ".hidden.txt").write_bytes(b"?")
        (tmp_path / "b.txt").write_bytes(b"b")

    found = [one for one in box.records(Looks({0: drop, 2 * LONG: lambda: None})) if isinstance(one, Outgoing)]
    assert {one.value: one.label for one in found} == {png(0): "birds", b"b": None}
    assert len(found) == 2


def test_the_same_name_again_is_another_record(tmp_path: Path) -> None:
    path = tmp_path / "camera.png"

    def replaced() -> None:
        (tmp_path / ".next").write_bytes(png(3))
        (tmp_path / ".next").replace(path)

    values, _ = followed(
        tmp_path,
        {
            0: lambda: path.write_bytes(png(0)),
            LONG: path.unlink,
            LONG + 1: lambda: path.write_bytes(png(1)),
            2 * LONG + 1: lambda: path.write_bytes(png(2)),
            3 * LONG + 1: replaced,
        },
    )
    assert values == [png(0), png(1), png(2), png(3)]


@pytest.mark.parametrize("name", ["slow.png", "slow.jpg", "slow.webp", "slow.gif", "slow.tiff", "slow.bmp"])
def test_a_picture_that_comes_slowly_is_published_whole(tmp_path: Path, name: str) -> None:
    file = io.BytesIO()
    Image.open(io.BytesIO(png(0))).save(file, {"jpg": "JPEG"}.get(name[5:], name[5:]))
    whole, path = file.getvalue(), tmp_path / name
    half = len(whole) // 2
    values, said = followed(
        tmp_path, {0: lambda: path.write_bytes(whole[:half]), LONG: lambda: path.write_bytes(whole)}
    )
    assert values == [whole]
    assert any(f"{name}: no whole picture yet" in line for line in said)


def test_a_text_that_somebody_is_writing_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "slow.txt"
    with path.open("wb") as writing:

        def write(text: bytes) -> None:
            writing.write(text)
            writing.flush()

        def end() -> None:
            write(b"end")
            writing.close()

        values, _ = followed(tmp_path, {0: lambda: write(b"one "), LONG: lambda: write(b"two "), 2 * LONG: end})
    assert values == [b"one two end"]


def test_a_file_that_is_made_empty_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "late.png"
    values, said = followed(tmp_path, {0: path.touch, LONG: lambda: path.write_bytes(png(0))})
    assert (values, said) == ([png(0)], [])


def test_one_that_cannot_be_published_is_reported_once_and_ends_nothing(tmp_path: Path) -> None:
    def drop() -> None:
        (tmp_path / "big.png").write_bytes(b"1" * 10_001)
        (tmp_path / "latin.txt").write_bytes(b"gr\xfc\xdf")
        (tmp_path / "fine.txt").write_bytes(b"fine")

    values, said = followed(tmp_path, {0: drop, 2 * LONG: lambda: (tmp_path / "later.txt").write_bytes(b"later")})
    assert values == [b"fine", b"later"]
    assert len(said) == 2
    assert any("big.png: 10,001 bytes, over" in line for line in said)


def test_the_next_start_publishes_what_came_meanwhile(tmp_path: Path) -> None:
    box, memory = tmp_path / "box", tmp_path / "memory" / "seen"
    box.mkdir()
    (box / "old.txt").write_bytes(b"old")
    values, said = followed(box, {0: lambda: (box / "a.txt").write_bytes(b"a")}, memory)
    assert values == [b"a"]
    assert "what was there already (1 of them) is not published" in said[0]
    (box / "b.txt").write_bytes(b"b")  # nobody looks
    (box / "a.txt").write_bytes(b"other")
    assert followed(box, {}, memory) == ([b"other", b"b"], [])
    assert followed(box, {}, memory) == ([], [])
    memory.write_bytes(memory.read_bytes()[:-5])  # a line that was not written to its end
    assert len(followed(box, {}, memory)[0]) == 1


def test_a_folder_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.mkdir()

    def back() -> None:
        box.mkdir()
        (box / "a.txt").write_bytes(b"a")

    assert followed(box, {0: box.rmdir, 2: back})[0] == [b"a"]
    with pytest.raises(ConfigError, match="is not a folder"):
        Dropbox(tmp_path / "none", WAY, print, None)


@pytest.mark.parametrize(("look_s", "pause_s"), [(0.001, POLL_S), (3.0, 3.0 * SHARE)])
def test_a_folder_that_takes_long_to_look_through_is_looked_at_less_often(
    tmp_path: Path, look_s: float, pause_s: float
) -> None:
    class Paused(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout == pytest.approx(pause_s)
            return True

    ticks = itertools.count()
    box = Dropbox(tmp_path, WAY, print, None, lambda: look_s * next(ticks))
    assert list(box.records(Paused())) == []
