"""How a picture becomes (C, H, W) uint8: one function, the same in worker and sampler.

Six formats are read: PNG, JPEG, WebP, GIF, BMP, TIFF. They are told by their first bytes, and nothing else of
Pillow is reachable: some of its other formats start programs. `containers.py` bounds what a file can ask of a decoder.

| what arrives | what it becomes |
|---|---|
| more than `max_bytes` or `max_pixels` | refused: too-large, before a pixel is decoded |
| truncated or damaged | refused: undecodable |
| animated, or of several pages | its first frame (APNG: its default picture) |
| 16 bits a channel | the high byte: 0xFFFF is 255 |
| 32-bit integers or floats, CIELAB | refused: undecodable, for their range is not known |
| 1 bit | 0 and 255 |
| palette, CMYK, YCbCr | its colours as RGB; profiles are not applied |
| orientation, in EXIF or XMP | turned upright |
| alpha, or a transparent colour | the fourth channel if `channels` is 4, else laid over `background` |
| no alpha, `channels` = 4 | opaque |
| colour, `channels` = 1 | luma (ITU-R 601) |

`fit`: "resize" stretches to (H, W); "crop" cuts the centre out in the shape of (H, W); "letterbox" keeps all
and fills up with `background` (transparent where alpha is a channel). Resampling is bilinear, with
antialiasing. A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that still is twice (H, W).
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from pydantic import AfterValidator, Field

from pipeline.containers import Picture, unpacked
from pipeline.errors import RecordError
from pipeline.inputs import Content, Input, error_text

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width
BAND = 1 << 20  # pixels that change their colours at one time
# What Pillow's readers raise on damaged files. `Warning`: for processes that make errors of warnings.
# `MemoryError`: a header can ask for any amount, and one record must not stop the worker at every restart.
DAMAGE = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    struct.error,
    zlib.error,
)


def _size(value: int | tuple[int, int]) -> tuple[int, int]:
    size = value if isinstance(value, tuple) else (value, value)
    if min(size) < 1:
        raise ValueError("give at least 1 pixel, or [height, width]")
    return size


class ImageInput(Input):
    """How a picture becomes (C, H, W) uint8."""

    media = "image/*"
    dtype = "uint8"
    decoders = 2

    kind: Literal["image"] = "image"
    size: Annotated[int | tuple[int, int], AfterValidator(_size)] = 28  # H, W in pixels
    channels: Literal[1, 3, 4] = 3  # grey, RGB, RGBA
    fit: Literal["resize", "crop", "letterbox"] = "letterbox"
    background: int = Field(0, ge=0, le=255)  # behind letterboxes, and behind alpha where it is not a channel
    max_bytes: int = Field(10 << 20, ge=1)
    max_pixels: int = Field(40_000_000, ge=1)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)"""
        height, width = _size(self.size)
        return (self.channels, height, width)

    def array(self, content: Content, *, whole: bool = False) -> NDArray[np.uint8]:
        if isinstance(content, str):
            raise RecordError("decoder", "gave a text, and the model reads pictures. Give bytes or a PIL image.")
        return _opened_array(content, self) if isinstance(content, Image.Image) else image_array(content, self)


def image_array(content: bytes | Image.Image, input: ImageInput) -> NDArray[np.uint8]:
    """The picture as (C, H, W) uint8, contiguous; it may be read-only.

    Raises:
        RecordError: "too-large" or "undecodable".
    """
    try:
        image, orientation = _loaded(content, input)
        image = _coloured(image, input)
        if orientation in TURNS:
            image = image.transpose(TURNS[orientation])
        image = _fitted(image, input)
        pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)  # (H, W, C)
    except Image.DecompressionBombError as error:
        raise RecordError("too-large", f"{error}") from None
    except DAMAGE as error:
        raise RecordError("undecodable", f"the picture cannot be read ({type(error).__name__}: {error}).") from None
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _opened_array(image: Image.Image, input: ImageInput) -> NDArray[np.uint8]:
    """As `image_array`, of a picture that foreign code has made: of any class, size, and state."""
    try:
        if min(image.size) < 1:
            raise RecordError("decoder", f"gave a picture of {image.width}×{image.height} pixels.")
        return image_array(image, input)
    except RecordError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever its methods do
        raise RecordError("decoder", f"gave a picture that cannot be read: {error_text(error)}.") from None


def upright_size(content: bytes, input: ImageInput) -> tuple[int, int]:
    """Height and width of a picture as it is looked at, from its header alone.

    Raises:
        RecordError: "too-large" or "undecodable".
    """
    picture = unpacked(content, input.max_bytes, input.max_pixels)
    size = picture.height, picture.width
    return size if picture.orientation not in SIDEWAYS else size[::-1]


def _loaded(content: bytes | Image.Image, input: ImageInput) -> tuple[Image.Image, int]:
    """The picture with its pixels, and its orientation."""
    if isinstance(content, Image.Image):  # a user's own decoder has opened it
        if content.width * content.height > input.max_pixels:
            size = f"{content.width}×{content.height} pixels"
            raise RecordError("too-large", f"{size}, over max_pixels = {input.max_pixels}.")
        content.load()
        return content, content.getexif().get(ORIENTATION, 1) if "exif" in content.info else 1
    picture = unpacked(content, input.max_bytes, input.max_pixels)
    # Not Image.open: it tries formats in turn, and warns of large pictures before our bound is asked.
    image = picture.opener(io.BytesIO(picture.content))
    if image.size != (picture.width, picture.height):
        raise RecordError("undecodable", "the picture says two sizes.")
    if image.mode in ("I", "F"):
        raise RecordError("undecodable", f"a picture of mode {image.mode} has no known range. Publish 8 or 16 bits.")
    if isinstance(image, JpegImageFile):
        longest = 2 * max(input.shape)  # of both sides, for the orientation may swap them
        if min(image.size) >= 2 * longest:
            image.draft(None, (longest, longest))
    image.load()
    if isinstance(image, PngImageFile) and "transparency" in image.info:
        _exactly_transparent(image, picture)
    return image, picture.orientation


def _exactly_transparent(image: PngImageFile, picture: Picture) -> None:
    """A colour that is transparent has the bits of the file, where Pillow's pixels have eight."""
    key = image.info["transparency"]
    if picture.depth < 8 and image.mode in ("1", "L"):
        most = 2**picture.depth - 1
        image.info["transparency"] = (key & most) * 255 // most
    elif picture.depth == 16 and isinstance(key, tuple):
        del image.info["transparency"]
        low = PngImageFile(io.BytesIO(picture.content))  # big-endian, so that this takes the other byte
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
        low.load()
        bands = [(band, value >> 8) for band, value in zip(image.split(), key, strict=True)]
        bands += [(band, value & 255) for band, value in zip(low.split(), key, strict=True)]
        same = np.logical_and.reduce([np.asarray(band) == value for band, value in bands])  # (H, W)
        image.putalpha(Image.fromarray(np.where(same, 0, 255).astype(np.uint8)))


def _coloured(image: Image.Image, input: ImageInput) -> Image.Image:
    """The picture in the mode of the model's channels; in bands, so that a large one is not there several times."""
    mode = MODES[input.channels]
    if image.mode == mode and "transparency" not in image.info:
        return image
    rows = max(1, BAND // max(1, image.width))
    if rows >= image.height:
        return _recoloured(image, mode, input.background)
    result = Image.new(mode, image.size)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(_recoloured(band, mode, input.background), (0, top))
    return result


def _recoloured(image: Image.Image, mode: str, background: int) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _high_byte(image)
    elif image.mode in ("I", "F"):
        raise RecordError("undecodable", f"a picture of mode {image.mode} has no known range. Publish 8 or 16 bits.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if mode != "RGBA":
            behind = Image.new("RGBA", image.size, (*[background] * 3, 255))
            image = Image.alpha_composite(behind, image)
    return image.convert(mode)


def _high_byte(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey, as Pillow reads 16-bit colours; its own conversion of grey clips."""
    values = np.asarray(image)  # (H, W) uint16
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")  # PNG: this very value
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _fitted(image: Image.Image, input: ImageInput) -> Image.Image:
    """The picture in the model's size."""
    _, height, width = input.shape
    if image.size == (width, height):
        return image
    if input.fit == "resize":
        return image.resize((width, height), Image.Resampling.BILINEAR)
    if input.fit == "crop":
        scale = min(image.width / width, image.height / height)  # source pixels per pixel
        left = max(0.0, (image.width - width * scale) / 2)
        top = max(0.0, (image.height - height * scale) / 2)
        box = (left, top, image.width - left, image.height - top)
        return image.resize((width, height), Image.Resampling.BILINEAR, box)
    scale = min(width / image.width, height / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    border = (*[input.background] * 3, 0)
    canvas = Image.new(image.mode, (width, height), border[: input.channels])
    corner = ((width - inner[0]) // 2, (height - inner[1]) // 2)
    canvas.paste(image.resize(inner, Image.Resampling.BILINEAR), corner)
    return canvas
