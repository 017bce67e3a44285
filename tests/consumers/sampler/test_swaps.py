"""Hot swaps under load: no request fails, and no answer mixes two versions."""

from __future__ import annotations

import base64
import io
import threading
from typing import TYPE_CHECKING

import httpx
import numpy as np
from PIL import Image

from pipeline.store.store import Store
from tests.consumers.marked import marked, step
from tests.consumers.running import PATIENCE_S, configuration, running

if TYPE_CHECKING:
    from redis import Redis

VERSIONS = 200
CLIENTS = 4


def test_every_answer_is_of_the_one_version_that_it_names(redis: Redis, redis_url: str, family: str) -> None:
    maker = marked(Store(redis, family, family))
    step(maker)
    done, answered = threading.Event(), threading.Semaphore(0)
    seen: list[set[int]] = [set() for _ in range(CLIENTS)]
    wrong: list[str] = []

    def ask(number: int) -> None:
        character = chr(64 + number)
        with httpx.Client(base_url=f"{at.url}/models/{family}", timeout=PATIENCE_S) as client:
            while not done.is_set():
                answer = client.post("/classify", content=character.encode())
                told = answer.json()
                version = told.get("version")
                mark = version / 1024 if version else None
                expected = {"first": mark, "last": mark, "record": (64 + number) / 2**21}
                if answer.status_code != 200 or told["probabilities"] != expected:
                    wrong.append(answer.text)
                drawn = client.get("/generate", params={"n": 2, "seed": number, "format": "json"}).json()
                for image in drawn["images"]:
                    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))))
                    if pixels[0].tolist() != [drawn["version"] % 256] * 2:
                        wrong.append(str(drawn))
                seen[number] |= {version, drawn["version"]}
                answered.release()

    with running(configuration(redis_url, {family: {}})) as at:
        assert at.serves(family, 1)
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for _ in range(VERSIONS):
            # Each version goes live, and answers, before the next is made: each is one swap under load.
            assert at.serves(family, step(maker))
            while answered.acquire(blocking=False):
                pass
            assert answered.acquire(timeout=PATIENCE_S)
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(set.union(*seen)) > VERSIONS / 2  # answers were given all along
