"""What a request carries: a record, or a picture of any size with the mask of what is missing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

from consumers.sampler.gate import refusal
from pipeline.errors import RecordError
from pipeline.images import ImageInput, image_array, upright_size

if TYPE_CHECKING:
    import numpy as np
    from fastapi import Request
    from numpy.typing import NDArray
    from starlette.datastructures import FormData

FORM = "application/x-www-form-urlencoded"
FIELDS = re.compile(rb"(?:[\w*.+-]|%[0-9A-Fa-f]{2})+=(?:[\w*.+&=-]|%[0-9A-Fa-f]{2})*")  # no text with a space is one
MIN_SIDE = 16  # pixels: what restorers and restylers take
MISSING = 128  # of a mask: this bright or brighter
#: OpenAPI: what `payload` and `picture_and_mask` read
INPUTS: dict[str, Any] = {"image/*": {}, "text/plain": {}, "application/json": {}, FORM: {}, "multipart/form-data": {}}
PICTURE: dict[str, Any] = {"image/*": {}, "multipart/form-data": {}}


class _TextBody(BaseModel):
    text: str


async def payload(request: Request) -> tuple[bytes | str, str | None]:
    """The payload of a request and its content type, if it is one that says something about the payload.

    `curl --data-binary @file` calls every body a form; so one is taken for that only if it is written as one.

    Raises:
        HTTPException: 400 or 422 where there is none.
    """
    body = await _body(request, 1)
    if not isinstance(body, bytes):
        for value in body.values():
            return value, None
        raise refusal(422, "invalid", "The form is empty. Send one field, image or text.")
    if media_of(request) == FORM and FIELDS.fullmatch(body):
        return _field(body), None
    if media_of(request) == "application/json":
        try:
            return _TextBody.model_validate_json(body).text, None
        except ValidationError as error:
            first: Any = error.errors()[0]
            raise refusal(422, "invalid", f'{first["msg"]}. Send {{"text": "…"}}.') from None
    said = media_of(request).startswith(("image/", "text/"))
    return body, request.headers["content-type"] if said else None


def _field(form: bytes) -> bytes:
    """The value of the one field of a urlencoded form.

    Raises:
        HTTPException: 422 where it has several.
    """
    _, _, value = form.partition(b"=")
    if b"&" in value:
        raise refusal(422, "invalid", "The form has several fields. Send one, image or text.")
    return unquote_to_bytes(value.replace(b"+", b" "))


async def picture_and_mask(request: Request) -> tuple[bytes, bytes | None]:
    """The files `image` and `mask` of a form, or the body itself as the picture.

    Raises:
        HTTPException: 400 or 422 where there is none.
    """
    body = await _body(request, 2)
    if isinstance(body, bytes):
        return body, None
    image, mask = body.get("image"), body.get("mask")
    if not isinstance(image, bytes) or not isinstance(mask, bytes | None) or body.keys() - {"image", "mask"}:
        raise refusal(422, "invalid", "Send a form with a file `image` and, if something is missing, a file `mask`.")
    return image, mask


def of_any_size(
    content: bytes, mask: bytes | None, input: ImageInput, max_side: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """The picture (C, H, W) uint8 upright at its own size, and what is missing (1, H, W) bool.

    Args:
        input: of the model: how a picture is read; its size does not count.
        max_side: of the longer side in pixels; what is larger is scaled down.

    Raises:
        RecordError: "too-large", "too-small" or "undecodable".
    """
    height, width = upright_size(content, input)
    scale = min(1.0, max_side / max(width, height))
    size = (round(height * scale), round(width * scale))
    if min(size) < MIN_SIDE:
        shown = f"{width}×{height} pixels" + (f", scaled down to {size[1]}×{size[0]}" if scale < 1 else "")
        raise RecordError("too-small", f"{shown}: both sides need at least {MIN_SIDE}.")
    x = image_array(content, input.model_copy(update={"size": size}))
    if mask is None:
        return x, None
    plain = ImageInput(size=size, channels=1, fit="resize", max_bytes=input.max_bytes, max_pixels=input.max_pixels)
    return x, image_array(mask, plain) >= MISSING


async def _body(request: Request, fields: int) -> bytes | dict[str, bytes | str]:
    """The body, or the fields of the form that it is: files are bytes."""
    if media_of(request) != "multipart/form-data":
        return await request.body()
    async with request.form(max_files=fields, max_fields=fields) as form:
        return await _fields(form)


async def _fields(form: FormData) -> dict[str, bytes | str]:
    return {name: await value.read() if isinstance(value, UploadFile) else value for name, value in form.multi_items()}


def media_of(request: Request) -> str:
    """The content type that a request names, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
