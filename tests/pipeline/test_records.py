from __future__ import annotations

import base64
import io
import json
import re
import unicodedata
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from pipeline import records
from pipeline.errors import ConfigError, RecordError
from pipeline.images import ImageInput
from pipeline.records import (
    Example,
    Label,
    Payload,
    Record,
    RecordDecoder,
    Skipped,
    input_array,
    load_decoder,
    name_of,
)
from pipeline.texts import MARKS, TextInput, text_array

PICTURE = io.BytesIO()
Image.new("L", (28, 28), 7).save(PICTURE, "PNG")
PNG = PICTURE.getvalue()
GREY = ImageInput.model_validate({"channels": 1, "size": 28})
TEXT = TextInput.model_validate({"max_chars": 8, "max_bytes": 100})


def record(value: bytes | None, **headers: bytes) -> Record:
    named = tuple((name.replace("_", "-"), text) for name, text in headers.items())
    return Record("digits", 1, 42, 1_700_000_000_000, None, value, named)


def learned(record: Record, input: ImageInput | TextInput = GREY) -> Example:
    decoded = RecordDecoder(input, needs_label=False)(record)
    assert isinstance(decoded, Example)
    return decoded


def refused(record: Record, input: ImageInput | TextInput = GREY) -> RecordError:
    with pytest.raises(RecordError) as caught:
        RecordDecoder(input, needs_label=False)(record)
    return caught.value


def test_value_is_the_picture_and_headers_say_the_rest() -> None:
    example = learned(record(PNG, content_type=b"image/png", label="été 7".encode(), id=b"scan-1"))
    assert (example.label, example.id) == ("été 7", "scan-1")
    assert example.x.shape == (1, 28, 28)
    assert example.x.dtype == np.uint8
    assert (example.x == 7).all()


def test_without_headers_the_id_is_the_origin() -> None:
    example = learned(record(PNG))
    assert (example.label, example.id) == (None, "digits:1:42")


def test_the_last_of_two_headers_counts_and_foreign_ones_are_ignored() -> None:
    twice = Record("t", 0, 0, 0, None, PNG, (("label", b"a"), ("trace", b"\xff"), ("label", b"b")))
    decoded = RecordDecoder(GREY, needs_label=True)(twice)
    assert isinstance(decoded, Example)
    assert decoded.label == "b"


def test_tombstones_are_skipped() -> None:
    tombstone = record(None, label=b"\xff")
    assert RecordDecoder(GREY, needs_label=True)(tombstone) == Skipped(tombstone, "tombstone")


def test_unlabelled_records_are_skipped_only_where_a_label_is_needed() -> None:
    unlabelled = record(b"no picture")
    assert RecordDecoder(GREY, needs_label=True)(unlabelled) == Skipped(unlabelled, "unlabelled")
    assert learned(record(PNG)).label is None


def test_what_is_requeued_for_one_model_is_skipped_by_the_others() -> None:
    ours = (("headrace-origin", b"digits:1:7"), ("headrace-for", "modèle".encode()))
    requeued = Record("t", 0, 0, 0, None, PNG, (*ours, ("label", b"a"), ("headrace-for", b"other")))
    example = RecordDecoder(GREY, needs_label=True, model="modèle")(requeued)
    assert isinstance(example, Example)
    assert (example.label, example.id) == ("a", "t:0:0")
    broken = replace(requeued, value=b"no picture")
    for model in ("other", "modele", ""):
        assert RecordDecoder(GREY, needs_label=True, model=model)(broken) == Skipped(broken, "requeued")
    assert isinstance(RecordDecoder(GREY, needs_label=True)(requeued), Example)  # whoever has no name
    assert isinstance(RecordDecoder(GREY, needs_label=False, model="m")(record(PNG, id=b"x")), Example)


def answer(value: bytes | None, key: bytes | None = None, *headers: tuple[str, bytes]) -> Record:
    return Record("answers", 0, 3, 0, key, value, headers)


def labels_of(one: Record, model: str | None = None) -> Example | Label | Skipped:
    return RecordDecoder(GREY, needs_label=True, model=model, labels="answers")(one)


def test_a_topic_of_labels_has_labels_with_the_id_of_their_record() -> None:
    by_key = answer("été".encode(), b"scan 1")
    assert labels_of(by_key) == Label(by_key, "été", "scan 1")
    by_header = answer(b"cat", b"\xff", ("id", b"scan-2"), ("label", b"ignored"))
    assert labels_of(by_header) == Label(by_header, "cat", "scan-2")
    assert labels_of(answer(None, b"scan-1")) == Skipped(answer(None, b"scan-1"), "tombstone")
    requeued = answer(b"cat", b"scan-1", ("headrace-origin", b"answers:0:1"), ("headrace-for", b"other"))
    assert labels_of(requeued, "m") == Skipped(requeued, "requeued")
    unlabelled = labels_of(record(PNG, id=b"scan-1"))
    assert isinstance(unlabelled, Example)
    assert (unlabelled.label, unlabelled.id) == (None, "scan-1")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (None, b"cat", "id"),
        (b"\xff", b"cat", "id"),
        (b"", b"cat", "id"),
        (b"a", b"\xff", "label"),
        (b"a", b"", "label"),
        (b"a", b"x" * 201, "label"),
    ],
)
def test_a_label_that_cannot_be_read_has_a_reason(key: bytes | None, value: bytes, reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        labels_of(answer(value, key))
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["label", "id"])
@pytest.mark.parametrize("raw", [b"", b" ", b"x" * 201, b"\xff", b"a\nb", b"a\x1b[1mb", b"a\x7f", "a\u2028b".encode()])
def test_labels_and_ids_are_1_to_200_characters_without_controls(name: str, raw: bytes) -> None:
    assert refused(record(PNG, **{name: raw})).reason == name


@pytest.mark.parametrize("name", ["label", "id"])
@pytest.mark.parametrize(
    "text",
    [
        "x" * 200,
        "é" * 200,
        "🦉",
        "a:b/c d",
        "می\u200cخواهم",
        "👩\u200d🌾",
        "10\u00a0km",
        "\u202bעברית\u202c",
        "🏴\U000e0067\U000e007f",
    ],
)
def test_labels_and_ids_are_taken_as_they_are(name: str, text: str) -> None:
    assert getattr(learned(record(PNG, **{name: text.encode()})), name) == text


@pytest.mark.parametrize("name", ["label", "id"])
@pytest.mark.parametrize("text", ["cafe\u0301", " café\n", "\ufeffcafé", "\u3000café\u00a0", "café\r\n"])
def test_labels_and_ids_that_look_the_same_are_the_same(name: str, text: str) -> None:
    assert getattr(learned(record(PNG, **{name: text.encode()})), name) == "café"


@pytest.mark.parametrize("text", ["한국어", "Việt Nam", "Ελλάδα", "café"])
def test_texts_that_look_the_same_are_the_same(text: str) -> None:
    forms = [unicodedata.normalize(form, text).encode() for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    one, other = (learned(record(form), TextInput(max_chars=16)).x for form in forms)
    assert one.tolist() == other.tolist() == [*map(ord, text), *[0] * (16 - len(text))]


@pytest.mark.parametrize("marks", ["\u0301\u0316", "\u0316", "\u0344"])
def test_no_text_has_marks_without_end(marks: str) -> None:
    """Composing them takes time that goes with their square: seven minutes for a megabyte."""
    few, many = (f"ab{marks * (number // len(marks))}" for number in (MARKS, MARKS + 2))
    for text in (few, 9 * few, "x" * 100 + few):
        assert input_array(text, TextInput(max_chars=4000)).shape == (4000,)
    for text in (many, "x" * 999 + many, many + few):
        with pytest.raises(RecordError, match="undecodable: more than 256 combining marks"):
            input_array(text, TextInput(max_chars=4000))
        with pytest.raises(RecordError, match="label: more than 256 combining marks"):
            name_of("label", text)


@pytest.mark.parametrize("kind", [b"image/png", b"IMAGE/x-anything", b"application/octet-stream", b"image/jpeg; q=1"])
def test_content_types_that_agree_with_pictures(kind: bytes) -> None:
    learned(record(PNG, content_type=kind))


@pytest.mark.parametrize("kind", [b"text/plain", b"application/json", b"", b"image", b"\xff"])
def test_content_types_that_do_not(kind: bytes) -> None:
    assert refused(record(PNG, content_type=kind)).reason == "content-type"


@pytest.mark.parametrize(
    ("kind", "fine"),
    [
        (b"text/plain", True),
        (b"text/markdown; Charset=UTF-8", True),
        (b'text/plain;charset="utf-8"; format=flowed', True),
        (b"text/plain; charset=us-ascii", True),
        (b"application/octet-stream", True),
        (b"text/plain; charset=iso-8859-1", False),
        (b"image/png", False),
    ],
)
def test_content_types_of_texts(kind: bytes, fine: bool) -> None:
    if fine:
        learned(record(b"abc", content_type=kind), TEXT)
    else:
        assert refused(record(b"abc", content_type=kind), TEXT).reason == "content-type"


def test_a_text_is_code_points_cut_and_padded() -> None:
    x = text_array("aé漢🦉".encode(), TEXT)
    assert x.tolist() == [0x61, 0xE9, 0x6F22, 0x1F989, 0, 0, 0, 0]
    assert x.dtype == np.int32
    assert text_array(b"123456789", TEXT).tolist() == [ord(c) for c in "12345678"]


def test_a_byte_order_mark_is_dropped_and_nothing_else() -> None:
    assert text_array(b"\xef\xbb\xbf a\n", TEXT).tolist() == [0x20, 0x61, 0x0A, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"caf\xe9", "undecodable"),
        (b"a\0b", "undecodable"),
        ("\ud800", "undecodable"),
        (b"x" * 101, "too-large"),
        ("é" * 51, "too-large"),
    ],
)
def test_texts_that_are_refused(content: bytes | str, reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        text_array(content, TEXT)
    assert caught.value.reason == reason


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8))
def test_texts_round_trip(text: str) -> None:
    expected = unicodedata.normalize("NFC", text.removeprefix("\ufeff"))[: TEXT.max_chars]  # some grow by it
    if expected:
        assert "".join(map(chr, text_array(text, TEXT))).rstrip("\0") == expected


@given(st.binary(max_size=64))
def test_any_bytes_are_a_text_or_refused(raw: bytes) -> None:
    with suppress(RecordError):
        x = text_array(raw, TEXT)
        assert x.shape == (8,)
        assert x.dtype == np.int32


@given(st.lists(st.tuples(st.sampled_from(["label", "id", "content-type", "x"]), st.binary(max_size=210))))
def test_any_headers_give_an_example_or_a_record_error(headers: list[tuple[str, bytes]]) -> None:
    hostile = Record("t", 0, 0, 0, None, PNG, tuple(headers))
    with suppress(RecordError):
        assert isinstance(RecordDecoder(GREY, needs_label=False)(hostile), Example)


@pytest.fixture
def decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a user's module and loads its function `decode`."""

    def load(source: str) -> RecordDecoder:
        name = f"decoders_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(source, "utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        [function] = re.findall(r"^def (\w+)\(record", source, re.M)
        return RecordDecoder(GREY, needs_label=False, decode=load_decoder(f"{name}:{function}"))

    return load


PAGE = (Path(__file__).parents[2] / "docs" / "publish.md").read_text("utf-8")


def test_the_documented_json_decoder(decoder: Any) -> None:
    source = PAGE.split('from_json"`')[1].split("```python\n")[1].split("```")[0]
    value = json.dumps({"image": base64.b64encode(PNG).decode(), "label": "seven"}).encode()
    example = decoder(source)(record(value))
    assert example.label == "seven"
    assert (example.x == 7).all()


ODD = """
from PIL import Image
from pipeline.errors import RecordError
from pipeline.records import Payload
class Untold(Exception):
    def __str__(self): raise ValueError
class Closed(Image.Image):
    size = (9, 9)
    def load(self): raise ZeroDivisionError("of its own")
class Odd(Payload):
    @property
    def content(self): raise LookupError("no content")
    @content.setter
    def content(self, _): pass
"""


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("return record.value['image']", "TypeError: "),
        ("raise KeyError('image')", "KeyError: 'image'"),
        ("return None", "did not give a Payload of the right types: None"),
        ("return Payload(record.value, label=7)", "did not give a Payload of the right types: Payload"),
        ("return Payload('a text')", "reads pictures"),
        ("return Payload(Image.new('L', (32, 32)).crop((5, 3, 5, 20)))", "gave a picture of 0×17 pixels"),
        ("return Payload(Image.new('RGB', (9, 0)))", "gave a picture of 9×0 pixels"),
        ("return Payload(Closed())", "gave a picture that cannot be read: ZeroDivisionError: of its own"),
        ("return Payload(bytearray(record.value))", "did not give a Payload of the right types"),
        ("raise SystemExit(3)", "raised SystemExit: 3"),
        ("raise Untold", "raised Untold"),
        ("raise StopIteration", "raised StopIteration"),
        ("return decode(record)", "raised RecursionError"),
        ("raise RecordError('box-' + str(record.offset), 'no')", "box-42: no"),
        ("raise RecordError(None, None)", "None: None"),
        ("return Odd(record.value)", "raised LookupError: no content"),
    ],
)
def test_what_a_users_decoder_does_wrong_ends_the_record_only(decoder: Any, body: str, detail: str) -> None:
    source = f"{ODD}\ndef decode(record):\n    {body}\n"
    with pytest.raises(RecordError, match=detail) as caught:
        decoder(source)(record(PNG))
    assert caught.value.reason == "decoder"


@pytest.mark.parametrize(
    ("reason", "counted_as", "detail"),
    [("empty", "empty", "no"), ("one of its own", "decoder", "one of its own: no")],  # a reason is a metric's series
)
def test_a_users_decoder_may_refuse_a_record_itself(decoder: Any, reason: str, counted_as: str, detail: str) -> None:
    source = f"from pipeline.errors import RecordError\ndef decode(record):\n    raise RecordError({reason!r}, 'no')\n"
    with pytest.raises(RecordError) as caught:
        decoder(source)(record(PNG))
    assert (caught.value.reason, caught.value.detail) == (counted_as, detail)


def test_a_users_decoder_may_give_a_pil_image() -> None:
    decode = RecordDecoder(GREY, needs_label=False, decode=lambda _: Payload(Image.new("L", (28, 28), 9)))
    example = decode(record(b"?"))
    assert isinstance(example, Example)
    assert (example.x == 9).all()
    with pytest.raises(RecordError, match="decoder: gave a picture"):
        input_array(Image.new("L", (1, 1)), TEXT)


@pytest.mark.parametrize("path", ["no_such_module:f", "json:no_such", "json", ":x", "json:__name__"])
def test_decoders_that_are_not_there(path: str) -> None:
    with pytest.raises(ConfigError, match="decoder = "):
        load_decoder(path)


def test_every_reason_is_in_the_table() -> None:
    """The slugs that the sources raise are the slugs that the docstring explains."""
    import inspect

    from pipeline import images, texts

    raised = set()
    for module in (records, images, texts):
        raised |= set(re.findall(r'RecordError\(\s*"([a-z-]+)"', inspect.getsource(module)))
        raised |= set(re.findall(r'(?:_text|_utf8|name_of)\(\w*,? ?"([a-z-]+)"', inspect.getsource(module)))
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", str(records.__doc__).split("| reason |")[1], re.M))
    assert raised == documented == {*records.REASONS}
