"""What the sampler answers, as it and its clients know it: one shape for each kind of answer."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, WithJsonSchema


def _decoded(value: bytes | str) -> bytes:
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


Png = Annotated[
    bytes,
    BeforeValidator(_decoded),
    PlainSerializer(lambda value: base64.b64encode(value).decode(), str, when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}),
]


BODY = {"images", "label", "text"}  # what headers do not carry


class VersionInfo(BaseModel):
    """Which version answers, and how new it is."""

    model: str
    version: int
    digest: str = Field(description="SHA-256 of the version's manifest")
    watermark: dict[str, dict[int, int]] = Field(description="topic → partition → the next offset to be read")
    freshness_s: float | None = Field(None, description="age of the newest learned record; an idle topic is no alarm")
    lag_records: int | None = Field(None, description="records that waited when the version was made")

    def headers(self) -> dict[str, str]:
        """The same facts as headers, for answers that are not JSON. What the body carries is left out."""
        values = self.model_dump(mode="json", exclude_none=True, exclude=BODY)
        return {_header(name): value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}

    @classmethod
    def described(cls) -> dict[str, Any]:
        """OpenAPI: these headers."""
        fields = {name: field for name, field in cls.model_fields.items() if name not in BODY}
        return {
            _header(name): {"schema": {"type": "string"}, "description": field.description or name}
            for name, field in fields.items()
        }

    @classmethod
    def parsed(cls, headers: Mapping[str, str], **body: Any) -> Self:
        """Builds the answer from its headers and from what its body carried.

        Raises:
            ValidationError: they do not say it.
        """
        said = {name: headers[_header(name)] for name in cls.model_fields if _header(name) in headers}
        values = {name: json.loads(value) if value.startswith(("{", "[")) else value for name, value in said.items()}
        return cls.model_validate({**values, **body})


def _header(name: str) -> str:
    return f"X-Headrace-{name.replace('_', '-').title()}"


class Classified(VersionInfo):
    """One record, classified."""

    label: str | None = Field(description="the most probable class; null before any class was learned")
    probability: float | None
    probabilities: dict[str, float] = Field(description="by class, the most probable first")


class Recognised(Classified):
    """One record, recognised: `label` and `probability` are null where it resembles none of the classes."""

    unknown: bool


class WeighedPart(BaseModel):
    """A part of a text."""

    text: str
    weight: float = Field(description="how much it speaks for the class; below 0: against it")


class Explained(VersionInfo):
    """Why a record is taken to be of a class: how much each part of it speaks for that, or against it."""

    label: str
    probability: float
    method: Literal["occlusion", "left-out", "exact"] = Field(
        description="the log-odds that are lost without the part, or what exactly the part adds to the class's score"
    )
    heat: list[list[float]] | None = Field(description="of a picture: rows of cells; above 0 a cell speaks for it")
    image: Png | None = Field(description="the picture with the heat over it: orange for the class, blue against it")
    parts: list[WeighedPart] | None = Field(description="of a text: its parts, in their order")


class Neighbour(BaseModel):
    """A record that was learned."""

    distance: float
    label: str | None
    position: str | None = Field(description="topic:partition:offset")
    image: Png | None
    text: str | None


class Nearest(VersionInfo):
    """The learned records that are nearest to a record, of those that the version keeps."""

    records: list[Neighbour] = Field(description="the nearest first")
    kept: int = Field(description="records that the version keeps")
    compared: int = Field(description="of these: where they are too many, some are left out")
    spacing: float | None = Field(description="of a model that draws: the mean distance of the next 50")
    is_copy: bool | None = Field(description="of a model that draws: whether it is at less than half of that")


class Pictures(VersionInfo):
    """One picture or several."""

    images: list[Png] = Field(description="PNG files in base64")


class Drawn(Pictures):
    """What was drawn. Image i of a seed and label is the same, whatever n is and whatever else is asked."""

    seed: int
    label: str | None = None


class Interpolated(Drawn):
    """The way from image 0 of one seed to image 0 of another."""

    to: int


class Strip(Drawn):
    """The same codes drawn by many versions: image i by each version, then image i + 1."""

    versions: list[int]


class Code(VersionInfo):
    """A picture's latent code, as its posterior distribution."""

    label: str | None = None
    mean: list[float]
    std: list[float]


class Written(VersionInfo):
    """New texts. Text i of a seed is the same, whatever n is."""

    seed: int
    texts: list[str]


class Completed(VersionInfo):
    """What follows a prompt."""

    seed: int
    text: str


class PublishedRecord(BaseModel):
    """Where a record is in the log, and by which name."""

    position: str = Field(description="topic:partition:offset")
    id: str


class Published(BaseModel):
    """What the log has acknowledged."""

    topic: str
    records: list[PublishedRecord] = Field(description="in the order in which they were sent")
    after: list[str] = Field(description="the last position of each partition, for the parameter of that name")
