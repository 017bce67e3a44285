"""Small files that ask a decoder for much: each is of a few bytes or of many small parts, and valid or nearly so."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = (6300, 6300)  # just below max_pixels


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def zeros(size: int) -> bytes:
    """So many zeros, deflated."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(-(-size >> 20))) + packer.flush()


BIG = zeros(1 << 28)  # more than a process gets here


def png(width: int, height: int, colour: int = 2, depth: int = 8, before: bytes = b"", after: bytes = b"") -> bytes:
    """All zero."""
    bits = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * depth
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = chunk(b"IDAT", zeros((1 + (width * bits + 7) // 8) * height))
    palette = chunk(b"PLTE", bytes(768)) * (colour == 3)
    return SIGNATURE + chunk(b"IHDR", head) + palette + before + data + after + chunk(b"IEND", b"")


def jpeg(scans: int, width: int = 8, height: int = 8, refined: bool = False) -> bytes:
    """Progressive and grey: one scan of DC, and so many of AC that say nothing in 50 bytes."""
    blocks = ((width + 7) // 8) * ((height + 7) // 8)
    runs, left = "", blocks
    while left > 0:  # end-of-band runs of 2^14 blocks and more
        run = min(max(left, 1 << 14), (1 << 15) - 1)
        runs += "0" + format(run - (1 << 14), "014b")
        left -= run
    head = segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    tables = segment(0xC4, b"\0\1" + bytes(16)) + segment(0xC4, b"\x10\1" + bytes(15) + b"\xe0")
    first = segment(0xDA, b"\1\1\0\0\0\0") + packed("0" * blocks)
    more = segment(0xDA, b"\1\1\0\1\x3f" + (b"\x10" if refined else b"\0")) + packed(runs)
    return b"\xff\xd8" + head + tables + first + more * scans + b"\xff\xd9"


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def packed(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")


def bmp(width: int, height: int, body: bytes) -> bytes:
    """Run-length encoded, of 256 colours."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + info + bytes(1024) + body


def tiff(width: int, height: int, *tags: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    """Grey; `tags` are further ones, or in place of those that a plain one has. Data begins at 8."""
    plain = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = [(tag, 4, 1, value) for tag, value in plain.items() if tag not in {other[0] for other in tags}]
    directory = struct.pack("<H", len(entries) + len(tags))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in sorted([*entries, *tags])) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def shared(tags: int, size: int) -> bytes:
    """A TIFF of which so many tags have the same values."""
    return tiff(8, 8, *((1000 + tag, 7, size, 8) for tag in range(tags)), data=bytes(size))


def gif(width: int, height: int, before: bytes = b"") -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\2\2\x4c\1\0"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + before + frame + b";"


def saved(mode: str, size: tuple[int, int], form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, form, **options)
    return file.getvalue()


#: what is refused before any pixel is decoded
REFUSED = {
    "png: 1 × 40 million": lambda: png(1, 39_999_999, 0),
    "png: chunks": lambda: png(8, 8, before=chunk(b"teSt", b"") * 100_000),
    "png: chunks behind the pixels": lambda: png(8, 8, after=chunk(b"teSt", b"") * 100_000),
    "png: pixels in pieces": lambda: png(8, 8, before=chunk(b"IDAT", b"") * 100_000),
    "jpeg: scans": lambda: jpeg(1000, *PIXELS),
    "jpeg: segments": lambda: b"\xff\xd8" + segment(0xFE, b"") * 100_000 + jpeg(1)[2:],
    "jpeg: segments between scans": lambda: jpeg(1)[:-2] + segment(0xFE, b"\xff\xda") * 100_000 + b"\xff\xd9",
    "webp: 34 bytes": lambda: saved("RGBA", PIXELS, "WEBP", lossless=True, method=0),
    "gif: blocks": lambda: gif(8, 8, b"!\xfe" + b"\1a" * 100_000 + b"\0"),
    "gif: extensions": lambda: gif(8, 8, b"!\xfe\0" * 100_000),
    "gif: a frame beyond the screen": lambda: gif(8, 8)[:20] + struct.pack("<HHHH", 65535, 65535, 9, 9) + bytes(9),
    "bmp: ends of lines": lambda: bmp(*PIXELS, b"\1\0\0\0" * PIXELS[1]),
    "bmp: runs beyond the line": lambda: bmp(8, 8, b"\1\0" + b"\xff\0" * 2_000_000),
    "tiff: strips": lambda: tiff(1, 8, (273, 4, 400_000, 8), data=bytes(1_600_000)),
    "tiff: every strip is the whole picture": lambda: tiff(
        *PIXELS, (273, 4, 9000, 8), (278, 4, 1, PIXELS[1] - 1), data=bytes(36_000)
    ),
    "tiff: tags that share their values": lambda: shared(20_000, 100_000),
    "tiff: a tile larger than its picture": lambda: tiff(
        16, 16, (259, 3, 1, 8), (322, 4, 1, 65520), (323, 4, 1, 65520), (324, 4, 1, 8), (325, 4, 1, 9), data=zeros(9)
    ),
    "tiff: many tiles larger than their picture": lambda: tiff(
        65535, 1, (259, 3, 1, 8), (322, 4, 1, 16), (323, 4, 1, 1 << 20), (324, 4, 4096, 8), (325, 4, 4096, 8),
        data=bytes(16384),
    ),
    "tiff: scans": lambda: tiff(8, 8, (259, 3, 1, 7), data=b"\xff\xda" * 1000),
}  # fmt: skip
#: what is refused by name: its cost cannot be told beforehand
UNBOUNDED = {
    "jpeg: arithmetic coding": lambda: jpeg(1).replace(b"\xff\xc2", b"\xff\xca"),
    "jpeg: lossless": lambda: jpeg(1).replace(b"\xff\xc2", b"\xff\xc3"),
    "tiff: lzma": lambda: tiff(8, 8, (259, 3, 1, 34925), data=bytes(64)),
    "tiff: old JPEG": lambda: tiff(8, 8, (259, 3, 1, 6), data=bytes(64)),
}
#: what is read, and costs what its pixels cost: nothing beside them is unpacked
READ = {
    "png: a text of a gigabyte": lambda: png(8, 8, before=chunk(b"zTXt", b"a\0\0" + BIG)),
    "png: a translated text": lambda: png(8, 8, before=chunk(b"iTXt", b"a\0\1\0\0\0" + BIG)),
    "png: a profile": lambda: png(8, 8, before=chunk(b"iCCP", b"a\0\0" + BIG)),
    "png: a profile of EXIF": lambda: png(
        8, 8, before=chunk(b"zTXt", b"Raw profile type exif\0\0" + BIG) * 30
    ),
    "png: XMP": lambda: png(8, 8, before=chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BIG) * 30),
    "png: EXIF": lambda: png(8, 8, before=chunk(b"eXIf", shared(4000, 9000))),
    "tiff: a directory in a ring": lambda: tiff(8, 8, (330, 4, 1, 72), (34665, 4, 1, 72), data=bytes(64))[:-4]
    + struct.pack("<I", 72),
}  # fmt: skip
#: the largest that are read: what they take in memory is bounded by max_pixels
LARGEST = {
    "png": lambda: png(*PIXELS),
    "png of 64 bits a pixel": lambda: png(*PIXELS, 6, 16),
    "png with a transparent colour": lambda: png(4500, 4500, 2, 16, before=chunk(b"tRNS", bytes(6))),
    "png with a palette": lambda: png(*PIXELS, 3, before=chunk(b"tRNS", bytes(256))),
    "jpeg": lambda: saved("CMYK", PIXELS, "JPEG"),
    "progressive jpeg": lambda: saved("RGB", PIXELS, "JPEG", progressive=True, subsampling=0),
    "jpeg of many scans": lambda: jpeg(48, *PIXELS, refined=True),
    "webp": lambda: saved("RGBA", (5200, 5200), "WEBP", lossless=True, method=0),
    "gif": lambda: saved("P", (65_000, 600), "GIF", transparency=0),
    "tiff": lambda: saved("RGBA", PIXELS, "TIFF", compression="tiff_lzw"),
    "tiff of strips": lambda: tiff(
        600, 60_000, (273, 4, 60_000, 8), (278, 4, 1, 1), (279, 4, 60_000, 8), data=b"\x08\0\0\0" * 60_000
    ),
}  # fmt: skip
