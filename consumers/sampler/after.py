"""Read your own writes: `?after=` has a route answer from a version that accounts for these records."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

from fastapi import Depends, HTTPException, Query

from consumers.sampler.gate import refusal
from consumers.sampler.service import Service, ServiceOf
from pipeline.log import meant
from pipeline.records import POSITION, Place
from pipeline.store import AFTER_S, Manifest

MOST = 64  # positions in one request


async def _after(
    model: str,
    service: ServiceOf,
    after: Annotated[
        list[Annotated[str, Query(pattern=f"^{POSITION.pattern}$")]],
        Query(max_length=MOST, description="topic:partition:offset; waits for a version that accounts for it"),
    ] = [],  # noqa: B006 - FastAPI copies it
) -> None:
    if after:
        await _wait(model, service, [Place.parsed(text) for text in after])


async def _wait(model: str, service: Service, places: Sequence[Place]) -> None:
    """Returns once the live version accounts for all these records.

    Raises:
        NotFound: no such model.
        HTTPException: 422 for a topic that the model does not read, 504 where no version came in time.
    """
    follower = service.serving.follower(model)
    topics = service.serving.topics(model)
    for place in places:
        if topics and place.partition.topic not in topics:
            detail = f"{model} does not read {place.partition.topic}. {meant(place.partition.topic, topics.keys())}"
            raise refusal(422, "invalid", detail)
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    with follower.listening(lambda: loop.call_soon_threadsafe(changed.set)), suppress(TimeoutError):
        async with asyncio.timeout(AFTER_S):
            while (live := follower.live) is None or not all(map(live.manifest.accounts_for, places)):
                await changed.wait()
                changed.clear()
        return
    live = follower.live
    raise _not_yet(model, live.manifest if live else None, places)


def _not_yet(model: str, manifest: Manifest | None, places: Sequence[Place]) -> HTTPException:
    missing = next((place for place in places if not (manifest and manifest.accounts_for(place))), places[0])
    if manifest is None:
        why = f"{model} has no version yet"
    elif missing in manifest.pending:
        why = f"Version {manifest.version} of {model} waits for the label of {missing}"
    else:
        why = f"Version {manifest.version} of {model} has not read {missing}"
    detail = f"{why}, and no other came within {AFTER_S:.0f} s. See that its worker runs, and ask again."
    watermark = manifest.watermark if manifest else {}
    return HTTPException(504, {"error": "not-yet", "detail": detail, "watermark": watermark})


#: of routes that answer from the newest version
FRESH = [Depends(_after)]
