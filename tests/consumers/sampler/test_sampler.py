"""The sampler over HTTP: a real uvicorn, a real Redis, versions that are committed while it answers."""

from __future__ import annotations

import base64
import http.client
import io
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from safetensors.torch import load

from consumers.loading import resolve_blueprint
from pipeline.store.store import Store
from tests.consumers.marked import Maker, marked, step
from tests.consumers.running import PATIENCE_S, Running, configuration, running
from tests.pipeline.bombs import REFUSED, jpeg
from tests.services import unique

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
GREY = {"kind": "image", "size": 8, "channels": 1}


def picture(side: str = "left", size: int = 8, form: str = "PNG") -> bytes:
    """A black square of which the left or the right half is white."""
    image = Image.new("L", (size, size))
    start = 0 if side == "left" else size // 2
    image.paste(255, (start, 0, start + size // 2, size))
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


@pytest.fixture(scope="module")
def redis_(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(scope="module")
def sampler(redis_url: str, redis_: Redis) -> Iterator[Running]:
    """Serves `marks` (the marked learner), `sides` (the bright side of pictures), `tongues`, `squares` and `empty`."""
    x = torch.zeros(16, 1, 8, 8, dtype=torch.uint8)
    x[:8, :, :, :4] = 255
    x[8:, :, :, 4:] = 255
    labels = ["left"] * 8 + ["right"] * 8
    tables: dict[str, dict[str, Any]] = {
        "sides": {"learner": "image-classifier", "input": GREY},
        "squares": {"learner": "image-vae", "input": GREY, "options": {"young_updates": 0}},
        "tongues": {"learner": "text-classifier"},
    }
    config = configuration(redis_url, {"marks": {}, "empty": {}, **tables}, max_upload_bytes=20_000)
    config = config.model_copy(
        update={"models": {n: m.model_copy(update={"family": unique(n)}) for n, m in config.models.items()}}
    )
    with running(config) as at:
        for name in tables:
            table = config.models[name]
            input_ = table.input.model_dump()
            store = Store(redis_, config.family(name), name)
            maker = Maker(store, table.learner, resolve_blueprint(table.learner), input_, **table.options)
            for _ in range(20):
                if table.input.kind == "image":
                    maker.learn(x, labels)
                else:
                    words = torch.tensor(
                        [
                            [
                                *map(ord, "haus    "),
                            ],
                            [*map(ord, "house   ")],
                        ],
                        dtype=torch.int32,
                    )
                    maker.learn(words, ["de", "en"])
            maker.commit()
            assert at.serves(name, 1)
        step(marked(Store(redis_, config.family("marks"), "marks")))
        assert at.serves("marks", 1)
        yield at


# --- answers ---


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_classified_however_it_is_sent(sampler: Running, form: str) -> None:
    content = picture(form=form)
    ways: list[dict[str, Any]] = [
        {"content": content, "headers": {"Content-Type": f"image/{form.lower()}"}},
        {"content": content},
        {"content": content, "headers": {"Content-Type": "application/x-www-form-urlencoded"}},  # curl --data-binary
        {"files": {"image": ("a file", content, f"image/{form.lower()}")}},
    ]
    answers = [sampler.client.post("/models/sides/classify", **way).json() for way in ways]
    for answer in answers:
        assert answer["label"] == "left"
        assert answer["probability"] == max(answer["probabilities"].values()) > 0.5
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert list(answer["probabilities"]) == ["left", "right"]  # the most probable first
    right = sampler.client.post("/models/sides/classify", content=picture("right")).json()
    assert right["label"] == "right"


def test_a_text_is_classified_however_it_is_sent(sampler: Running) -> None:
    ways: list[dict[str, Any]] = [
        {"content": b"haus", "headers": {"Content-Type": "text/plain; charset=utf-8"}},
        {"content": b"haus"},
        {"json": {"text": "haus"}},
        {"data": {"text": "haus"}},
        {"content": b"haus", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},  # curl -d
        {"files": {"text": (None, "haus")}},
    ]
    answers = [sampler.client.post("/models/tongues/classify", **way).json() for way in ways]
    assert [answer["label"] for answer in answers] == ["de"] * len(ways)
    assert sampler.client.post("/models/tongues/classify", content=b"house").json()["label"] == "en"
    assert sampler.client.post("/models/tongues/classify", json={"text": "家🏠"}).status_code == 200


@pytest.mark.parametrize("text", ["guten Tag + mehr", "a=b&c=d", "text=", "家🏠", "100 % = 1", "\u00e9t\u00e9"])
def test_a_form_is_its_text_and_not_how_it_is_written(sampler: Running, text: str) -> None:
    def asked(**body: Any) -> Any:
        return sampler.client.post("/models/tongues/classify", **body).json()["probabilities"]

    plain = asked(content=text.encode(), headers={"Content-Type": "text/plain"})
    assert asked(data={"text": text}) == asked(files={"text": (None, text)}) == plain


def test_every_answer_says_which_version_gave_it_and_how_fresh_that_is(sampler: Running) -> None:
    live = sampler.follower("sides").live
    assert live is not None
    answer = sampler.client.post("/models/sides/classify", content=picture()).json()
    assert answer["model"] == "sides"
    assert answer["version"] == 1
    assert answer["digest"] == live.manifest.digest
    assert answer["watermark"] == {"topic": {"0": 20}}
    assert 0 < answer["freshness_s"] < 600
    assert answer["lag_records"] == 7
    headers = sampler.client.get("/models/squares/generate?n=1").headers
    assert headers["x-headrace-model"] == "squares"
    assert headers["x-headrace-version"] == "1"
    assert headers["x-headrace-watermark"] == '{"topic": {"0": 20}}'
    assert float(headers["x-headrace-freshness-s"]) > 0
    assert headers["x-headrace-lag-records"] == "7"


def images(answer: httpx.Response) -> list[np.ndarray[Any, Any]]:
    assert answer.status_code == 200, answer.text
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))) for image in answer.json()["images"]]


def test_drawings_depend_on_version_seed_label_and_number_alone(sampler: Running) -> None:
    url = "/models/squares/generate"
    ask: dict[str, Any] = {"seed": 11, "label": "left", "format": "json"}
    five = images(sampler.client.get(url, params={**ask, "n": 5}))
    others: list[bool] = []

    def ask_for_others(seed: int) -> None:
        with httpx.Client(base_url=sampler.url, timeout=PATIENCE_S) as client:
            for n in range(1, 9):
                answer = client.get(url, params={"n": n, "seed": seed, "format": "json"})
                others.append(answer.status_code == 200)

    threads = [threading.Thread(target=ask_for_others, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    again = [images(sampler.client.get(url, params={**ask, "n": n})) for n in (1, 5, 3, 7, 5)]
    for thread in threads:
        thread.join()
    assert others == [True] * 32
    for drawn in again:
        for image, first in zip(drawn, five, strict=False):
            np.testing.assert_array_equal(image, first)
    assert not np.array_equal(five[0], five[1])
    other = images(sampler.client.get(url, params={**ask, "seed": 12, "n": 1}))
    assert not np.array_equal(other[0], five[0])


def test_a_grid_holds_the_same_images_as_json(sampler: Running) -> None:
    url = "/models/squares/generate"
    single = images(sampler.client.get(url, params={"n": 5, "seed": 3, "format": "json"}))
    answer = sampler.client.get(url, params={"n": 5, "seed": 3})
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-headrace-seed"] == "3"
    grid = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert grid.shape == (2 * 8, 3 * 8)
    cells = [grid[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] for row in range(2) for column in range(3)]
    np.testing.assert_array_equal(cells, [*single, np.zeros((8, 8))])


def test_a_seed_that_was_not_given_is_answered_and_draws_the_same_again(sampler: Running) -> None:
    url = "/models/squares/generate"
    answer = sampler.client.get(url, params={"n": 2, "format": "json"})
    again = sampler.client.get(url, params={"n": 2, "format": "json", "seed": answer.json()["seed"]})
    np.testing.assert_array_equal(images(answer), images(again))


# --- versions ---


def test_models_say_what_they_are_and_what_is_missing(sampler: Running) -> None:
    models = {model["model"]: model for model in sampler.client.get("/models").json()}
    assert list(models) == ["empty", "marks", "sides", "squares", "tongues"]
    assert models["sides"]["answers"] == ["classify", "explain", "nearest"]
    drawn = ["nearest", "generate", "interpolate", "strip", "encode", "reconstruct", "vary"]
    assert models["squares"]["answers"] == drawn
    assert models["sides"]["classes"] == ["left", "right"]
    assert models["sides"]["counts"] == {"learned": 20}
    assert models["empty"]["standing"] is None
    assert models["empty"]["problem"] == "It has no version yet."
    assert sampler.client.get("/models/sides").json()["standing"]["version"] == 1


def test_weights_can_be_downloaded_and_answer_the_same(sampler: Running) -> None:
    live = sampler.follower("sides").live
    assert live is not None
    answer = sampler.client.get("/models/sides/versions/latest/weights")
    assert answer.headers["x-headrace-digest"] == live.digest
    assert 'filename="sides-v1.safetensors"' in answer.headers["content-disposition"]
    state = load(answer.content)
    assert state.keys() == live.manifest.serving.keys()
    served = {name: tensor.cpu() for name, tensor in live.model.state_dict().items()}  # type: ignore[attr-defined]
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, served[name], rtol=0, atol=0)


def test_a_manifest_is_served_byte_for_byte(sampler: Running) -> None:
    live = sampler.follower("sides").live
    assert live is not None
    for ref in ("latest", "1", live.digest[:12]):
        answer = sampler.client.get(f"/models/sides/versions/{ref}")
        assert answer.content == live.manifest.raw
    assert sampler.client.get("/models/sides/versions").json() == [{"version": 1, "digest": live.digest, "aliases": []}]


def test_an_alias_is_set_served_and_removed(sampler: Running) -> None:
    url = "/models/squares/aliases/stable"
    assert sampler.client.put(url, json={"version": 1}).status_code == 204
    assert sampler.client.get("/models/squares/versions").json()[0]["aliases"] == ["stable"]
    assert sampler.client.get("/models/squares/versions/stable").json()["version"] == 1
    assert sampler.client.delete(url).status_code == 204
    assert sampler.client.get("/models/squares/versions/stable").status_code == 404
    assert sampler.client.delete(url).status_code == 404


# --- what is wrong is said ---


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("GET", "/models/none", {}, 404, "not-found"),
        ("GET", "/nowhere", {}, 404, "not-found"),
        ("GET", "/models/sides/classify", {}, 405, "method-not-allowed"),
        ("GET", "/models/sides/versions/17", {}, 404, "not-found"),
        ("GET", "/models/sides/versions/" + "9" * 5000, {}, 422, "invalid"),
        ("GET", "/models/sides/versions/none/weights", {}, 404, "not-found"),
        ("GET", "/models/sides/generate", {}, 409, "wrong-kind"),
        ("POST", "/models/squares/classify", {"content": b"x"}, 409, "wrong-kind"),
        ("POST", "/models/empty/classify", {"content": b"x"}, 503, "no-version"),
        ("GET", "/models/squares/generate?label=nobody", {}, 422, "label"),
        ("GET", "/models/squares/generate?n=0", {}, 422, "invalid"),
        ("GET", "/models/squares/generate?n=65", {}, 422, "invalid"),
        ("GET", "/models/squares/generate?seed=-1", {}, 422, "invalid"),
        ("POST", "/models/sides/classify", {"content": b""}, 422, "undecodable"),
        ("POST", "/models/sides/classify", {"content": b"no picture"}, 422, "undecodable"),
        ("POST", "/models/sides/classify", {"content": picture()[:50]}, 422, "undecodable"),
        ("POST", "/models/sides/classify", {"content": picture(size=7000)}, 413, "too-large"),
        ("POST", "/models/sides/classify", {"content": REFUSED["webp: 34 bytes"]()}, 413, "too-large"),
        ("POST", "/models/squares/encode", {"content": jpeg(100)}, 413, "too-large"),
        ("POST", "/models/sides/classify", {"content": bytes(20_001)}, 413, "too-large"),
        ("POST", "/models/sides/classify", {"files": {"a": b"x" * 20_001}}, 413, "too-large"),
        ("POST", "/models/sides/classify", {"content": iter([bytes(9_999)] * 3)}, 413, "too-large"),
        ("POST", "/models/tongues/classify", {"content": b"\xff"}, 422, "undecodable"),
        ("POST", "/models/tongues/classify", {"content": b""}, 422, "empty"),
        ("POST", "/models/tongues/classify", {"data": {"text": "x", "more": "y"}}, 422, "invalid"),
        ("POST", "/models/tongues/classify", {"data": {"text": ""}}, 422, "empty"),
        (
            "POST",
            "/models/tongues/classify",
            {"content": b"text=%ff", "headers": FORM},
            422,
            "undecodable",
        ),
        ("POST", "/models/sides/classify", {"data": {"image": "x"}}, 422, "undecodable"),
        ("POST", "/models/tongues/classify", {"json": {"txt": "x"}}, 422, "invalid"),
        ("POST", "/models/tongues/classify", {"json": ["x"]}, 422, "invalid"),
        ("PUT", "/models/sides/aliases/stable", {"json": {"version": 99}}, 404, "not-found"),
        ("PUT", "/models/sides/aliases/latest", {"json": {"version": 1}}, 422, "invalid"),
        ("PUT", "/models/sides/aliases/17", {"json": {"version": 1}}, 422, "invalid"),
        ("PUT", "/models/sides/aliases/UPPER", {"json": {"version": 1}}, 422, "invalid"),
        ("PUT", "/models/sides/aliases/a", {"content": b"[" * 10_000}, 422, "invalid"),
    ],
)
def test_bad_requests_hear_what_is_wrong(
    sampler: Running, method: str, path: str, body: dict[str, Any], status: int, error: str
) -> None:
    answer = sampler.client.request(method, path, **body)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert len(answer.json()["detail"]) > 10


def test_a_body_that_is_too_large_is_not_read_to_its_end(sampler: Running) -> None:
    address = urlsplit(sampler.url)
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port or 80), PATIENCE_S) as connection:
        connection.sendall(
            b"POST /models/sides/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
        )
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 413
        assert response.headers["connection"] == "close"


DEEP = [b"[" * 5000, b'{"text":' * 3000, b'{"text": "\\ud800"}', b'{"text": 1e999}', b"\x00", b"\xef\xbb\xbf"]
TYPES = ["", "text/plain", "image/png", "application/json", "multipart/form-data", "multipart/form-data; boundary=b"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    model=st.sampled_from(["sides", "tongues"]),
    body=st.one_of(
        st.binary(max_size=200),
        st.text(max_size=50).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.sampled_from(DEEP),
        st.binary(max_size=60).map(lambda tail: picture()[:40] + tail),
        st.binary(max_size=60).map(lambda part: b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n' + part),
    ),
    type_=st.one_of(st.sampled_from(TYPES), st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)),
)
def test_no_body_makes_the_sampler_fail(sampler: Running, model: str, body: bytes, type_: str) -> None:
    answer = sampler.client.post(f"/models/{model}/classify", content=body, headers={"Content-Type": type_})
    assert answer.status_code in (200, 400, 413, 422), (answer.status_code, answer.text)
    if answer.status_code != 200:
        assert answer.json().keys() == {"error", "detail"}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.dictionaries(
        st.sampled_from(["n", "label", "seed", "format"]),
        st.one_of(st.text(max_size=30), st.integers().map(str), st.sampled_from(["left", "json", "png", "3"])),
    )
)
def test_no_query_makes_the_sampler_fail(sampler: Running, asked: dict[str, str]) -> None:
    answer = sampler.client.get("/models/squares/generate", params=asked)
    assert answer.status_code in (200, 422), (answer.status_code, answer.text)


# --- who may ---


def test_a_page_of_another_site_is_turned_away_by_its_host(sampler: Running) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        answer = sampler.client.get("/models", headers={"Host": host})
        assert (answer.status_code, answer.json()["error"]) == (421, "host")
    for host in ("localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080"):
        assert sampler.client.get("/models", headers={"Host": host}).status_code == 200


# --- operation ---


def test_the_metrics_are_prometheus_text(sampler: Running) -> None:
    sampler.client.post("/models/sides/classify", content=picture())
    sampler.client.get("/nowhere/at/all")
    text = sampler.client.get("/metrics").text
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    classify = ("route", "/models/{model}/classify"), ("status", "200")
    assert samples[("headrace_request_seconds_count", *classify)] >= 1
    assert samples[("headrace_request_seconds_count", ("route", "other"), ("status", "404"))] >= 1
    assert samples[("headrace_served_version", ("model", "sides"))] == 1
    assert samples[("headrace_store_up",)] == 1


def test_the_page_needs_nothing_from_elsewhere(sampler: Running) -> None:
    answer = sampler.client.get("/")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http" + "://" not in answer.text
    assert "http" + "s://" not in answer.text


def test_the_routes_are_documented(sampler: Running) -> None:
    document = sampler.client.get("/openapi.json").json()
    operations = {(method, path): op for path, ops in document["paths"].items() for method, op in ops.items()}
    assert ("post", "/models/{model}/classify") in operations
    assert all(operation["description"] for operation in operations.values())
