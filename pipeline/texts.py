"""How a text becomes (L,) int32, the same in worker and sampler. `pipeline.records` says what is refused."""

from __future__ import annotations

import unicodedata
from itertools import groupby, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from pipeline.errors import RecordError
from pipeline.inputs import Content, Input

BYTE_ORDER_MARK = "\ufeff"
MARKS = 256  # combining ones in a row: composing more takes time that goes with their square


class TextInput(Input):
    """How a text becomes (L,) int32 Unicode code points, zero-padded. Of what is longer than `max_chars` most learners
    read the beginning."""

    media = "text/*"
    dtype = "int32"
    is_cut = True

    kind: Literal["text"] = "text"
    max_chars: int = Field(2000, ge=1)
    max_bytes: int = Field(1 << 20, ge=1)

    @property
    def shape(self) -> tuple[int, ...]:
        """(L,)"""
        return (self.max_chars,)

    def array(self, content: Content, *, whole: bool = False) -> NDArray[np.int32]:
        if isinstance(content, Image.Image):
            raise RecordError("decoder", "gave a picture, and the model reads texts. Give bytes or a str.")
        return text_array(content, self, whole=whole)


def text_array(content: bytes | str, input: TextInput, *, whole: bool = False) -> NDArray[np.int32]:
    """Unicode code points (L,) int32, zero-padded; of a longer text the beginning, or the `whole`.

    Raises:
        RecordError: "too-large", "undecodable" or "empty".
    """
    try:
        raw = content.encode() if isinstance(content, str) else content
        if len(raw) > input.max_bytes:
            raise RecordError("too-large", f"{len(raw)} bytes, over max_bytes = {input.max_bytes}.")
        text = composed(raw.decode().removeprefix(BYTE_ORDER_MARK))
    except UnicodeError as error:
        raise RecordError("undecodable", f"not UTF-8: {error}.") from None
    if not text:
        raise RecordError("empty", "a text without characters.")
    if "\0" in text:
        raise RecordError("undecodable", "the text holds U+0000, which fills up short texts.")
    points = np.frombuffer((text if whole else text[: input.max_chars]).encode("utf-32-le"), "<i4")
    padded = np.zeros(max(len(points), input.max_chars), np.int32)
    padded[: len(points)] = points
    return padded


def utf8(text: str) -> bytes:
    """
    Raises:
        RecordError: it holds half a character.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode()
        raise RecordError("undecodable", f"the text holds half a character ({half}). Write it whole.") from None


def composed(text: str) -> str:
    """The one form of all texts that look like this one: Unicode's NFC.

    Raises:
        RecordError: "undecodable": no text has so many marks on one letter.
    """
    step = MARKS // 2
    few = list(map(unicodedata.combining, text[::step]))  # of more in a row two are among these, side by side
    if any(map(all, pairwise(few))):
        runs = groupby(text, lambda char: unicodedata.combining(char) > 0)
        if any(are_marks and sum(1 for _ in run) > MARKS for are_marks, run in runs):
            raise RecordError("undecodable", f"more than {MARKS} combining marks in a row. Leave them out.")
    return unicodedata.normalize("NFC", text)
