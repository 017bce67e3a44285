"""No picture costs more than its pixels may, whatever its file asks for; and what is left out changes no pixel."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.containers import DECODING, unpacked
from pipeline.errors import RecordError
from pipeline.images import ImageInput, image_array
from tests.pipeline.bombs import LARGEST, READ, REFUSED, UNBOUNDED, chunk, png

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)  # (H, W, 3)
INPUT = ImageInput(size=(6, 8))
Made = Callable[[], bytes]


@pytest.mark.parametrize("made", [pytest.param(made, id=name) for name, made in REFUSED.items()])
def test_what_asks_for_more_than_its_pixels_is_refused_before_it_is_decoded(made: Made) -> None:
    with pytest.raises(RecordError) as caught:
        unpacked(made(), INPUT.max_bytes, INPUT.max_pixels)
    assert caught.value.reason == "too-large"


@pytest.mark.parametrize("made", [pytest.param(made, id=name) for name, made in UNBOUNDED.items()])
def test_what_nobody_can_bound_is_refused_by_name(made: Made) -> None:
    with pytest.raises(RecordError, match="Publish it") as caught:
        image_array(made(), INPUT)
    assert caught.value.reason == "undecodable"


BOUNDED = """
import resource, sys
from pipeline.images import ImageInput
from pipeline.errors import RecordError
from pipeline.images import image_array

content = sys.stdin.buffer.read()
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
most = now + len(content) + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (most, most))
image_array(content, ImageInput(size=28))
"""
SPARE = 64 << 20  # bytes: threads' stacks and whatever else libraries take once


def in_memory(content: bytes, most: int) -> None:
    """Reads the picture in a process that gets so many bytes for it."""
    command = [sys.executable, "-c", BOUNDED, str(most + SPARE)]
    done = subprocess.run(command, input=content, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-500:]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("made", [pytest.param(made, id=name) for name, made in LARGEST.items()])
def test_the_largest_pictures_take_the_memory_that_they_may(made: Made) -> None:
    in_memory(made(), DECODING * ImageInput().max_pixels)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("made", [pytest.param(made, id=name) for name, made in READ.items()])
def test_nothing_beside_pixels_is_unpacked(made: Made) -> None:
    in_memory(made(), 8 << 20)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_a_large_profile_is_no_reason_to_refuse_a_png() -> None:
    content = encoded(Image.fromarray(COLOURS), "PNG", icc_profile=RNG.bytes(1_500_000))
    np.testing.assert_array_equal(image_array(content, INPUT), COLOURS.transpose(2, 0, 1))


def texts() -> PngInfo:
    info = PngInfo()
    for number in range(20):
        info.add_text(f"key {number}", "text " * 100, zip=number % 2 == 0)
        info.add_itxt(f"other {number}", "text")
    return info


SAVED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "png with texts": ("RGB", "PNG", {"pnginfo": texts(), "dpi": (300, 300), "icc_profile": b"x" * 999}),
    "png, animated": ("RGB", "PNG", {"save_all": True, "append_images": [Image.new("RGB", (8, 6))]}),
    "png, palette": ("P", "PNG", {"transparency": 3}),
    "jpeg": ("RGB", "JPEG", {"icc_profile": b"x" * 200_000, "comment": b"a comment", "dpi": (300, 300)}),
    "jpeg, progressive": ("RGB", "JPEG", {"progressive": True}),
    "jpeg, restarts": ("RGB", "JPEG", {"restart_marker_blocks": 1}),
    "jpeg, CMYK": ("CMYK", "JPEG", {"icc_profile": b"x" * 999}),
    "jpeg, RGB": ("RGB", "JPEG", {"keep_rgb": True}),
    "webp": ("RGBA", "WEBP", {"icc_profile": b"x" * 999, "lossless": True}),
    "gif": ("P", "GIF", {"transparency": 3, "comment": b"a comment" * 99}),
    "gif, animated": ("P", "GIF", {"save_all": True, "append_images": [Image.new("P", (8, 6), 9)], "disposal": 2}),
    "bmp": ("RGB", "BMP", {"dpi": (300, 300)}),
    "tiff": ("RGB", "TIFF", {"description": "x" * 9999, "icc_profile": b"x" * 999, "dpi": (300, 300)}),
    "tiff, pages": ("RGB", "TIFF", {"save_all": True, "append_images": [Image.new("RGB", (8, 6))]}),
    "tiff, LZW": ("RGBA", "TIFF", {"compression": "tiff_lzw"}),
    "tiff, JPEG": ("RGB", "TIFF", {"compression": "jpeg"}),
    "tiff, G4": ("1", "TIFF", {"compression": "group4"}),
}


@pytest.mark.parametrize(("mode", "form", "options"), SAVED.values(), ids=SAVED)
def test_what_is_left_out_changes_no_pixel(mode: str, form: str, options: dict[str, Any]) -> None:
    content = encoded(Image.fromarray(COLOURS).convert(mode), form, **options)
    with Image.open(io.BytesIO(content)) as opened:
        opened.load()
        expected = image_array(opened, INPUT)
    np.testing.assert_array_equal(image_array(content, INPUT), expected)


# --- orientation ---

XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def exif(orientation: int) -> bytes:
    made = Image.Exif()
    made[0x0112] = orientation
    return made.tobytes()


def profile(name: str, packed: bool) -> bytes:
    """As ImageMagick writes it."""
    data = exif(6)
    text = f"\nexif\n{len(data):8}\n".encode() + data.hex().encode() + b"\n"
    key = f"Raw profile type {name}".encode() + b"\0"
    return chunk(b"zTXt", key + b"\0" + zlib.compress(text)) if packed else chunk(b"tEXt", key + text)


def xmp_of_a_gif() -> bytes:
    return b"!\xff\x0bXMP DataXMP" + XMP.encode() + b"\1" + bytes(range(255, -1, -1)) + b"\0"


def with_chunk(content: bytes, extra: bytes) -> bytes:
    return content[:33] + extra + content[33:]


WHITE = Image.fromarray(np.array([[255, 0, 0], [0, 0, 0]], np.uint8).repeat(16, 0).repeat(16, 1))  # top left is white
PLAIN = encoded(WHITE, "PNG")
TURNED = {
    "png: eXIf": lambda: encoded(WHITE, "PNG", exif=exif(6)),
    "png: raw profile": lambda: with_chunk(PLAIN, profile("exif", True)),
    "png: raw profile, plain": lambda: with_chunk(PLAIN, profile("exif", False)),
    "png: raw profile APP1": lambda: with_chunk(PLAIN, profile("APP1", True)),
    "png: XMP": lambda: with_chunk(PLAIN, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode())),
    "png: packed XMP": lambda: with_chunk(
        PLAIN, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP.encode()))
    ),
    "jpeg: EXIF": lambda: encoded(WHITE, "JPEG", exif=exif(6)),
    "jpeg: XMP": lambda: encoded(WHITE, "JPEG", xmp=XMP.encode()),
    "webp: EXIF": lambda: encoded(WHITE, "WEBP", exif=exif(6)),
    "webp: XMP": lambda: encoded(WHITE, "WEBP", xmp=XMP.encode()),
    "tiff": lambda: encoded(WHITE, "TIFF", tiffinfo={274: 6}),
    "tiff, packed": lambda: encoded(WHITE, "TIFF", tiffinfo={274: 6}, compression="tiff_lzw"),
    "tiff: XMP": lambda: encoded(WHITE, "TIFF", tiffinfo={700: XMP.encode()}),
    "gif: XMP": lambda: encoded(WHITE, "GIF", save_all=True).replace(b"\x2c", xmp_of_a_gif() + b"\x2c", 1),
}


@pytest.mark.parametrize("made", [pytest.param(made, id=name) for name, made in TURNED.items()])
def test_a_picture_is_turned_upright_wherever_its_orientation_stands(made: Made) -> None:
    x = image_array(made(), ImageInput(size=(48, 32), channels=1))
    corners = {(y, x_): int(x[0, y, x_]) > 128 for y in (4, 44) for x_ in (4, 28)}
    assert corners == {(4, 4): False, (4, 28): True, (44, 4): False, (44, 28): False}


def test_exif_counts_before_xmp() -> None:
    both = encoded(WHITE, "JPEG", exif=exif(1), xmp=XMP.encode())
    assert image_array(both, ImageInput(size=(32, 48), channels=1))[0, 4, 4] > 128


def test_of_packed_profiles_the_first_one_alone_is_unpacked() -> None:
    damaged = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"no profile" * 999))
    again = with_chunk(PLAIN, damaged + profile("exif", True))
    assert unpacked(again, len(again), INPUT.max_pixels).orientation == 1
    other = with_chunk(PLAIN, damaged + chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0")))
    assert unpacked(other, len(other), INPUT.max_pixels).orientation == 6  # which nobody has to unpack


def test_what_fills_gaps_between_segments_is_left_out() -> None:
    content = encoded(WHITE, "JPEG", comment=b"a comment")
    for filling in (b"\xff" * 9999, b"\xff"):
        filled = content[:2] + filling + content[2:]
        picture = unpacked(filled, len(filled), INPUT.max_pixels)
        assert len(picture.content) < len(content)
        np.testing.assert_array_equal(image_array(filled, INPUT), image_array(content, INPUT))


# --- transparency ---


def test_one_transparent_colour_of_16_bits_makes_no_other_transparent() -> None:
    deep = np.full((1, 5, 3), 0x1234, ">u2")  # the second and third differ in one byte, the last in the other
    deep[0, 1, 0], deep[0, 2, 2], deep[0, 3] = 0x1235, 0x1135, 0x3412
    head = struct.pack(">IIBBBBB", 5, 1, 16, 2, 0, 0, 0)
    key = chunk(b"tRNS", struct.pack(">HHH", *[0x1234] * 3))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + deep.tobytes()))
    content = png(1, 1)[:8] + chunk(b"IHDR", head) + key + pixels + chunk(b"IEND", b"")
    x = image_array(content, ImageInput(size=(1, 5), channels=4))
    assert x[3, 0].tolist() == [0, 255, 255, 255, 0 if (deep[0, 4] == 0x1234).all() else 255]
    assert x[:3, 0, 0].tolist() == [0x12] * 3


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_transparent_grey_of_few_bits(depth: int) -> None:
    most = 2**depth - 1
    head = struct.pack(">IIBBBBB", 2, 1, depth, 0, 0, 0, 0)
    row = bytes([0, most << (8 - 2 * depth)])  # black, then white
    key = chunk(b"tRNS", struct.pack(">H", most))
    content = png(1, 1)[:8] + chunk(b"IHDR", head) + key + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    x = image_array(content, ImageInput(size=(1, 2), channels=4))
    assert x[:, 0].T.tolist() == [[0, 0, 0, 255], [255, 255, 255, 0]]
