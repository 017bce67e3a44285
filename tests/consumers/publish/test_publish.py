"""What `headrace publish` makes of files, folders and lines."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given, strategies as st

from consumers.publish.outgoing import Outgoing, Refused, content_type_of
from consumers.publish.records import Way, entries, from_entries, from_stdin
from pipeline.errors import ConfigError

LIMIT = 1000
#: What a line may hold as its text, picture, label and id: anything.
FIELDS = st.dictionaries(
    st.sampled_from(("text", "image", "label", "id")),
    st.none() | st.integers() | st.text(st.characters(), max_size=30) | st.text(st.sampled_from("a\ud83d\udcfc")),
)
WAY = Way(LIMIT)


def published(*paths: Path, way: Way = WAY, said: list[str] | None = None) -> list[Outgoing | Refused]:
    return list(from_entries(entries(paths, way, ([] if said is None else said).append), way, Event()))


def of_lines(folder: Path, *lines: bytes, way: Way = WAY) -> list[Outgoing | Refused]:
    """What becomes of a file of JSON lines."""
    path = folder / "records.jsonl"
    path.write_bytes(b"\n".join(lines))
    return published(path, way=way)


def refused(found: Iterable[Outgoing | Refused]) -> list[str]:
    return [str(one) for one in found if isinstance(one, Refused)]


def fine(found: Iterable[Outgoing | Refused]) -> list[Outgoing]:
    return [one for one in found if isinstance(one, Outgoing)]


def test_a_sub_folders_name_is_the_label(tmp_path: Path) -> None:
    (tmp_path / "cats" / "young").mkdir(parents=True)
    (tmp_path / "cats" / "young" / "a.png").write_bytes(b"a")
    (tmp_path / "b.txt").write_bytes(b"b")
    (tmp_path / ".hidden.png").write_bytes(b"c")
    (tmp_path / "Thumbs.db").write_bytes(b"d")
    said: list[str] = []
    way = Way(LIMIT, seed=None)
    assert published(tmp_path, way=way, said=said) == [
        Outgoing(b"b", "text/plain", None),
        Outgoing(b"a", "image/png", "cats"),
    ]
    assert len(said) == 1
    assert "Thumbs.db: neither a picture nor a text" in said[0]
    assert [one.label for one in fine(published(tmp_path, way=Way(LIMIT, "mine")))] == ["mine", "mine"]


def test_folders_are_shuffled_by_the_seed_and_by_nothing_else(tmp_path: Path) -> None:
    for label in "abc":
        (tmp_path / label).mkdir()
        for number in range(20):
            (tmp_path / label / f"{number}.txt").write_text(f"{label}{number}")

    def order(seed: int | None) -> list[str]:
        return [one.value.decode() for one in fine(published(tmp_path, way=Way(LIMIT, seed=seed)))]

    assert order(None) == sorted(order(None))
    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == sorted(order(1)) == order(None)
    assert {text[0] for text in order(0)[:20]} == {"a", "b", "c"}


def test_what_is_not_there_ends_it_before_anything_is_published(tmp_path: Path) -> None:
    (tmp_path / "a.exe").write_bytes(b"MZ")
    (tmp_path / "a.txt.gz").write_bytes(b"gz")
    for name, why in {"a.exe": "neither a picture", "a.txt.gz": "neither", "missing.png": "No such file"}.items():
        with pytest.raises(ConfigError, match=why):
            entries([tmp_path / name], WAY, print)


def test_files_that_can_be_no_records_are_named_and_stop_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1" * (LIMIT + 1))
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.txt").write_bytes(b"gr\xfc\xdf")
    (tmp_path / "d.txt").write_bytes(b"\xef\xbb\xbf")
    (tmp_path / "e.txt").write_bytes(b"a\0b")
    (tmp_path / "f\x1b[31m.png").write_bytes(b"")
    os.mkfifo(tmp_path / "g.png")
    (tmp_path / "z.png").write_bytes(b"fine")
    said: list[str] = []
    found = published(tmp_path, way=Way(LIMIT, seed=None), said=said)
    assert [one.value for one in fine(found)] == [b"fine"]
    for line, why in zip(
        refused(found),
        (
            "a.png: 1,001 bytes, over",
            "b.png: it is empty",
            "c.txt: not UTF-8",
            "d.txt: it is",
            "e.txt: it holds U+0000",
        ),
        strict=False,
    ):
        assert why in line
    assert "f\\x1b[31m.png" in refused(found)[5]
    assert "g.png: a link to nothing, or no file" in said[0]


def test_a_folders_name_that_is_no_text_is_no_label(tmp_path: Path) -> None:
    (tmp_path / "fine").mkdir()
    (tmp_path / "fine" / "1.png").write_bytes(b"1")
    odd = os.fsencode(tmp_path) + b"/Gr\xfcn"
    os.mkdir(odd)  # noqa: PTH102 - a name that is no text
    with open(odd + b"/2.png", "wb") as file:  # noqa: PTH123
        file.write(b"2")
    found = published(tmp_path)
    assert [one.value for one in fine(found)] == [b"1"]
    [line] = refused(found)
    assert "Gr\\udcfcn/2.png: the label Gr\\udcfcn is not UTF-8" in line
    line.encode()
    assert len(fine(published(tmp_path, way=Way(LIMIT, "green")))) == 2


def test_a_folder_without_pictures_and_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "Thumbs.db").write_bytes(b"d")
    (line,) = refused(published(tmp_path))
    assert line.endswith(": no picture and no text is in it. See that it is the right folder.")


def test_pictures_and_texts_are_recognised_by_their_names() -> None:
    for suffix in ("png", "JPG", "webp", "gif", "bmp", "tiff", "jfif"):
        assert str(content_type_of(f"a.{suffix}")).startswith("image/")
    for suffix in ("txt", "MD", "csv", "text"):
        assert content_type_of(f"a.{suffix}") == "text/plain"
    for name in ("a.svg", "a.heic", "a.txt.gz", "a", "a.json", ".png"):
        assert content_type_of(name) is None


def test_json_lines_carry_texts_and_pictures_with_labels_and_ids(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"jpeg")
    lines = ('{"text": "grüß", "label": " de ", "id": "1"}', "", '{"image": "a.jpg", "label": "cafe\\u0301"}')
    assert of_lines(tmp_path, *(line.encode() for line in lines)) == [
        Outgoing("grüß".encode(), "text/plain", "de", "1"),
        Outgoing(b"jpeg", "image/jpeg", "café", None),
    ]
    headers = dict(Outgoing(b"x", "text/plain", "de").headers)
    assert (headers["content-type"], headers["label"]) == (b"text/plain", b"de")


def test_the_same_content_has_the_same_id_and_no_other_has() -> None:
    names = [Outgoing(value, kind, label).name for value, kind, label in ((b"x", "a", "b"), (b"x", "c", None))]
    assert names[0] == names[1] == dict(Outgoing(b"x", "a").headers)["id"].decode()
    assert Outgoing(b"y", "a").name != names[0]
    assert Outgoing(b"x", "a", id="mine").name == "mine"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not JSON"),
        (b"[]", "neither"),
        (b"3", "neither"),
        (b"[" * 100_000, "a line of more than"),
        (b'{"label": "a"}', 'neither "text" nor "image"'),
        (b'{"text": 1}', "neither"),
        (b'{"text": "a", "label": 1}', "texts. Put them in quotes"),
        (b'{"text": "cut \\ud83d"}', r"half a character \(\\ud83d\)"),
        (b'{"text": "a", "label": "\\ud83d"}', "is not UTF-8"),
        (b'{"text": "a", "id": "\\ud83d"}', "is not UTF-8"),
        (b'{"text": "a", "label": ""}', "use 1 to 200"),
        (b'{"text": ""}', "it is empty"),
        (b'{"text": "a\\u0000"}', r"U\+0000"),
        (b'{"text": "gr\xfc\xdf"}', "not UTF-8"),
        (b'{"text": "' + b"a" * LIMIT + b'b"}', "1,001 bytes, over"),
        (b'{"text": "' + b"a" * 100 * LIMIT + b'"}', "a line of more than"),
        (b'{"image": "none.png"}', r"none\.png: No such file"),
        (b'{"image": "records.jsonl"}', "neither a picture nor a text"),
        (b'{"image": "a\\u0000.png"}', "embedded null"),
        (b'{"image": "\\ud83d.png"}', "can't encode|surrogates"),
        (b'{"image": "' + b"a" * 500 + b'.png"}', "File name too long"),
    ],
)
def test_a_bad_line_is_named_and_stops_nothing(tmp_path: Path, line: bytes, why: str) -> None:
    found = of_lines(tmp_path, b'{"text": "one"}', line, b'{"text": "three"}')
    assert [one.value for one in fine(found)] == [b"one", b"three"]
    [told] = refused(found)
    assert "records.jsonl:2: " in told
    assert len(told) < 400 + len(str(tmp_path))
    assert re.search(why, told)
    told.encode()


@given(st.lists(st.one_of(st.binary(max_size=60), FIELDS.map(lambda fields: json.dumps(fields).encode()))))
def test_whatever_a_file_of_lines_holds_is_records_and_sentences(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    found = of_lines(tmp_path_factory.mktemp("lines"), *lines, b'{"text": "the last"}')
    for one in fine(found):
        assert all(value.decode() for _, value in one.headers)
    for told in refused(found):
        assert re.search(r"records\.jsonl(:\d+)?: ", told)
        assert told.isprintable()


def test_a_label_that_is_given_is_that_of_every_record(tmp_path: Path) -> None:
    found = of_lines(tmp_path, b'{"text": "a"}', b'{"text": "b", "label": "other"}', way=Way(LIMIT, "de"))
    assert [one.label for one in fine(found)] == ["de", "de"]


def test_byte_order_marks(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    assert [one.value for one in fine(of_lines(tmp_path, mark + b'{"text": "a"}'))] == [b"a"]
    assert [one.value for one in fine(from_stdin([mark, b"a\nb"], WAY))] == [b"a", b"b"]
    [line] = refused(from_stdin(["grüß\n".encode("utf-16")], WAY))
    assert "standard input: it is UTF-16. Save it as UTF-8" in line


def test_standard_input_is_a_text_a_line_however_it_is_cut() -> None:
    raw = "one\n\r\n\nzwei ä\r\n".encode()
    for size in (1, 2, 5, 100):
        chunks = [raw[at : at + size] for at in range(0, len(raw), size)]
        assert [one.value for one in fine(from_stdin(chunks, WAY))] == [b"one", "zwei ä".encode()]
    found = list(from_stdin([b"one\nGr\xfc\xdfe\nthree\n"], WAY))
    assert [one.value for one in fine(found)] == [b"one", b"three"]
    assert refused(found) == ["standard input, line 2: not UTF-8 (byte 0xfc at 2). Convert it to UTF-8."]


def test_a_line_without_end_takes_no_memory_without_end() -> None:
    def endless() -> Iterable[bytes]:
        yield b"one\n"
        for _ in range(1000):
            yield b"a" * (1 << 16)
        yield b"\nthree\n"

    found = list(from_stdin(endless(), WAY))
    assert [one.value for one in fine(found)] == [b"one", b"three"]
    assert "line 2: a line of more than" in refused(found)[0]


def test_json_is_data(tmp_path: Path) -> None:
    """Numbers without end, and a name given twice: one record or one sentence."""
    found = of_lines(tmp_path, b'{"text": "a", "n": ' + b"9" * 6000 + b"}", json.dumps({"text": "b"}).encode())
    assert [one.value for one in fine(found)] == [b"b"]
    assert len(refused(found)) == 1
    [line] = refused(of_lines(tmp_path, b"[" * 100_000, way=Way(1 << 20)))
    assert "records.jsonl:1: not JSON" in line
