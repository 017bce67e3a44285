"""The client's questions to a real sampler, and what it makes of refusals and outages."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.client.answers import Drawn
from pipeline.client.client import Client
from pipeline.client.sampling import Picture, SamplingClient, address
from pipeline.config import Config, SamplerConfig
from pipeline.errors import (
    ConfigError,
    HeadraceError,
    RecordError,
    SamplerError,
    SamplerUnavailable,
)
from tests.consumers.answering import VERSIONS, file, photo, seen, serving, stepping
from tests.consumers.running import Running

PIXELS = photo(20, 16)


@pytest.fixture(scope="module")
def sampler(redis_url: str) -> Iterator[Running]:
    with serving(redis_url, "eyes", "voice", "drawings") as (at, _):
        yield at


@pytest.fixture
def client(sampler: Running) -> Iterator[Client]:
    """A whole client: that its log and its store are away does not matter to the sampler's answers."""
    with Client(Config(), sampler.url) as client:
        yield client


def test_records_are_classified_and_recognised(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(file(PIXELS * 0))
    pictures: list[Picture] = [PIXELS * 0, Image.fromarray(PIXELS * 0), file(PIXELS * 0), tmp_path / "a.png"]
    for picture in pictures:
        answer = client.recognise("eyes", picture)
        assert (answer.label, answer.unknown, answer.probability) == ("dark", False, 1)
        assert (answer.model, answer.version, answer.watermark) == ("eyes", VERSIONS, {"topic": {0: VERSIONS}})
        assert client.classify("eyes", picture).probabilities == {"dark": 1, "bright": 0}
    assert client.recognise("eyes", np.full((8, 8), 128, np.uint8)).unknown
    assert client.answers("eyes") == ["classify", "recognise", "explain", "restore", "restyle"]


def test_answers_are_explained_and_records_found_again(client: Client) -> None:
    why = client.explain("eyes", PIXELS * 0, label="bright")
    assert (why.label, why.probability, why.method, why.version) == ("bright", 0, "occlusion", VERSIONS)
    assert why.heat is not None
    assert why.image is not None
    assert len(why.heat) == len(why.heat[0]) == 8
    near = client.nearest("drawings", photo(8, 8, 1), 1)
    assert (len(near.records), near.version, near.is_copy) == (1, VERSIONS, False)
    assert near.records[0].image is not None
    assert seen(near.records[0].image).shape == (8, 8)


def test_drawings_come_one_by_one_or_on_a_sheet(client: Client) -> None:
    grey = photo(8, 8, 1)
    ways: list[tuple[Callable[..., Drawn], int, tuple[int, int]]] = [
        (lambda **how: client.generate("drawings", 4, label="left", seed=1, **how), 4, (2, 2)),
        (lambda **how: client.interpolate("drawings", 1, 2, steps=3, label="left", **how), 3, (1, 3)),
        (lambda **how: client.strip("drawings", 2, versions=[1, "latest"], seed=1, label="left", **how), 4, (2, 2)),
        (lambda **how: client.vary("drawings", grey, 4, strength=0.2, seed=1, label="left", **how), 4, (2, 2)),
    ]
    for ask, count, (rows, columns) in ways:
        single, sheet = ask(), ask(sheet=True)
        assert len(single.images) == count
        cells = np.stack([seen(image) for image in single.images]).reshape(rows, columns, 8, 8)
        np.testing.assert_array_equal(seen(sheet.images[0]), cells.transpose(0, 2, 1, 3).reshape(8 * rows, 8 * columns))
        both = [answer.model_dump(exclude={"images", "freshness_s"}) for answer in (single, sheet)]
        assert both[0] == both[1]
        assert (single.seed, single.label, single.version) == (1, "left", VERSIONS)
    assert client.strip("drawings", 1, last=2).versions == [2, 3]
    assert client.interpolate("drawings", 1, 2).to == 2


def test_pictures_are_encoded_reconstructed_restored_and_restyled(client: Client) -> None:
    grey = photo(8, 8, 1)
    code = client.encode("drawings", grey, label="left")
    assert (len(code.mean), len(code.std), code.label) == (4, 4, "left")
    again = client.reconstruct("drawings", grey, label="left").images[0]
    [same] = client.vary("drawings", grey, 1, strength=0, label="left").images
    np.testing.assert_array_equal(seen(again), seen(same))
    np.testing.assert_array_equal(seen(client.restyle("eyes", PIXELS).images[0]), PIXELS[:, ::-1])
    mask = np.zeros((16, 20), np.uint8)
    mask[3:5] = 255
    restored = client.restore("eyes", PIXELS, kind="negative", mask=mask)
    np.testing.assert_array_equal(seen(restored.images[0]), np.where(mask[..., None] > 0, 200, 255 - PIXELS))
    assert (restored.model, restored.version) == ("eyes", VERSIONS)


def test_a_text_comes_piece_by_piece(client: Client) -> None:
    # What splits lines elsewhere (U+0085, U+2028) is a character as any other.
    pieces = client.complete("voice", "\u2028家\n\x85", seed=3, temperature=0.5, max_bytes=30, stop="Samp")
    assert (pieces.seed, pieces.info.version) == (3, VERSIONS)
    assert list(pieces) == list(f"\x85\n家\u2028 v{VERSIONS} 3 ")
    assert list(pieces) == []
    [one, two] = client.write("voice", 2, seed=1).texts
    assert one != two


def test_who_closes_a_text_ends_the_work(client: Client) -> None:
    with stepping() as steps:
        with client.complete("voice", steps.prompt) as pieces:
            steps.go()
            assert next(pieces) == f"0:v{VERSIONS} "
        assert list(pieces) == []
        assert steps.end_early()


def test_refusals_are_errors_that_say_what_is_wrong(client: Client, tmp_path: Path) -> None:
    refused: list[tuple[Callable[[], object], type[HeadraceError], str]] = [
        (lambda: client.classify("none", b""), SamplerError, "There is no model none"),
        (lambda: client.classify("../healthz?", b""), SamplerError, "Not Found"),
        (lambda: client.classify("drawings", "x"), SamplerError, "drawings does not classify"),
        (lambda: client.classify("eyes", "x"), SamplerError, "reads image"),
        (lambda: client.generate("voice"), SamplerError, "another kind than was asked for"),
        (lambda: client.generate("voice", sheet=True), SamplerError, "another kind than was asked for"),
        (lambda: client.write("drawings"), SamplerError, "another kind than was asked for"),
        (lambda: client.generate("drawings", label="none"), SamplerError, "Known: left"),
        (lambda: client.strip("drawings", versions=[9]), SamplerError, "9 names no version"),
        (lambda: client.restore("eyes", tmp_path / "none.png"), ConfigError, "none.png cannot be read"),
        (lambda: client.restyle("eyes", np.zeros((2, 2))), RecordError, "is no picture"),
        (lambda: client.complete("voice", temperature=-1), SamplerError, "greater than or equal to 0"),
        (lambda: list(client.complete("voice", "fail")), SamplerError, "failed at this text"),
    ]
    for ask, kind, words in refused:
        with pytest.raises(kind, match=words) as raised:
            ask()
        assert not raised.value.retriable
    with pytest.raises(SamplerError) as wrong:
        client.classify("drawings", "x")
    assert (wrong.value.reason, wrong.value.exit_status) == ("wrong-kind", 9)
    with pytest.raises(SamplerError) as unknown:
        client.classify("none", "x")
    assert (unknown.value.reason, unknown.value.exit_status) == ("not-found", 9)


def test_a_busy_sampler_can_be_asked_again(client: Client, sampler: Running) -> None:
    with ExitStack() as held:
        for number in range(8):
            held.enter_context(sampler.service.slow_admission.admit(f"client {number}"))
        for ask in (lambda: client.restyle("eyes", PIXELS), lambda: client.complete("voice", "x")):
            with pytest.raises(SamplerUnavailable, match="Too many requests"):
                ask()
    assert client.restyle("eyes", PIXELS)


def test_a_sampler_that_is_not_there_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Client(Config(sampler=SamplerConfig(port=port))) as client:
        for ask in (lambda: client.classify("m", b"x"), lambda: client.complete("m")):
            with pytest.raises(SamplerUnavailable, match="headrace serve") as raised:
                ask()
            assert raised.value.retriable
    for url in ("127.0.0.1:80", "ftp://x", "http://[", "nothing"):
        with pytest.raises((ConfigError, SamplerUnavailable)), SamplingClient(url) as asked:
            asked.classify("m", b"x")


class Stranger(BaseHTTPRequestHandler):
    """Something else than a sampler, or one that breaks off."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, kind, body = 200, "text/html", b"<p>Welcome"
        headers: dict[str, str] = {}
        if "/half/" in self.path:
            kind, body = "text/event-stream", b'data: {"text": "so far"}\n\n'
            fields: dict[str, Any] = {"model": "half", "version": 1, "digest": "d", "watermark": "{}", "seed": 1}
            headers = {f"X-Headrace-{name.title()}": str(value) for name, value in fields.items()}
        if "/broken/" in self.path:
            status = 500
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *_: object) -> None:
        pass


def test_what_is_no_sampler_is_reported_as_that() -> None:
    server = HTTPServer(("127.0.0.1", 0), Stranger)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with SamplingClient(f"http://127.0.0.1:{server.server_port}") as client:
            for ask in (
                lambda: client.classify("page", b"x"),
                lambda: client.restyle("page", b"x"),
                lambda: client.complete("page"),
                lambda: client.classify("broken", b"x"),
            ):
                with pytest.raises(SamplerError):
                    ask()
            pieces = client.complete("half")
            assert next(pieces) == "so far"
            with pytest.raises(SamplerUnavailable, match="broke off"):
                next(pieces)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_address_is_the_configurations() -> None:
    assert address(SamplerConfig()) == "http://127.0.0.1:8080"
    assert address(SamplerConfig(host="0.0.0.0", port=1)) == "http://127.0.0.1:1"  # noqa: S104
    assert address(SamplerConfig(host="::1", port=1)) == address(SamplerConfig(host="::", port=1)) == "http://[::1]:1"
    with pytest.raises(ConfigError, match=r"sampler\.port = 0"):
        address(SamplerConfig(port=0))


def test_an_answer_survives_json(client: Client) -> None:
    answer = client.generate("drawings", 2)
    assert Drawn.model_validate_json(answer.model_dump_json()) == answer
    assert Image.open(io.BytesIO(answer.images[0])).size == (8, 8)
