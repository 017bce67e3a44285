"""Every kind of answer about pictures, over HTTP: a real sampler, a real Redis, models whose answers are known."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from numpy.typing import NDArray
from PIL import Image

from consumers.loading import build
from consumers.sampler.routes_drawings import strip
from consumers.sampler.routes_texts import seeds_of
from models.capabilities import Autoencoder
from models.images.generator import between
from models.registry import BUILTIN
from pipeline.errors import NotFound
from pipeline.store.manifest import Ref
from tests.consumers.answering import VERSIONS, commit, file, photo, seen, serving, stepping
from tests.consumers.marked import Maker
from tests.consumers.running import Running

EXIF_TURN = 0x0112
MOST = 24  # pictures drawn by one request


@pytest.fixture(scope="module")
def made(redis_url: str) -> Iterator[tuple[Running, dict[str, Maker]]]:
    limits = {"max_samples": MOST, "max_versions": 3, "max_side": 64, "max_upload_bytes": 40_000}
    with serving(redis_url, "eyes", "voice", "drawings", **limits, proxies=["127.0.0.1"]) as made:
        yield made


@pytest.fixture(scope="module")
def sampler(made: tuple[Running, dict[str, Maker]]) -> Running:
    return made[0]


@pytest.fixture(scope="module")
def vae(sampler: Running) -> Autoencoder:
    """The newest version of `drawings`."""
    live = sampler.follower("drawings").live
    assert live is not None
    assert isinstance(live.model, Autoencoder)
    return live.model


def stands(answer: httpx.Response, model: str, version: int = VERSIONS) -> None:
    """It is a PNG that says which version gave it and how fresh that is."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert (answer.headers["x-headrace-model"], answer.headers["x-headrace-version"]) == (model, str(version))
    assert float(answer.headers["x-headrace-freshness-s"]) >= 0
    assert answer.headers["cache-control"] == "no-store"


def listed(answer: httpx.Response) -> NDArray[np.uint8]:
    """(n, H, W) uint8: the pictures of a JSON answer."""
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] >= 1
    return np.stack([seen(base64.b64decode(image, validate=True)) for image in answer.json()["images"]])


def test_models_say_what_they_answer(sampler: Running) -> None:
    models = {model["model"]: model for model in sampler.client.get("/models").json()}
    drawn = ["nearest", "generate", "interpolate", "strip", "encode", "reconstruct", "vary"]
    assert models["drawings"]["answers"] == drawn
    assert models["eyes"]["answers"] == ["classify", "recognise", "explain", "restore", "restyle"]
    assert models["voice"]["answers"] == ["generate", "complete"]
    assert models["eyes"]["kinds"] == ["holes", "negative"]
    assert models["drawings"]["kinds"] == []


# --- recognise ---


@pytest.mark.parametrize(("shade", "label"), [(0, "dark"), (255, "bright"), (128, None)])
def test_what_resembles_no_class_is_unknown(sampler: Running, shade: int, label: str | None) -> None:
    content = file(np.full((8, 8, 3), shade, np.uint8))
    answer = sampler.client.post("/models/eyes/recognise", content=content).json()
    assert (answer["label"], answer["unknown"]) == (label, label is None)
    assert answer["probability"] == (None if label is None else 1.0)
    assert sorted(answer["probabilities"]) == ["bright", "dark"]
    assert (answer["model"], answer["version"]) == ("eyes", VERSIONS)
    classified = sampler.client.post("/models/eyes/classify", content=content).json()
    assert classified["label"] in ("bright", "dark")
    assert "unknown" not in classified


# --- codes ---


def test_the_way_between_two_seeds_starts_and_ends_at_what_they_draw(sampler: Running, vae: Autoencoder) -> None:
    url = "/models/drawings/interpolate"
    ask: dict[str, Any] = {"seed": 1, "to": 2, "steps": 5, "label": "left"}
    way = listed(sampler.client.get(url, params={**ask, "format": "json"}))
    for seed, end in ((1, way[0]), (2, way[-1])):
        one: dict[str, Any] = {"n": 1, "seed": seed, "label": "left", "format": "json"}
        drawn = listed(sampler.client.get("/models/drawings/generate", params=one))[0]
        np.testing.assert_allclose(end.astype(int), drawn.astype(int), atol=1)  # of the codes' last bits
    start, end = vae.latents([seeds_of(seed, 1)[0] for seed in (1, 2)])
    np.testing.assert_array_equal(way, vae.draw(between(start, end, 5), ["left"] * 5).numpy()[:, 0])
    row = sampler.client.get(url, params=ask)
    stands(row, "drawings")
    assert (row.headers["x-headrace-seed"], row.headers["x-headrace-to"]) == ("1", "2")
    np.testing.assert_array_equal(seen(row.content), np.hstack(list(way)))


def test_a_picture_is_encoded_reconstructed_and_varied(sampler: Running, vae: Autoencoder) -> None:
    pixels = photo(8, 8, 1)
    x = torch.from_numpy(pixels.copy())[None, None]
    mean, std = vae.encode(x, ["right"])
    code = sampler.client.post("/models/drawings/encode?label=right", content=file(pixels)).json()
    assert (code["model"], code["version"], code["label"]) == ("drawings", VERSIONS, "right")
    np.testing.assert_allclose(code["mean"], mean[0].numpy(), rtol=1e-6)
    np.testing.assert_allclose(code["std"], std[0].numpy(), rtol=1e-6)

    reconstructed = sampler.client.post("/models/drawings/reconstruct?label=right", content=file(pixels))
    stands(reconstructed, "drawings")
    np.testing.assert_array_equal(seen(reconstructed.content), vae.draw(mean, ["right"]).numpy()[0, 0])

    def varied(strength: float, n: int) -> NDArray[np.uint8]:
        ask: dict[str, Any] = {"n": n, "strength": strength, "seed": 5, "label": "right", "format": "json"}
        return listed(sampler.client.post("/models/drawings/vary", params=ask, content=file(pixels)))

    np.testing.assert_array_equal(varied(0, 2), np.stack([seen(reconstructed.content)] * 2))
    new: dict[str, Any] = {"n": 3, "seed": 5, "label": "right", "format": "json"}
    np.testing.assert_array_equal(varied(1, 3), listed(sampler.client.get("/models/drawings/generate", params=new)))
    codes = 0.6 * mean + 0.8 * vae.latents(seeds_of(5, 3))
    np.testing.assert_array_equal(varied(0.8, 3), vae.draw(codes, ["right"] * 3).numpy()[:, 0])
    np.testing.assert_array_equal(varied(0.8, 2), varied(0.8, 3)[:2])
    sheet = sampler.client.post("/models/drawings/vary?n=4&seed=5", content=file(pixels))
    stands(sheet, "drawings")
    assert seen(sheet.content).shape == (16, 16)


# --- film-strips ---


def test_a_film_strip_shows_the_same_codes_by_many_versions(
    made: tuple[Running, dict[str, Maker]], sampler: Running
) -> None:
    store = made[1]["drawings"].store
    seeds = seeds_of(9, 2)
    columns = []
    for version in (1, 2, 3):
        model: Any = build(
            store.manifest(version), store.arrays(store.manifest(version), "serving"), BUILTIN["image-vae"]
        )
        columns.append(model.generate(seeds, ["left"] * 2).numpy()[:, 0])  # (2, H, W)
    assert not np.array_equal(columns[0], columns[2])
    cells = np.stack(columns, 1).reshape(-1, 8, 8)
    ask: dict[str, Any] = {"n": 2, "seed": 9, "label": "left"}
    ways: list[dict[str, Any]] = [{"versions": "1,2,3"}, {"last": 3}, {}]
    for versions in ways:
        answer = sampler.client.get("/models/drawings/strip", params={**ask, **versions, "format": "json"})
        np.testing.assert_array_equal(listed(answer), cells)
        assert (answer.json()["versions"], answer.json()["version"]) == ([1, 2, 3], 3)
    sheet = sampler.client.get("/models/drawings/strip", params={**ask, "versions": "2,1,2"})
    stands(sheet, "drawings", 2)
    assert sheet.headers["x-headrace-versions"] == "[2, 1]"
    np.testing.assert_array_equal(seen(sheet.content), np.block([[columns[1][row], columns[0][row]] for row in (0, 1)]))


def test_a_version_that_is_removed_meanwhile_is_left_out_of_a_film_strip(
    made: tuple[Running, dict[str, Maker]], sampler: Running
) -> None:
    refs = [Ref(version=99, digest="0" * 64), *made[1]["drawings"].store.versions()]
    newest, _, numbers = strip(sampler.follower("drawings"), refs, [1], "left", whole=False)
    assert (newest.manifest.version, numbers) == (3, [1, 2, 3])
    with pytest.raises(NotFound, match="Version 99"):
        strip(sampler.follower("drawings"), refs, [1], "left", whole=True)


def test_a_version_that_did_not_know_the_label_yet_draws_black(sampler: Running) -> None:
    ask: dict[str, Any] = {"n": 1, "seed": 9, "label": "right", "format": "json"}
    first, second = listed(sampler.client.get("/models/drawings/strip", params={**ask, "versions": "1,2"}))
    assert not first.any()
    assert second.any()
    refused = sampler.client.get("/models/drawings/strip", params={**ask, "versions": "1"})
    assert (refused.status_code, refused.json()["error"]) == (422, "label")


# --- pictures of any size ---


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(("width", "height"), [(16, 16), (61, 17), (20, 64)])
def test_a_picture_keeps_its_size_whatever_the_model_was_taught_on(
    sampler: Running, form: str, width: int, height: int
) -> None:
    pixels = photo(width, height)
    settings = {"lossless": True} if form == "WEBP" else {}
    restyled = sampler.client.post("/models/eyes/restyle", content=file(pixels, form, **settings))
    stands(restyled, "eyes")
    np.testing.assert_array_equal(seen(restyled.content), pixels[:, ::-1])
    turned = sampler.client.post("/models/eyes/restore?kind=negative", content=file(pixels, form, **settings))
    np.testing.assert_array_equal(seen(turned.content), 255 - pixels)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_a_picture_is_turned_upright_at_its_own_size(sampler: Running, form: str, turn: int) -> None:
    exif = Image.Exif()
    exif[EXIF_TURN] = turn
    pixels = np.repeat(np.repeat(photo(2, 3) * 40, 16, 0), 16, 1)  # 32 × 48, even blocks: JPEG keeps them nearly
    answer = sampler.client.post("/models/eyes/restore", content=file(pixels, form, exif=exif))
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels),
    }[turn]
    np.testing.assert_allclose(seen(answer.content).astype(int), upright.astype(int), atol=40 if form == "JPEG" else 0)


def test_a_large_picture_is_scaled_down_and_a_small_one_refused(sampler: Running) -> None:
    assert seen(sampler.client.post("/models/eyes/restyle", content=file(photo(200, 100))).content).shape == (32, 64, 3)
    for width, height in ((15, 40), (300, 40), (1, 1)):
        answer = sampler.client.post("/models/eyes/restyle", content=file(photo(width, height)))
        assert (answer.status_code, answer.json()["error"]) == (422, "too-small")


def test_channels_are_the_models(sampler: Running) -> None:
    pixels = photo(20, 16, 4)
    pixels[..., 3] = 255
    np.testing.assert_array_equal(
        seen(sampler.client.post("/models/eyes/restore", content=file(pixels)).content), pixels[..., :3]
    )
    grey = photo(20, 16, 1)
    np.testing.assert_array_equal(
        seen(sampler.client.post("/models/eyes/restore", content=file(grey)).content), np.stack([grey] * 3, 2)
    )


def test_what_is_missing_is_white_in_the_mask(sampler: Running) -> None:
    pixels = photo(20, 16)
    mask = np.zeros((16, 20), np.uint8)
    mask[2:5, 7:9] = 255
    holes = mask > 0
    for shape in (mask, np.repeat(np.repeat(mask, 2, 0), 2, 1)):  # a mask of another size is fitted
        files = {"image": ("a", file(pixels), "image/png"), "mask": ("b", file(shape), "image/png")}
        restored = sampler.client.post("/models/eyes/restore?kind=holes", files=files)
        stands(restored, "eyes")
        np.testing.assert_array_equal(seen(restored.content), np.where(holes[..., None], 200, pixels))
    alone = sampler.client.post("/models/eyes/restore", files={"image": file(pixels)})
    np.testing.assert_array_equal(seen(alone.content), pixels)


# --- what is wrong is said ---

PICTURE = file(photo(16, 16))


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("POST", "/models/drawings/recognise", {"content": PICTURE}, 409, "wrong-kind"),
        ("GET", "/models/eyes/interpolate", {}, 409, "wrong-kind"),
        ("GET", "/models/voice/strip", {}, 409, "wrong-kind"),
        ("POST", "/models/eyes/encode", {"content": PICTURE}, 409, "wrong-kind"),
        ("POST", "/models/voice/reconstruct", {"content": PICTURE}, 409, "wrong-kind"),
        ("POST", "/models/eyes/vary", {"content": PICTURE}, 409, "wrong-kind"),
        ("POST", "/models/drawings/restore", {"content": PICTURE}, 409, "wrong-kind"),
        ("POST", "/models/drawings/restyle", {"content": PICTURE}, 409, "wrong-kind"),
        ("POST", "/models/none/restyle", {"content": PICTURE}, 404, "not-found"),
        ("GET", "/models/drawings/interpolate?steps=1", {}, 422, "invalid"),
        ("GET", f"/models/drawings/interpolate?steps={MOST + 1}", {}, 422, "invalid"),
        ("GET", "/models/drawings/interpolate?to=-1", {}, 422, "invalid"),
        ("GET", "/models/drawings/interpolate?label=none", {}, 422, "label"),
        ("GET", "/models/drawings/strip?last=0", {}, 422, "invalid"),
        ("GET", "/models/drawings/strip?last=4", {}, 422, "invalid"),
        ("GET", "/models/drawings/strip?versions=1,2,3,latest", {}, 422, "invalid"),
        ("GET", "/models/drawings/strip?last=3&n=9", {}, 422, "invalid"),
        ("GET", "/models/drawings/strip?versions=", {}, 422, "invalid"),
        ("GET", "/models/drawings/strip?versions=1,,2", {}, 422, "invalid"),
        ("GET", "/models/drawings/strip?versions=../1", {}, 422, "invalid"),
        ("GET", "/models/drawings/strip?versions=17", {}, 404, "not-found"),
        ("GET", "/models/drawings/strip?versions=1&label=none", {}, 422, "label"),
        ("POST", "/models/drawings/encode?label=none", {"content": PICTURE}, 422, "label"),
        ("POST", "/models/drawings/encode", {"content": b"no picture"}, 422, "undecodable"),
        ("POST", "/models/drawings/encode", {"json": {"text": "no picture"}}, 422, "decoder"),
        ("POST", "/models/drawings/vary?strength=1.1", {"content": PICTURE}, 422, "invalid"),
        ("POST", "/models/drawings/vary?strength=nan", {"content": PICTURE}, 422, "invalid"),
        ("POST", f"/models/drawings/vary?n={MOST + 1}", {"content": PICTURE}, 422, "invalid"),
        ("POST", "/models/eyes/restore?kind=ghosts", {"content": PICTURE}, 422, "kind"),
        ("POST", "/models/eyes/restore", {"content": b""}, 422, "undecodable"),
        ("POST", "/models/eyes/restore", {"content": PICTURE[:60]}, 422, "undecodable"),
        ("POST", "/models/eyes/restore", {"content": bytes(40_001)}, 413, "too-large"),
        ("POST", "/models/eyes/restore", {"content": file(np.zeros((7000, 7000), np.uint8))[:500]}, 413, "too-large"),
        ("POST", "/models/eyes/restore", {"files": {"mask": PICTURE}}, 422, "invalid"),
        ("POST", "/models/eyes/restore", {"files": {"image": PICTURE, "other": PICTURE}}, 422, "invalid"),
        ("POST", "/models/eyes/restore", {"files": {"image": PICTURE, "mask": b"?"}}, 422, "undecodable"),
        ("POST", "/models/eyes/restore", {"files": {"image": (None, "text")}}, 422, "invalid"),
        ("POST", "/models/eyes/restore", {"files": dict.fromkeys("abc", PICTURE)}, 400, "bad-request"),
    ],
)
def test_bad_requests_hear_what_is_wrong(
    sampler: Running, method: str, path: str, body: dict[str, Any], status: int, error: str
) -> None:
    answer = sampler.client.request(method, path, **body)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert len(answer.json()["detail"]) > 10


UPLOADS = ["drawings/encode", "drawings/vary", "drawings/reconstruct", "eyes/recognise", "eyes/restore", "eyes/restyle"]
TYPES = ["image/png", "application/json", "multipart/form-data; boundary=b"]
FORM = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    route=st.sampled_from(UPLOADS),
    body=st.one_of(
        st.binary(max_size=100),
        st.tuples(st.integers(8, len(PICTURE) - 1), st.binary(min_size=1, max_size=8)).map(
            lambda change: PICTURE[: change[0]] + change[1] + PICTURE[change[0] + len(change[1]) :]
        ),
        st.binary(max_size=60).map(lambda part: FORM + part + b"\r\n--b--\r\n"),
    ),
    type_=st.sampled_from(TYPES),
    asked=st.dictionaries(st.sampled_from(["kind", "label", "n", "strength", "seed", "format"]), st.text(max_size=9)),
)
def test_no_upload_makes_the_sampler_fail(
    sampler: Running, route: str, body: bytes, type_: str, asked: dict[str, str]
) -> None:
    answer = sampler.client.post(f"/models/{route}", content=body, params=asked, headers={"Content-Type": type_})
    assert answer.status_code in (200, 400, 413, 422), (answer.status_code, answer.text)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    route=st.sampled_from(["interpolate", "strip", "generate"]),
    asked=st.dictionaries(
        st.sampled_from(["n", "label", "seed", "to", "steps", "versions", "last", "format"]),
        st.one_of(st.text(max_size=20), st.integers().map(str), st.sampled_from(["left", "json", "1,2", "3"])),
    ),
)
def test_no_query_makes_the_sampler_fail(sampler: Running, route: str, asked: dict[str, str]) -> None:
    answer = sampler.client.get(f"/models/drawings/{route}", params=asked)
    assert answer.status_code in (200, 404, 422), (answer.status_code, answer.text)


def test_what_takes_long_has_few_places_and_the_rest_goes_on(sampler: Running) -> None:
    with ExitStack() as held:
        for number in range(8):  # 2 slots, 4 places each
            held.enter_context(sampler.service.slow_admission.admit(f"client {number}"))
        for path in ("/models/eyes/restyle", "/models/eyes/restore"):
            answer = sampler.client.post(path, content=PICTURE)
            assert (answer.status_code, answer.json()["error"]) == (503, "busy")
            assert answer.headers["retry-after"] == "1"
        assert sampler.client.get("/models/drawings/strip").json()["error"] == "busy"
        assert sampler.client.post("/models/voice/complete", json={}).json()["error"] == "busy"
        assert sampler.client.post("/models/eyes/classify", content=PICTURE).status_code == 200
    assert sampler.client.post("/models/eyes/restyle", content=PICTURE).status_code == 200


@pytest.mark.parametrize("path", ["eyes/restyle", "eyes/restore", "drawings/strip", "voice/complete", "voice/generate"])
def test_one_client_leaves_the_others_half_of_what_takes_long(sampler: Running, path: str) -> None:
    method = "POST" if path.startswith("eyes") else "GET"
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(sampler.service.slow_admission.admit("10.0.0.1"))
        status = {
            client: sampler.client.request(
                method, f"/models/{path}", content=PICTURE, headers={"X-Forwarded-For": client}
            ).status_code
            for client in ("10.0.0.1", "10.0.0.2")
        }
    assert status == {"10.0.0.1": 503, "10.0.0.2": 200}


def test_a_text_that_is_written_does_not_hold_up_what_is_quick(sampler: Running) -> None:
    with (
        stepping() as steps,
        sampler.client.stream("POST", "/models/voice/complete", json={"prompt": steps.prompt}) as text,
    ):
        steps.go()
        lines = text.iter_lines()
        assert next(lines).startswith("data: ")
        assert sampler.client.post("/models/eyes/classify", content=PICTURE).status_code == 200
        assert sampler.client.get("/models/drawings/generate?n=2").status_code == 200
        assert sampler.client.post("/models/eyes/restyle", content=PICTURE).status_code == 200  # the other slot


def test_the_routes_are_documented_with_what_they_take_and_give(sampler: Running) -> None:
    paths = sampler.client.get("/openapi.json").json()["paths"]
    given = {
        path.rpartition("/")[2]: set(operation["responses"]["200"].get("content", ()))
        for path, operations in paths.items()
        for method, operation in operations.items()
        if operation["tags"] == ["answers"]
    }
    both = {"image/png", "application/json"}
    assert given == {
        "classify": {"application/json"},
        "recognise": {"application/json"},
        "explain": {"application/json"},
        "nearest": {"application/json"},
        "encode": {"application/json"},
        "generate": both,
        "interpolate": both,
        "strip": both,
        "vary": both,
        "reconstruct": {"image/png"},
        "restore": {"image/png"},
        "restyle": {"image/png"},
        "complete": {"application/json", "text/event-stream"},
    }
    for route in ("encode", "reconstruct", "vary", "restore", "restyle"):
        taken = paths[f"/models/{{model}}/{route}"]["post"]["requestBody"]["content"]
        assert taken.keys() == {"image/*", "multipart/form-data"}


def test_one_version_answers_and_then_the_next(made: tuple[Running, dict[str, Maker]]) -> None:
    sampler, makers = made
    commit(makers["eyes"], "eyes", VERSIONS + 1)
    assert sampler.serves("eyes", VERSIONS + 1)
    stands(sampler.client.post("/models/eyes/restyle", content=PICTURE), "eyes", VERSIONS + 1)
