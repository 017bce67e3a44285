from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from pipeline.errors import RecordError
from pipeline.images import TURNS, ImageInput, image_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)  # (H, W, 3)
GREYS = COLOURS[..., 0]  # (H, W)


def asked(channels: int = 3, size: Any = (6, 8), **fields: Any) -> ImageInput:
    return ImageInput.model_validate({"channels": channels, "size": size, **fields})


GREY, RGB, RGBA = asked(1), asked(3), asked(4)


def encoded(image: Image.Image | NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def chw(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels.transpose(2, 0, 1)


def refusal(content: bytes | Image.Image, input: ImageInput = RGB) -> RecordError:
    with pytest.raises(RecordError) as caught:
        image_array(content, input)
    return caught.value


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_lossless_formats_keep_every_pixel(kind: str, options: dict[str, Any]) -> None:
    x = image_array(encoded(COLOURS, kind, **options), RGB)
    np.testing.assert_array_equal(x, chw(COLOURS))
    assert x.flags.c_contiguous


def test_jpeg_and_gif() -> None:
    flat = np.full((6, 8), 77, np.uint8)
    for kind in ("JPEG", "GIF"):
        np.testing.assert_array_equal(image_array(encoded(flat, kind), GREY), flat[None])


@pytest.mark.parametrize("kind", ["PDF", "PPM", "ICO", "TGA", "PCX"])
def test_other_formats_are_not_read(kind: str) -> None:
    assert refusal(encoded(COLOURS, kind)).reason == "undecodable"


def test_eps_is_not_read() -> None:
    assert refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\n").reason == "undecodable"


def test_too_many_bytes() -> None:
    content = encoded(COLOURS)
    assert refusal(content, asked(max_bytes=len(content) - 1)).reason == "too-large"
    image_array(content, asked(max_bytes=len(content)))


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    """A PNG written by hand; `colour` 0 is grey, 2 is RGB."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bomb(width: int, height: int) -> bytes:
    """A picture of that size whose pixels cannot be decoded: whoever tries says "undecodable"."""
    return png(width, height, 8, 0, b"no zlib")


# Pillow warns from 89 million pixels on, and refuses from 179 million on.
@pytest.mark.parametrize("size", [(6001, 7000), (10_000, 10_000), (50_000, 50_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_before_its_pixels_are_decoded(size: tuple[int, int]) -> None:
    assert refusal(bomb(*size)).reason == "too-large"
    assert refusal(bomb(10, 10)).reason == "undecodable"


def test_the_bound_on_pixels_is_ours_and_not_pillows() -> None:
    large = bomb(10_000, 10_000)
    assert refusal(large, asked(max_pixels=10**8)).reason == "undecodable"
    assert refusal(large, asked(max_pixels=10**8 - 1)).reason == "too-large"
    assert refusal(Image.new("1", (11, 10)), asked(max_pixels=100)).reason == "too-large"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_refused(kind: str) -> None:
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise).convert("P") if kind == "GIF" else Image.fromarray(noise), kind)
    assert refusal(content[: len(content) // 2]).reason == "undecodable"
    assert refusal(content[:9]).reason == "undecodable"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animated_file_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), (255 * (i == 0), 0, 255 * (i == 1))) for i in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert image_array(content, RGB)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    deep = np.array([[0, 255, 256, 0x1234, 0x8000, 0xFFFF, 1, 2]] * 6, np.uint16)
    np.testing.assert_array_equal(image_array(encoded(deep, kind), GREY), (deep >> 8)[None])
    assert image_array(encoded(deep, kind), RGB)[:, 0, 4].tolist() == [128, 128, 128]


def test_16_bit_colour_is_the_high_byte_too() -> None:
    deep = RNG.integers(0, 65536, (6, 8, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)  # each after its filter, 0
    content = png(8, 6, 16, 2, zlib.compress(rows))
    np.testing.assert_array_equal(image_array(content, RGB), chw(deep >> 8))


def test_a_transparent_value_of_16_bit_grey() -> None:
    deep = np.array([[0x1234, 0x1235] * 4] * 6, np.uint16)  # the same high byte
    x = image_array(encoded(deep, transparency=0x1234), RGBA)
    assert x[:, 0, 0].tolist() == [0x12, 0x12, 0x12, 0]
    assert x[:, 0, 1].tolist() == [0x12, 0x12, 0x12, 255]


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_values_of_unknown_range_or_meaning_are_refused(mode: str) -> None:
    assert refusal(encoded(Image.new(mode, (8, 6)), "TIFF"), GREY).reason == "undecodable"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
def test_1_bit_pictures_are_black_and_white(kind: str) -> None:
    bits = GREYS > 128
    x = image_array(encoded(Image.fromarray(bits), kind), GREY)
    np.testing.assert_array_equal(x, np.where(bits, 255, 0)[None])


def palette(*, transparency: bytes | int | None = None) -> bytes:
    image = Image.new("P", (8, 6))
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 0])
    image.paste(1, (0, 0, 4, 6))
    return encoded(image) if transparency is None else encoded(image, transparency=transparency)


def test_palette_pictures_have_their_colours() -> None:
    x = image_array(palette(), RGB)
    assert x[:, 0, 0].tolist() == [200, 100, 50]
    assert x[:, 0, 7].tolist() == [10, 20, 30]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_transparent_entries_of_a_palette(transparency: bytes | int) -> None:
    content = palette(transparency=transparency)
    kept = image_array(content, RGBA)
    assert kept[3, 0, 0] == 0
    assert kept[:, 0, 7].tolist() == [10, 20, 30, 255]
    laid = image_array(content, asked(background=99))
    assert laid[:, 0, 0].tolist() == [99, 99, 99]
    assert laid[:, 0, 7].tolist() == [10, 20, 30]


def test_half_transparent_entries_of_a_palette() -> None:
    laid = image_array(palette(transparency=b"\xff\x80"), asked(background=0))
    assert laid[:, 0, 0].tolist() == [100, 50, 25]


@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGB", (7, 8, 9))])
def test_a_transparent_colour(mode: str, colour: Any) -> None:
    image = Image.new(mode, (8, 6), colour)
    assert (image_array(encoded(image, transparency=colour), RGBA)[3] == 0).all()
    assert (image_array(encoded(image, transparency=colour), asked(background=5)) == 5).all()


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_a_channel_or_laid_over_the_background(mode: str) -> None:
    image = Image.new(mode, (8, 6), (200, 128) if mode == "LA" else (200, 200, 200, 128))
    content = encoded(image)
    assert image_array(content, RGBA)[:, 0, 0].tolist() == [200, 200, 200, 128]
    for channels in (1, 3):
        laid = image_array(content, asked(channels, background=100))
        np.testing.assert_allclose(laid, 100 + 100 * 128 / 255, atol=1)


def test_what_has_no_alpha_is_opaque() -> None:
    assert (image_array(encoded(COLOURS), RGBA)[3] == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    image = Image.new("CMYK", (8, 6), (0, 255, 255, 0))  # red
    x = image_array(encoded(image, kind), RGB)[:, 0, 0].tolist()
    np.testing.assert_allclose(x, [255, 0, 0], atol=3)


def test_grey_from_colour_is_luma() -> None:
    expected = COLOURS @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(image_array(encoded(COLOURS), GREY)[0], expected, atol=1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    """The picture as a camera held that way would have stored it comes out upright."""
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :16] = 255  # the quarter at the top left
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    turn = inverse.get(orientation, TURNS.get(orientation))
    image = Image.fromarray(upright)
    stored = image.convert("RGB") if turn is None else image.transpose(turn).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    x = image_array(encoded(stored, kind, exif=exif), asked(1, (16, 32)))
    assert np.abs(x[0].astype(int) - upright).mean() < 10


def test_orientation_of_a_pil_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open(io.BytesIO(encoded(GREYS, exif=exif)))
    x = image_array(picture, asked(1, (8, 6)))
    np.testing.assert_array_equal(x[0], np.rot90(GREYS, -1))


def test_fit() -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200  # thirds: black, bright, black
    content = encoded(wide)
    assert image_array(content, asked(1, 10, background=9, fit="crop"))[0].min() == 200
    letterbox = image_array(content, asked(1, 10, background=9, fit="letterbox"))[0]
    assert (letterbox[:3] == 9).all()
    assert (letterbox[6:] == 9).all()
    assert letterbox[4, 5] == 200
    assert letterbox[4, 0] == 0
    resized = image_array(content, asked(1, 10, background=9, fit="resize"))[0]
    assert (resized[:, 5] == 200).all()
    assert (resized[:, 0] == 0).all()


def test_a_letterbox_is_transparent_where_alpha_is_a_channel() -> None:
    x = image_array(encoded(np.full((4, 8), 50, np.uint8)), asked(4, 8, background=9))
    assert x[:, 0, 0].tolist() == [9, 9, 9, 0]
    assert x[:, 4, 4].tolist() == [50, 50, 50, 255]


def test_a_large_jpeg_is_as_its_full_decoding_would_be() -> None:
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    content = encoded(np.broadcast_to(ramp, (512, 512)).copy(), "JPEG", quality=95)
    x = image_array(content, asked(1, 16))
    np.testing.assert_allclose(x[0, 8], ramp.reshape(16, 32).mean(axis=1), atol=3)


@given(
    st.sampled_from(["L", "RGB", "RGBA", "P", "LA", "1", "I;16", "CMYK"]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["resize", "crop", "letterbox"]),
    st.sampled_from([1, 3, 4]),
    st.integers(1, 20),
    st.integers(1, 20),
)
def test_every_picture_has_the_models_shape(
    mode: str, width: int, height: int, fit: Any, channels: Any, out_height: int, out_width: int
) -> None:
    input = asked(channels, (out_height, out_width), fit=fit)
    x = image_array(Image.new(mode, (width, height)), input)
    assert x.shape == input.shape
    assert x.dtype == np.uint8


def seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    colour, grey = Image.fromarray(COLOURS), Image.fromarray(GREYS)
    return [
        encoded(colour, exif=exif),
        encoded(grey.convert("RGBA")),
        encoded(colour.convert("P"), transparency=b"\0\x80"),
        encoded(GREYS.astype(np.uint16) * 257),
        encoded(colour, save_all=True, append_images=[grey.convert("RGB")]),
        encoded(colour, "JPEG", exif=exif),
        encoded(colour.convert("CMYK"), "JPEG", progressive=True),
        encoded(colour, "WEBP", exif=exif),
        encoded(colour.convert("RGBA"), "WEBP", lossless=True),
        encoded(colour.convert("P"), "GIF", save_all=True, append_images=[grey.convert("P")]),
        encoded(colour, "BMP"),
        encoded(grey.convert("1"), "BMP"),
        encoded(colour, "TIFF"),
        encoded(colour, "TIFF", compression="tiff_lzw"),
        encoded(colour.convert("YCbCr"), "TIFF"),
    ]


SEEDS = seeds()


@settings(max_examples=400)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.none() | st.integers(0, 400),
    st.sampled_from([1, 3, 4]),
)
def test_damaged_files_give_an_array_or_a_record_error(
    content: bytes, changes: list[tuple[int, int]], length: int | None, channels: Any
) -> None:
    damaged = bytearray(content)
    for position, byte in changes:
        damaged[position % len(damaged)] = byte
    input = asked(channels, (5, 7), max_pixels=10_000)
    with suppress(RecordError):
        x = image_array(bytes(damaged[:length]), input)
        assert x.shape == input.shape
        assert x.dtype == np.uint8


@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"GIF89a", b"BM", b"II*\0", b"MM\0*"]),
    st.binary(),
)
def test_any_bytes_give_an_array_or_a_record_error(magic: bytes, content: bytes) -> None:
    with suppress(RecordError):
        assert image_array(magic + content, GREY).shape == GREY.shape
