"""Pictures as the sampler answers with them: PNG files, alone, as one sheet, or in JSON."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import Response
from fastapi.responses import JSONResponse
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from consumers.sampler.follower import Live
    from consumers.sampler.service import Service
    from pipeline.client import Pictures

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
LEAST_SIDE = 280  # pixels of a picture with heat
FOR, AGAINST = (255, 140, 0), (40, 130, 255)  # told apart by all eyes
MOST_COLOUR = 0.8


def png(image: NDArray[np.uint8]) -> bytes:
    """(C, H, W) → a PNG file."""
    channels = image.shape[0]
    pixels = np.ascontiguousarray(image[0] if channels == 1 else image.transpose(1, 2, 0))
    file = io.BytesIO()
    Image.fromarray(pixels, MODES[channels]).save(file, "PNG")
    return file.getvalue()


def heated(picture: NDArray[np.uint8], heat: NDArray[np.float32]) -> bytes:
    """(C, H, W) and (h, w) → a PNG of the picture in grey, enlarged where it is small, under the heat."""
    channels, height, width = picture.shape
    scale = -(-LEAST_SIDE // max(height, width))
    pixels = picture[0] if channels == 1 else picture[:3].transpose(1, 2, 0)
    size = scale * width, scale * height
    grey = Image.fromarray(np.ascontiguousarray(pixels)).convert("L").resize(size, Image.Resampling.NEAREST)
    smooth = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR))[..., None]
    share = MOST_COLOUR * np.abs(smooth) / max(float(np.abs(heat).max()), 1e-6)
    mixed = (1 - share) * np.asarray(grey)[..., None] + share * np.where(smooth > 0, FOR, AGAINST)
    return png(np.ascontiguousarray(mixed.round().astype(np.uint8).transpose(2, 0, 1)))


def grid(images: NDArray[np.uint8], columns: int | None = None) -> NDArray[np.uint8]:
    """(n, C, H, W) → one (C, rows × H, columns × W), as square as it gets; cells that stay empty are 0."""
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    cells = np.zeros((rows * columns, channels, height, width), np.uint8)
    cells[:n] = images
    cells = cells.reshape(rows, columns, channels, height, width)
    return cells.transpose(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)


def described(kind: type[Pictures]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI: a PNG, with the rest of such an answer as its headers."""
    return {200: {"content": {"image/png": {}}, "headers": kind.described()}}


async def shown(
    service: Service,
    live: Live[Any],
    kind: type[Pictures],
    fields: dict[str, Any],
    images: NDArray[np.uint8],
    format_: str = "png",
    columns: int | None = None,
) -> Response:
    """(n, C, H, W) uint8 as the answer that was asked for: JSON, or one PNG with the rest as its headers."""
    fields = {**live.info(service.clock()), **fields}
    if format_ == "json":
        files = await service.decoded(live, lambda: [png(image) for image in images])
        return JSONResponse(kind(**fields, images=files).model_dump(mode="json"))
    file = await service.decoded(live, lambda: png(grid(images, columns)))
    headers = kind(**fields, images=[]).headers()
    return Response(file, headers={**headers, "Cache-Control": "no-store"}, media_type="image/png")
