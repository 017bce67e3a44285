"""What `headrace publish` makes of files, folders, lines, and of what is dropped into a folder."""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path

import pytest

from consumers.publish import Outgoing, follow, from_jsonl, from_paths, from_stdin
from pipeline.errors import ConfigError


def test_a_sub_folders_name_is_the_label(tmp_path: Path) -> None:
    (tmp_path / "cats" / "young").mkdir(parents=True)
    (tmp_path / "cats" / "young" / "a.png").write_bytes(b"a")
    (tmp_path / "b.txt").write_bytes(b"b")
    (tmp_path / ".hidden.png").write_bytes(b"c")
    (tmp_path / "Thumbs.db").write_bytes(b"d")
    said: list[str] = []
    assert list(from_paths([tmp_path], said.append)) == [
        Outgoing(b"b", "text/plain", None),
        Outgoing(b"a", "image/png", "cats"),
    ]
    assert len(said) == 1
    assert "Thumbs.db" in said[0]
    assert [outgoing.label for outgoing in from_paths([tmp_path], said.append, "mine")] == ["mine", "mine"]


@pytest.mark.parametrize("name", ["a.exe", "missing.png", "missing.jsonl", "latin.jsonl"])
def test_a_file_that_cannot_be_published_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.exe").write_bytes(b"MZ")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "gr\xfc\xdf"}')
    with pytest.raises(ConfigError, match=re.escape(name)):
        list(from_paths([tmp_path / name], print))


def test_pictures_of_every_kind_are_told_by_their_names(tmp_path: Path) -> None:
    for suffix in ("png", "JPG", "webp", "gif", "bmp", "tiff"):
        (tmp_path / f"a.{suffix}").write_bytes(b"a")
    kinds = {outgoing.content_type for outgoing in from_paths([tmp_path], print)}
    assert len(kinds) == 6
    assert all(kind.startswith("image/") for kind in kinds)


def test_json_lines_carry_texts_and_pictures_with_labels_and_ids(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"jpeg")
    lines = ['{"text": "grüß", "label": "de", "id": "1"}', "", '{"image": "a.jpg", "label": "cat"}']
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    assert list(from_paths([path], print)) == [
        Outgoing("grüß".encode(), "text/plain", "de", "1"),
        Outgoing(b"jpeg", "image/jpeg", "cat", None),
    ]
    assert Outgoing(b"x", "text/plain", "de", None).headers == [
        ("content-type", b"text/plain"),
        ("label", b"de"),
    ]


@pytest.mark.parametrize("line", ["{", "[]", '{"label": "a"}', '{"text": 1}', '{"text": "a", "label": 1}'])
def test_a_bad_line_is_named(line: str) -> None:
    with pytest.raises(ConfigError, match=r"records\.jsonl:2"):
        list(from_jsonl(['{"text": "good"}', line], Path("records.jsonl")))


def test_standard_input_is_a_text_a_line() -> None:
    texts = [outgoing.value for outgoing in from_stdin(io.StringIO("one\n\r\n\nzwei ä\n"))]
    assert texts == [b"one", "zwei ä".encode()]


class Dropping(threading.Event):
    """Drops files the first time that it is waited for: then the folder has been looked at."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._dropped = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._dropped:
            self._dropped = True
            (self._folder / "birds").mkdir()
            (self._folder / "birds" / "a.png").write_bytes(b"a")
            (self._folder / "odd.bin").write_bytes(b"?")
            (self._folder / "b.txt").write_bytes(b"b")
        return self.is_set()


def test_what_is_dropped_into_a_folder_is_published_once_and_what_was_there_is_not(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes(b"old")
    stop = Dropping(tmp_path)
    said: list[str] = []
    found = []
    for record in follow(tmp_path, stop, said.append):
        found.append(record)
        if len(found) == 2:
            stop.set()
    assert sorted((record.value, record.label) for record in found) == [(b"a", "birds"), (b"b", None)]
    assert len(said) == 1
    assert "odd.bin" in said[0]
