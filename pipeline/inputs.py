"""What a kind of record has: how it is configured, and how a record becomes an array.

A kind is a subclass of `Input` in a file of its own, and a row in `pipeline.records.KINDS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

Content = bytes | str | Image.Image  # of a record: its value, or what a decoder made of it


class Input(BaseModel, ABC):
    """How a record becomes an array. Kept in the manifest; the same in worker and sampler."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str  # as the configuration and a learner's blueprint name it
    max_bytes: int  # of a record's value
    media: ClassVar[str]  # what a content type must match, such as "image/*"
    dtype: ClassVar[str]  # of the array
    is_cut: ClassVar[bool] = False  # whether of a record that is too long the beginning is read
    decoders: ClassVar[int] = 1  # records that a sampler decodes at one time: bounds the memory that they take

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the array."""

    @abstractmethod
    def array(self, content: Content, *, whole: bool = False) -> NDArray[Any]:
        """The record as an array; one that `is_cut` is longer where the `whole` is asked for.

        Raises:
            RecordError: with a reason of the table in `pipeline.records`.
        """


def error_text(error: BaseException) -> str:
    """What foreign code raised, for people."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - of an error that cannot even be written
        return type(error).__name__
