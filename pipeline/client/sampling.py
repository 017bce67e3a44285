"""What a sampler answers, from Python: classify, draw, write, restore, over HTTP.

from pathlib import Path

from pipeline.client import SamplingClient

with SamplingClient("http://127.0.0.1:8080") as sampler:
    print(sampler.classify("pictures", Path("cat.png")).label)
    for piece in sampler.complete("verses", "Once upon"):
        print(piece, end="", flush=True)
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Generator, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from pipeline.client.answers import (
    Classified,
    Code,
    Completed,
    Drawn,
    Explained,
    Interpolated,
    Nearest,
    Pictures,
    Published,
    Recognised,
    Strip,
    VersionInfo,
    Written,
)
from pipeline.closing import Closing
from pipeline.errors import ConfigError, RecordError, SamplerError, SamplerUnavailable
from pipeline.words import said

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx

    from pipeline.config import SamplerConfig

Picture = bytes | Path | Image.Image | NDArray[Any]
Answer = TypeVar("Answer", bound=VersionInfo)
ReadT = TypeVar("ReadT")
#: dtype, number of axes and length of the last of three: the arrays that are pictures
ARRAYS = {("uint8", 2), ("uint8", 3, 3), ("uint8", 3, 4), ("uint16", 2)}
ANSWER_S = 120.0  # the longest that an answer, or the next piece of a text, is waited for
CONNECT_S = 5.0
BUSY = (502, 503, 504)  # the same request can succeed later


def address(config: SamplerConfig) -> str:
    """Where the sampler of that configuration answers, as this machine sees it.

    Raises:
        ConfigError: its port is not fixed.
    """
    if config.port == 0:
        raise ConfigError("sampler.port = 0: any port, so nobody knows which. Set one, or give the sampler's URL.")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)  # noqa: S104 - all is not an address
    return f"http://{f'[{host}]' if ':' in host else host}:{config.port}"


class SamplingClient(Closing):
    """Asks a sampler, by its URL and token or as the configuration has it; connects when it is first asked.

    Pictures are given as for `publish_image`, and come as PNG files. Every answer says which version gave it and how
    fresh that is. With `sheet` all drawings are on one picture: `images` has one.

    Raises:
        SamplerUnavailable: it cannot be reached, is busy, or the model has no version yet.
        SamplerError: what was asked is wrong, or the model does something else; its `reason` is "not-found" where there
            is no such model or version.
        ConfigError, RecordError: a file cannot be read, an array is no picture.
    """

    def __init__(self, sampler: str | SamplerConfig, token: str | None = None) -> None:
        self._sampler = sampler
        self._token = token if isinstance(sampler, str) else sampler.token
        self._after: tuple[str, ...] = ()

    def close(self) -> None:
        """Disconnects."""
        if "_http" in vars(self):
            self._http.close()

    def after(self, *positions: str) -> SamplingClient:
        """A client that is answered by versions in which these records have their outcome; waits up to 30 s for one.

        It asks through this client, and need not be closed.

        Args:
            positions: "topic:partition:offset", as `publish` and a receipt tell them.
        """
        fresh = SamplingClient(self._sampler, self._token)
        fresh._http, fresh._after = self._http, positions
        return fresh

    def publish(
        self, topic: str, record: Picture | str, *, label: str | None = None, id: str | None = None
    ) -> Published:
        """Publishes a picture or a text (`str`) through the sampler, for those who have no Kafka client.

        Args:
            topic: one that a model reads.
            label: of what is in it, for learners that need to know.
            id: the producer's own name of the record; default: a digest of its content.
        """
        answer = self._sent(self._request(f"/topics/{_quoted(topic)}", record, None, {"label": label, "id": id}))
        return _read(lambda: Published.model_validate_json(answer.content))

    def answers(self, model: str) -> list[str]:
        """What the model can be asked: "classify", "generate", …"""
        answer = self._sent(self._http.build_request("GET", f"/models/{_quoted(model)}", params=self._freshness))
        return [str(route) for route in answer.json()["answers"]]

    # --- records ---

    def classify(self, model: str, record: Picture | str) -> Classified:
        """The classes of a picture or a text (`str`), by probability."""
        return self._answer(Classified, model, "classify", record)

    def recognise(self, model: str, record: Picture | str) -> Recognised:
        """The same, or `unknown` where it resembles none of the classes."""
        return self._answer(Recognised, model, "recognise", record)

    def explain(self, model: str, record: Picture | str, *, label: str | None = None) -> Explained:
        """Why a picture or a text (`str`) is taken to be of its likeliest class, or what speaks for another one."""
        return self._answer(Explained, model, "explain", record, label=label)

    def nearest(self, model: str, record: Picture | str, n: int | None = None) -> Nearest:
        """The n learned records that are nearest to a picture or a text (`str`); default: 8."""
        return self._answer(Nearest, model, "nearest", record, n=n)

    # --- drawings ---

    def generate(
        self,
        model: str,
        n: int | None = None,
        *,
        label: str | None = None,
        seed: int | None = None,
        sheet: bool = False,
    ) -> Drawn:
        """n new pictures; default: 16, or fewer where the sampler says so.

        Picture i depends on version, seed, i and label alone; without a seed it is any.
        """
        return self._drawn(Drawn, model, "generate", None, sheet, n=n, label=label, seed=seed)

    def interpolate(
        self,
        model: str,
        seed: int | None = None,
        to: int | None = None,
        *,
        steps: int | None = None,
        label: str | None = None,
        sheet: bool = False,
    ) -> Interpolated:
        """The way from image 0 of one seed to image 0 of another, both included."""
        return self._drawn(Interpolated, model, "interpolate", None, sheet, seed=seed, to=to, steps=steps, label=label)

    def strip(
        self,
        model: str,
        n: int | None = None,
        *,
        versions: Sequence[int | str] = (),
        last: int | None = None,
        label: str | None = None,
        seed: int | None = None,
        sheet: bool = False,
    ) -> Strip:
        """The same n codes drawn by many versions, or else by the last ones: image 0 by each, image 1 by each, …"""
        columns = ",".join(map(str, versions)) or None
        return self._drawn(Strip, model, "strip", None, sheet, n=n, versions=columns, last=last, label=label, seed=seed)

    def encode(self, model: str, picture: Picture, *, label: str | None = None) -> Code:
        """The latent code of a picture: mean and standard deviation of its posterior."""
        return self._answer(Code, model, "encode", picture, label=label)

    def reconstruct(self, model: str, picture: Picture, *, label: str | None = None) -> Pictures:
        """One picture: what the model draws from the mean of the code."""
        return self._drawn(Pictures, model, "reconstruct", picture, True, label=label)

    def vary(
        self,
        model: str,
        picture: Picture,
        n: int | None = None,
        *,
        strength: float = 0.5,
        label: str | None = None,
        seed: int | None = None,
        sheet: bool = False,
    ) -> Drawn:
        """n variations of a picture; strength 0 is the reconstruction, 1 has nothing of it."""
        return self._drawn(Drawn, model, "vary", picture, sheet, n=n, strength=strength, label=label, seed=seed)

    # --- pictures of any size ---

    def restore(
        self, model: str, picture: Picture, *, kind: str | None = None, mask: Picture | None = None
    ) -> Pictures:
        """One picture of the same size, without the damage. What is missing is white in the mask."""
        return self._drawn(Pictures, model, "restore", picture, True, mask, kind=kind)

    def restyle(self, model: str, picture: Picture) -> Pictures:
        """One picture of the same size in another style."""
        return self._drawn(Pictures, model, "restyle", picture, True)

    # --- texts ---

    def write(self, model: str, n: int | None = None, *, seed: int | None = None) -> Written:
        """n new texts, or one."""
        return self._answer(Written, model, "generate", n=n, seed=seed)

    def complete(
        self,
        model: str,
        prompt: str = "",
        *,
        seed: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        max_bytes: int | None = None,
        stop: str | None = None,
    ) -> TextStream:
        """What follows the prompt, piece by piece, as it is written; to `close` it early ends the work."""
        asked = {
            "prompt": prompt,
            "seed": seed,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "max_bytes": max_bytes,
            "stop": stop,
        }
        request = self._http.build_request(
            "POST",
            f"/models/{_quoted(model)}/complete",
            params=self._freshness,
            json=asked,
            headers={"Accept": "text/event-stream"},
        )
        return TextStream(self._sent(request, stream=True))

    # --- inside ---

    @cached_property
    def _http(self) -> httpx.Client:
        # Importing it takes a tenth of a second: only who asks a sampler pays.
        import httpx

        url = self._sampler if isinstance(self._sampler, str) else address(self._sampler)
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url!r} is no address of a sampler. Give one such as http://127.0.0.1:8080.")
        try:
            # To read the certificates takes longer than most answers, and plain HTTP needs none.
            secured = httpx.URL(url).scheme == "https"
            timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
            headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
            return httpx.Client(base_url=url, timeout=timeout, verify=secured, headers=headers)
        except httpx.InvalidURL as error:
            raise ConfigError(f"{url} is no URL: {said(error)}. Give one such as http://127.0.0.1:8080.") from None

    def _answer(
        self, shape: type[Answer], model: str, route: str, record: Picture | str | None = None, **asked: Any
    ) -> Answer:
        answer = self._call(model, route, record, None, asked)
        return _read(lambda: shape.model_validate_json(answer.content))

    def _drawn(
        self,
        shape: type[Answer],
        model: str,
        route: str,
        picture: Picture | None,
        sheet: bool,
        mask: Picture | None = None,
        /,
        **asked: Any,
    ) -> Answer:
        if not sheet:
            return self._answer(shape, model, route, picture, format="json", **asked)
        answer = self._call(model, route, picture, mask, asked)
        label = {"label": asked["label"]} if "label" in shape.model_fields else {}
        return _read(lambda: shape.parsed(answer.headers, images=[answer.content], **label))

    def _call(
        self, model: str, route: str, record: Picture | str | None, mask: Picture | None, asked: dict[str, Any]
    ) -> httpx.Response:
        return self._sent(self._request(f"/models/{_quoted(model)}/{route}", record, mask, asked))

    def _request(
        self, path: str, record: Picture | str | None, mask: Picture | None, asked: dict[str, Any]
    ) -> httpx.Request:
        """Posts a record, or gets what needs none. What is None in `asked` is left out."""
        body: dict[str, Any] = {}
        if record is not None:
            content, kind = (record.encode(), "text/plain") if isinstance(record, str) else encoded(record)
            body = {"content": content, "headers": {} if kind is None else {"Content-Type": kind}}
            if mask is not None:
                body = {"files": {"image": content, "mask": encoded(mask)[0]}}
        given = {name: value for name, value in asked.items() if value is not None} | self._freshness
        return self._http.build_request("POST" if body else "GET", path, params=given, **body)

    @property
    def _freshness(self) -> dict[str, list[str]]:
        return {"after": list(self._after)} if self._after else {}

    def _sent(self, request: httpx.Request, stream: bool = False) -> httpx.Response:
        import httpx

        try:
            answer = self._http.send(request, stream=stream)
            if answer.is_success:
                return answer
            answer.read()
        except httpx.HTTPError as error:
            raise _unreachable(request.url.host, error) from None
        answer.close()
        raise _refused(answer)


class TextStream(Closing, Iterator[str]):
    """The pieces of a text, as they come."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        answer = _read(lambda: Completed.parsed(response.headers, text=""))
        self.info = VersionInfo(**answer.model_dump(include=set(VersionInfo.model_fields)))
        self.seed = answer.seed
        self._pieces = self._events()

    def __next__(self) -> str:
        """
        Raises:
            SamplerUnavailable: the text broke off.
            SamplerError: the model failed.
        """
        return next(self._pieces)

    def close(self) -> None:
        """Ends the work where it is not done: there are no further pieces."""
        self._pieces.close()
        self._response.close()

    def _events(self) -> Generator[str, None, None]:
        import httpx

        kind = "message"
        try:
            for line in self._response.iter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data" and kind == "message":
                    yield json.loads(value)["text"]
                elif name == "data" and kind == "error":
                    raise SamplerError(json.loads(value)["detail"], json.loads(value)["error"])
                elif name == "data":
                    return
        except httpx.HTTPError as error:
            raise _unreachable(self._response.url.host, error) from None
        finally:
            self._response.close()
        raise SamplerUnavailable("The text broke off before its end. Ask again, or for less.")


def encoded(image: Picture) -> tuple[bytes, str | None]:
    """The bytes of a picture, and their content type where it is known.

    Raises:
        ConfigError: the file cannot be read.
        RecordError: no such array, or a PIL image that PNG cannot hold.
    """
    if isinstance(image, bytes):
        return image, None
    if isinstance(image, Path):
        try:
            return image.read_bytes(), None
        except OSError as error:
            raise ConfigError(f"{image} cannot be read: {error.strerror}. Name a file that can be.") from None
    if isinstance(image, np.ndarray):
        layout = (image.dtype.name, image.ndim, *image.shape[2:])
        if layout not in ARRAYS or not image.size:
            shown = f"an array {image.dtype} {image.shape}"
            raise RecordError("undecodable", f"{shown} is no picture. Give one of the documented layouts.")
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    try:
        image.save(buffer, "PNG")
    except OSError as error:
        raise RecordError("undecodable", f"{error}. Convert it, for instance to RGB.") from None
    return buffer.getvalue(), "image/png"


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _read(read: Callable[[], ReadT]) -> ReadT:
    try:
        return read()
    except ValidationError as error:
        first: Any = error.errors()[0]
        fault = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise SamplerError(f"The answer is of another kind than was asked for: {fault}.", "wrong-kind") from None


def _unreachable(host: str, error: Exception) -> SamplerUnavailable:
    return SamplerUnavailable(
        f"The sampler at {host} does not answer: {said(error)}. See that `headrace serve` runs there."
    )


def _refused(answer: httpx.Response) -> Exception:
    try:
        fault = answer.json()
        detail, reason = str(fault["detail"]), str(fault["error"])
    except (ValueError, KeyError, TypeError):
        detail, reason = f"{answer.url} answered {answer.status_code}, and not as a sampler does.", "not-a-sampler"
    if answer.status_code in BUSY:
        return SamplerUnavailable(detail, reason)
    return SamplerError(detail, reason)
