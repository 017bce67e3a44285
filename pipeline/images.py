"""How a picture becomes (C, H, W) uint8: one function, the same in worker and sampler.

Six formats are read: PNG, JPEG, WebP, GIF, BMP, TIFF. They are told by their first bytes, and nothing else of
Pillow is reachable: some of its other formats start programs.

| what arrives | what it becomes |
|---|---|
| more than `max_bytes` or `max_pixels` | refused: too-large, before a pixel is decoded |
| truncated or damaged | refused: undecodable |
| animated, or of several pages | its first frame (APNG: its default picture) |
| 16 bits a channel | the high byte: 0xFFFF is 255 |
| 32-bit integers or floats, CIELAB | refused: undecodable, for their range is not known |
| 1 bit | 0 and 255 |
| palette, CMYK, YCbCr | its colours as RGB; profiles are not applied |
| EXIF orientation | turned upright |
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
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.errors import RecordError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

    from pipeline.config import ImageInput

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
OPENERS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"RIFF", WebPImageFile),
    (b"GIF8", GifImageFile),
    (b"BM", BmpImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
)
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


def image_array(content: bytes | Image.Image, input: ImageInput) -> NDArray[np.uint8]:
    """The picture as (C, H, W) uint8, contiguous; it may be read-only.

    Raises:
        RecordError: "too-large" or "undecodable".
    """
    try:
        image = content if isinstance(content, Image.Image) else _opened(content, input.max_bytes)
        if image.width * image.height > input.max_pixels:
            size = f"{image.width}×{image.height} pixels"
            raise RecordError("too-large", f"{size}, over max_pixels = {input.max_pixels}.")
        if isinstance(image, JpegImageFile) and image is not content:
            longest = 2 * max(input.shape)  # of both sides, for the orientation may swap them
            image.draft(None, (longest, longest))
        image.load()
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1)) if "exif" in image.info else None
        coloured = _coloured(image, input)
        upright = coloured if turn is None else coloured.transpose(turn)
        pixels = np.asarray(_fitted(upright, input))  # (H, W) or (H, W, C)
    except Image.DecompressionBombError as error:
        raise RecordError("too-large", f"{error}") from None
    except DAMAGE as error:
        raise RecordError("undecodable", f"the picture cannot be read ({type(error).__name__}: {error}).") from None
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _opened(content: bytes, max_bytes: int) -> Image.Image:
    """The picture with its header read and its pixels not yet decoded."""
    if len(content) > max_bytes:
        raise RecordError("too-large", f"{len(content)} bytes, over max_bytes = {max_bytes}.")
    for magic, opener in OPENERS:
        if content.startswith(magic):
            # Not Image.open: it tries formats in turn, and warns of large pictures before our bound is asked.
            return opener(io.BytesIO(content))
    raise RecordError("undecodable", "by its first bytes neither PNG, JPEG, WebP, GIF, BMP nor TIFF.")


def _coloured(image: Image.Image, input: ImageInput) -> Image.Image:
    """The picture in the mode of the model's channels."""
    mode = MODES[input.channels]
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        image = _high_byte(image)
    elif image.mode in ("I", "F"):
        raise RecordError("undecodable", f"a picture of mode {image.mode} has no known range. Publish 8 or 16 bits.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if mode != "RGBA":
            background = Image.new("RGBA", image.size, (*[input.background] * 3, 255))
            image = Image.alpha_composite(background, image)
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
