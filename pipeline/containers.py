"""What a picture's decoder gets to see: its header's numbers, checked, and of its file what its first picture needs.

Decoders do more than their files weigh: a chunk that nobody needs costs Python code a turn, a scan costs a pass over
all pixels, and a tag may name the same megabyte as thousands of others. So each file is walked once, from part to part,
before Pillow sees it, and the walk is bounded. What is not needed for pixels is left out; orientation is read here.

| format | left out | refused |
|---|---|---|
| all | | more pixels, or a longer side, than the bounds; more memory than `DECODING` bytes for each of `max_pixels` |
| PNG | all but IHDR, PLTE, tRNS, IDAT; frames of APNG but the default picture | more than `PARTS` chunks |
| JPEG | all APPn but JFIF and Adobe; comments; what fills gaps | arithmetic coding, lossless; more than `SCANS` scans |
| WebP | | |
| GIF | extensions but transparency; other frames | more than `PARTS` blocks before the first frame |
| BMP | | run-length encoding of more than `RUN_PIXELS` |
| TIFF | tags that pixels do not depend on; other pages | other `COMPRESSIONS`; parts that no picture needs |
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.errors import RecordError

MAX_SIDE = 65_535  # pixels: JPEG's and GIF's own bound; a line costs memory beside its pixels
DECODING = 14  # bytes for each of `max_pixels` that a decoder may take
PARTS = 1000  # chunks or segments, and one more for each kilobyte; of GIF's small blocks for each 64 bytes
SCANS = 50  # of a JPEG; encoders write up to about 20
RUN_PIXELS = 1 << 20  # decoded in Python: about 0.2 s
TILE_PIXELS = 1 << 22  # of a TIFF, beyond its picture
METADATA_BYTES = 1 << 20  # that are looked at for an orientation

XMP_ORIENTATION = re.compile(rb"""tiff:Orientation(?:=["']|>)([1-8])""")


class Picture(NamedTuple):
    """A file that a decoder may be given."""

    opener: type[ImageFile]
    content: bytes  # of the file, what the decoder needs
    width: int
    height: int
    orientation: int = 1  # EXIF's numbers
    bytes_per_pixel: int = 8  # while it is decoded: Pillow's own, and once more in other colours
    depth: int = 8  # bits of a PNG's channel


def unpacked(content: bytes, max_bytes: int, max_pixels: int) -> Picture:
    """The picture in a file, within these bounds.

    Raises:
        RecordError: "too-large" or "undecodable".
    """
    if len(content) > max_bytes:
        raise RecordError("too-large", f"{len(content)} bytes, over max_bytes = {max_bytes}.")
    walk = next((walk for magic, walk in WALKS if content.startswith(magic)), None)
    if walk is None:
        raise RecordError("undecodable", "by its first bytes neither PNG, JPEG, WebP, GIF, BMP nor TIFF.")
    try:
        picture = walk(content)
    except (struct.error, IndexError) as error:
        raise RecordError("undecodable", "the picture is cut off before its pixels.") from error
    pixels = picture.width * picture.height
    size = f"{picture.width}×{picture.height} pixels"
    if pixels > max_pixels:
        raise RecordError("too-large", f"{size}, over max_pixels = {max_pixels}.")
    if max(picture.width, picture.height) > MAX_SIDE:
        raise RecordError("too-large", f"{size}: a side is over {MAX_SIDE}.")
    if pixels * picture.bytes_per_pixel > DECODING * max_pixels:
        most = DECODING * max_pixels // picture.bytes_per_pixel
        raise RecordError(
            "too-large", f"{size}, over {most}, which a file of this kind may have with max_pixels = {max_pixels}."
        )
    return picture


def _undecodable(detail: str) -> RecordError:
    return RecordError("undecodable", f"{detail}.")


def _too_many(what: str) -> RecordError:
    return RecordError("too-large", f"more {what} than a picture of its bytes needs.")


# --- orientation ---


def _orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """What EXIF says, else what XMP says, else 1."""
    found = _of_exif(exif.removeprefix(b"Exif\0\0")) if exif else None
    if found is None and xmp and (match := XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return found or 1


def _of_exif(content: bytes) -> int | None:
    try:
        tags = _tags(content, 512)[1]
        return _integer(content, tags, 274) if 274 in tags else None
    except (struct.error, RecordError):
        return None  # damaged metadata is no reason to refuse the picture


# --- PNG ---

CHUNK, HEADER = struct.Struct(">I4s"), struct.Struct(">IIBB")
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
METADATA_CHUNKS = (b"zTXt", b"iTXt", b"tEXt", b"eXIf")


def _png(content: bytes) -> Picture:
    kept, start, at, name = list[bytes](), 0, 8, b""
    header = exif = xmp = None
    left = PARTS + len(content) // 1024
    while at + 12 <= len(content) and name != b"IEND":
        left -= 1
        if left < 0:
            raise _too_many("chunks")
        size, name = CHUNK.unpack_from(content, at)
        end = at + 12 + size
        if name == b"IHDR":
            header = HEADER.unpack_from(content, at + 8)
        elif name not in PIXEL_CHUNKS:
            kept.append(content[start:at])
            start = end
            data = content[at + 8 : min(end - 4, at + 8 + METADATA_BYTES)] if name in METADATA_CHUNKS else b""
            if name == b"eXIf":
                exif = exif or data
            elif exif is None and data.startswith((b"Raw profile type exif\0", b"Raw profile type APP1\0")):
                exif = _raw_profile(_png_text(name, data))  # of the first one alone: each costs a megabyte
            elif xmp is None and data.startswith(b"XML:com.adobe.xmp\0"):
                xmp = _png_text(name, data)
        at = end
    if header is None:
        raise _undecodable("a PNG without a header")
    width, height, depth, colour = header
    shown = b"".join([*kept, content[start:at]]) if kept else content[:at]
    cost = 24 if (depth, colour) == (16, 2) and b"tRNS" in shown else 8  # its low bytes are decoded beside them
    return Picture(PngImageFile, shown, width, height, _orientation(exif, xmp), cost, depth)


def _png_text(name: bytes, data: bytes) -> bytes:
    """The text of a chunk, as much of it as is looked at."""
    _, _, text = data.partition(b"\0")
    if name == b"tEXt":
        return text
    packed = name == b"zTXt" or text[:1] == b"\1"
    text = text[1:] if name == b"zTXt" else text[2:].split(b"\0", 2)[-1]
    try:
        return zlib.decompressobj().decompress(text, METADATA_BYTES) if packed else text
    except zlib.error:
        return b""


def _raw_profile(text: bytes) -> bytes:
    """ImageMagick's: a line with the name, one with the length, then hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


# --- JPEG ---

MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # in a scan, 0xFF is followed by 0 or a restart marker
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCC, 0xCD, 0xCE, 0xCF)
TABLES = (0xC4, 0xDB, 0xDD, 0xDA)
PROGRESSIVE, SCAN, END, APP1 = 0xC2, 0xDA, 0xD9, 0xE1
LENGTHY = frozenset(range(0xC0, 0xFF)) - {*range(0xD0, 0xD8), 0xD8, END}  # markers with a length behind them
SEGMENT, FRAME = struct.Struct(">BBH"), struct.Struct(">HHB")


def _jpeg(content: bytes) -> Picture:
    kept, start, at, marker = list[bytes](), 0, 2, 0
    frame = exif = xmp = None
    left = PARTS + len(content) // 1024
    while marker != SCAN:
        left -= 1
        if left < 0:
            raise _too_many("segments")
        gap, marker, size = SEGMENT.unpack_from(content, at)
        if gap != 0xFF or marker not in LENGTHY:
            kept.append(content[start:at])  # without what fills the gap: Pillow reads that a byte at a time
            start = at = _next_marker(content, at)
            _, marker, size = SEGMENT.unpack_from(content, at)
        end = at + 2 + size
        if marker in FRAMES:
            frame = marker, *FRAME.unpack_from(content, at + 5)
        elif marker in OTHER_FRAMES:
            raise _undecodable("a JPEG with arithmetic coding, lossless or hierarchical. Publish it as baseline")
        elif marker not in TABLES and not content.startswith((b"JFIF\0", b"Adobe"), at + 4):
            if marker == APP1 and content.startswith(b"Exif\0\0", at + 4):
                exif = exif or content[at + 4 : end]
            elif marker == APP1 and content.startswith(b"http://ns.adobe.com/xap/1.0/\0", at + 4):
                xmp = xmp or content[at + 4 : end]
            kept.append(content[start:at])
            start = end
        at = end
    if frame is None:
        raise _undecodable("a JPEG without a frame before its first scan")
    if content.count(b"\xff\xda", at) >= SCANS:  # else nobody has to look closely
        _check_scans(content, at)
    marker, height, width, components = frame
    cost = 8 + 2 * components if marker == PROGRESSIVE else 8  # all coefficients are kept until the last scan
    shown = b"".join([*kept, content[start:]]) if kept else content
    return Picture(JpegImageFile, shown, width, height, _orientation(exif, xmp), cost)


def _next_marker(content: bytes, at: int) -> int:
    """Where the next marker with a length is: what fills gaps is read over."""
    found = MARKER.search(content, at)
    if found is None or found[1][0] == END:
        raise _undecodable("a JPEG that ends before its pixels")
    return found.start()


def _check_scans(content: bytes, at: int) -> None:
    """
    Raises:
        RecordError: the picture has more scans than any encoder writes; each is a pass over all pixels.
    """
    left, scans = PARTS + len(content) // 1024, 1
    while (found := MARKER.search(content, at)) and found[1][0] != END:
        left -= 1
        scans += found[1][0] == SCAN
        if scans > SCANS or left < 0:
            raise _too_many("scans")
        at = found.end() + int(SEGMENT.unpack_from(content, found.start())[2])


# --- WebP ---


def _webp(content: bytes) -> Picture:
    name, flags = content[12:16], content[20]
    exif = xmp = None
    if content[8:12] == b"WEBP" and name == b"VP8X":
        width, height = (1 + int.from_bytes(content[at : at + 3], "little") for at in (24, 27))
        exif = _riff(content, b"EXIF") if flags & 8 else None
        xmp = _riff(content, b"XMP ") if flags & 4 else None
    elif content[8:12] == b"WEBP" and name == b"VP8L":
        bits = struct.unpack_from("<I", content, 21)[0]
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif content[8:12] == b"WEBP" and name == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", content, 26))
    else:
        raise _undecodable("a RIFF file that is no WebP")
    return Picture(WebPImageFile, content, width, height, _orientation(exif, xmp), 20)  # two canvases, and their copies


def _riff(content: bytes, wanted: bytes) -> bytes | None:
    """The first chunk of that name, where it is not behind too many others."""
    at = 12
    for _ in range(PARTS):
        if at + 8 > len(content):
            break
        name, size = content[at : at + 4], int(struct.unpack_from("<I", content, at + 4)[0])
        if name == wanted:
            return content[at + 8 : at + 8 + min(size, METADATA_BYTES)]
        at += 8 + size + size % 2
    return None


# --- GIF ---


def _gif(content: bytes) -> Picture:
    screen = struct.unpack_from("<HH", content, 6)
    at = first = 13 + _palette_bytes(content[10])
    control, xmp, left = b"", None, PARTS + len(content) // 64
    while content[at] != 0x2C:  # an image
        if content[at] == 0x21:  # an extension
            start = at + 2
            if content[at + 1] == 0xF9:
                control = bytes([0x21, 0xF9, 4, content[start + 1] & 1, 0, 0, content[start + 4], 0])
            elif content.startswith(b"XMP DataXMP", start + 1):
                xmp = content[start + 12 : start + METADATA_BYTES]
            at, left = _behind_blocks(content, start, left)
        elif content[at]:
            raise _undecodable("a GIF without a picture")
        else:
            at, left = at + 1, left - 1
        if left < 0:
            raise _too_many("blocks")
    x, y, width, height = struct.unpack_from("<HHHH", content, at + 1)
    size = max(screen[0], x + width), max(screen[1], y + height)
    shown = b"".join([content[:first], control, content[at:]])
    return Picture(GifImageFile, shown, *size, _orientation(None, xmp))


def _behind_blocks(content: bytes, at: int, left: int) -> tuple[int, int]:
    """Where the next part begins, behind at most `left` blocks, and how many are left."""
    while content[at] and left >= 0:
        at, left = at + 1 + content[at], left - 1
    return at + 1, left - 1


def _palette_bytes(flags: int) -> int:
    return (3 << (flags & 7) + 1) if flags & 0x80 else 0


# --- BMP ---


def _bmp(content: bytes) -> Picture:
    if struct.unpack_from("<I", content, 14)[0] == 12:
        width, height = struct.unpack_from("<HH", content, 18)
        return Picture(BmpImageFile, content, width, height)
    width, height, _, _, compression = struct.unpack_from("<iiHHI", content, 18)
    if compression in (1, 2) and max(abs(width * height), len(content) // 2) > RUN_PIXELS:
        raise RecordError("too-large", f"a run-length encoded BMP of more than {RUN_PIXELS} pixels. Publish it as PNG.")
    return Picture(BmpImageFile, content, abs(width), abs(height))


# --- TIFF ---

COMPRESSIONS = {1: "none", 2: "CCITT", 3: "G3", 4: "G4", 5: "LZW", 7: "JPEG", 8: "Deflate", 32773: "PackBits"}
COMPRESSIONS[32946] = "Deflate"
WIDTH, HEIGHT, COMPRESSION, STRIPS, SAMPLES, ROWS, PLANAR = 256, 257, 259, 273, 277, 278, 284
TILE_WIDTH, TILE_HEIGHT, TILES, XMP = 322, 323, 324, 700
#: what pixels depend on
PIXEL_TAGS = frozenset(
    (254, WIDTH, HEIGHT, 258, COMPRESSION, 262, 266, STRIPS, SAMPLES, ROWS, 279, PLANAR, 292, 293, 317, 320, TILE_WIDTH,
     TILE_HEIGHT, TILES, 325, 338, 339, 347, 529, 530, 531, 532)
)  # fmt: skip
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
FORMATS = {1: "B", 3: "H", 4: "I"}

Tags = dict[int, tuple[int, int, bytes, int]]  # tag → type, count, its 12 bytes, where its values are


def _tiff(content: bytes) -> Picture:
    order, tags = _tags(content, 4096)
    said: Callable[..., int] = lambda tag, *default: _integer(content, tags, tag, *default)  # noqa: E731
    width, height = said(WIDTH), said(HEIGHT)
    compression = said(COMPRESSION, 1)
    if compression not in COMPRESSIONS:
        readable = ", ".join(dict.fromkeys(COMPRESSIONS.values()))
        raise _undecodable(f"a TIFF with compression {compression}; read are {readable}. Publish it with one of them")
    _check_parts(content, tags, width, height)
    if compression == 7 and content.count(b"\xff\xda") > SCANS + tags.get(STRIPS, tags.get(TILES, (0, 0)))[1]:
        raise RecordError("too-large", f"a TIFF with more than {SCANS} scans of JPEG.")
    exif = None if 274 not in tags else said(274)
    xmp = None
    if XMP in tags:
        kind, count, _, at = tags[XMP]
        xmp = content[at : at + min(METADATA_BYTES, count * TYPE_BYTES[kind])]
    kept = [entry for tag, (_, _, entry, _) in sorted(tags.items()) if tag in PIXEL_TAGS]
    at = len(content) + len(content) % 2
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    shown = b"".join([content[:4], struct.pack(f"{order}I", at), content[8:].ljust(at - 8, b"\0"), directory])
    return Picture(TiffImageFile, shown, width, height, exif or _orientation(None, xmp))


def _check_parts(content: bytes, tags: Tags, width: int, height: int) -> None:
    """
    Raises:
        RecordError: it has more or larger strips or tiles than its pixels need.
    """
    if TILES in tags:
        size = _integer(content, tags, TILE_WIDTH), _integer(content, tags, TILE_HEIGHT)
        offsets = tags[TILES]
    else:
        size = width, min(height, _integer(content, tags, ROWS, height))
        offsets = tags.get(STRIPS, (4, 0, b"", 0))
    if not min(width, height, *size):
        raise _undecodable("a TIFF without pixels")
    across, down = -(-width // size[0]), -(-height // size[1])
    planes = _integer(content, tags, SAMPLES, 1) if _integer(content, tags, PLANAR, 1) == 2 else 1
    if offsets[1] > across * down * planes or offsets[1] > 2 * MAX_SIDE:
        raise RecordError("too-large", "a TIFF with more strips or tiles than its picture needs.")
    if across * size[0] * down * size[1] > 2 * width * height + TILE_PIXELS:
        raise RecordError("too-large", "a TIFF with tiles that are much larger than its picture.")


def _tags(content: bytes, most: int) -> tuple[str, Tags]:
    """The byte order, and the tags of the first directory; of one that is named twice the last counts.

    Raises:
        RecordError: they are more than `most`, or their values lie beyond the file.
        struct.error: it is cut off.
    """
    order = "<" if content[:2] == b"II" else ">"
    start = struct.unpack_from(f"{order}I", content, 4)[0]
    count = struct.unpack_from(f"{order}H", content, start)[0]
    if count > most:
        raise RecordError("too-large", f"a directory of {count} tags.")
    tags: Tags = {}
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, values, offset = struct.unpack_from(f"{order}HHII", content, at)
        size = values * TYPE_BYTES.get(kind, 1)
        where = at + 8 if size <= 4 else offset
        if where + size > len(content) and tag in PIXEL_TAGS:
            raise _undecodable(f"the values of tag {tag} lie beyond the file")
        if kind in TYPE_BYTES:
            tags[tag] = kind, values, content[at : at + 12], where
    return order, tags


def _integer(content: bytes, tags: Tags, tag: int, default: int | None = None) -> int:
    """
    Raises:
        RecordError: it is not there, or no such number.
    """
    if tag not in tags and default is not None:
        return default
    kind, count, _, at = tags.get(tag, (0, 0, b"", 0))
    if kind not in FORMATS or count != 1:
        raise _undecodable(f"tag {tag} is not one number")
    order = "<" if content[:2] == b"II" else ">"
    found: int = struct.unpack_from(order + FORMATS[kind], content, at)[0]
    return found


WALKS: tuple[tuple[bytes, Callable[[bytes], Picture]], ...] = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8\xff", _jpeg),
    (b"RIFF", _webp),
    (b"GIF8", _gif),
    (b"BM", _bmp),
    (b"II*\0", _tiff),
    (b"MM\0*", _tiff),
)
