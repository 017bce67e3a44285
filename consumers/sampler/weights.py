"""A version's weights as one safetensors file that is made while it is sent."""

from __future__ import annotations

import json
from itertools import chain, islice
from typing import TYPE_CHECKING

from pipeline.store import Store, header

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.store import Manifest

PIECE_BYTES = 1 << 18  # of a download


def essentials(manifest: Manifest) -> dict[str, str]:
    """What a weights file tells about itself: enough to build the model without the manifest."""
    values = {key: getattr(manifest, key) for key in ("learner", "input", "options", "meta", "classes", "watermark")}
    return {
        "model": manifest.model,
        "version": str(manifest.version),
        "digest": manifest.digest,
        **{key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()},
    }


def weights(store: Store, manifest: Manifest, cached: Mapping[str, bytes]) -> tuple[Iterator[bytes], int]:
    """What serving needs as a safetensors file in pieces, one tensor in memory at a time, and the file's size.

    Args:
        cached: digest → objects that need not be fetched.

    Raises:
        StoreError: the first tensor cannot be read; later ones end the pieces.
    """
    shapes = {name: (entry.dtype, entry.shape) for name, entry in manifest.serving.items()}
    head, size = header(shapes, essentials(manifest))
    arrays = store.each(manifest, "serving", cached)
    first = list(islice(arrays, 1))
    pieces = (
        array.data[start : start + PIECE_BYTES].tobytes()
        for _, array in chain(first, arrays)
        for start in range(0, array.data.nbytes, PIECE_BYTES)
    )
    return chain([head], pieces), len(head) + size
