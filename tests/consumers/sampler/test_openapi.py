"""The sampler answers as its OpenAPI document says, whatever is asked: by schemathesis, of every learner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import hypothesis
import jsonschema_rs
import numpy as np
import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, settings
from redis import Redis

from consumers.sampler import routes_events
from consumers.sampler.abilities import ABILITIES
from consumers.worker.sources import Sources
from models.registry import BUILTIN
from pipeline.records import as_input, input_array
from pipeline.store.store import Store
from tests.consumers.answering import TABLES, commit, file, maker, photo
from tests.consumers.marked import Maker
from tests.consumers.running import Running, configuration, running
from tests.consumers.worker.test_every_learner import (
    WAYS,
    Way,
    filled,
    given as given,  # a fixture
)
from tests.services import unique

ODD = ("eyes", "voice")  # a user's own
STATUSES = {"400", "401", "403", "404", "405", "408", "409", "413", "421", "422", "500", "502", "503", "504"}
POSTED = ("classify", "recognise", "explain", "nearest", "encode", "reconstruct", "vary", "restore", "restyle")
BOUNDS: dict[str, Any] = {"max_samples": 4, "max_side": 32, "max_text_bytes": 64}


def learned(redis: Redis, family: str, way: Way, given: Mapping[str, str]) -> None:
    """One version of it, after two updates."""
    blueprint, input_ = BUILTIN[way.learner], as_input(dict(way.input))
    store, options = Store(redis, family, family), filled(way.options, given)
    references = blueprint.sources(blueprint.options(**options))
    sources = Sources(store, lambda model: model).find(references, family)
    made = Maker(store, way.learner, blueprint, way.input, sources, **options)
    records = way.records()
    for _ in range(2):
        contents, labels = zip(*islice(records, 6), strict=True)
        x = np.stack([input_array(content, input_) for content in contents])
        made.learn(torch.from_numpy(x), list(labels))
    made.commit()


@pytest.fixture(scope="module")
def at(kafka: str, redis_url: str, given: Mapping[str, str]) -> Iterator[Running]:
    """A sampler of every built-in learner, and of models that a user made."""
    tables: dict[str, dict[str, Any]] = {}
    with Redis.from_url(redis_url) as redis:
        for name in ODD:
            family = unique(name)
            commit(maker(redis, family, name), name, 1)
            tables[name] = {**TABLES[name], "family": family}
        for way in WAYS.values():
            name = unique(way.learner)
            learned(redis, name, way, given)
            tables[name] = {"learner": way.learner, "input": dict(way.input)}
        with running(configuration(redis_url, tables, kafka, **BOUNDS)) as at, pytest.MonkeyPatch.context() as patch:
            patch.setattr(routes_events, "STREAM_S", 0.5)  # else whoever reads it to its end waits long
            assert all(at.serves(name, 1) for name in tables), at.said
            yield at


CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
]


def test_it_answers_as_it_says(at: Running) -> None:
    states = at.client.get("/models").json()
    assert len(states) == len(WAYS) + len(ODD)
    document = schemathesis.openapi.from_url(f"{at.url}/openapi.json")
    found: Any
    for found in document.get_all_operations():
        operation = found.ok()
        if "{model}" not in operation.path:
            asking(operation, None, 20)()
            continue
        for state in states[:1] if operation.path.endswith("/find") else states:  # which connects to Kafka each time
            able = operation.path.rpartition("/")[2] in state["answers"]
            asking(operation, state["model"], 20 if able else 2)()


def asking(operation: Any, model: str | None, examples: int) -> Callable[[], None]:
    """Asks one operation of one model for this and that."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @hypothesis.given(case=operation.as_strategy())
    def asked(case: Any) -> None:
        if model is not None:
            case.path_parameters["model"] = model
        case.call_and_validate(checks=CHECKS)

    return asked


def test_every_route_tells_its_errors_and_who_may_ask(at: Running) -> None:
    document = at.client.get("/openapi.json").json()
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["responses"].keys() >= STATUSES
    assert document["components"]["securitySchemes"].keys() == {"token", "password"}
    assert document["security"] == [{"token": []}, {"password": []}, {}]


def test_every_error_has_an_example(at: Running) -> None:
    document = at.client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status in STATUSES - ({"503"} if path == "/readyz" else set()):  # whose 503 is no error
                example = operation["responses"][status]["content"]["application/json"]["example"]
                assert example.keys() == {"error", "detail"}


def test_every_body_has_a_schema_and_an_example(at: Running) -> None:
    """Of kinds that no JSON shows, too."""
    document = at.client.get("/openapi.json").json()
    for operations in document["paths"].values():
        for operation in operations.values():
            bodies = operation.get("requestBody", {}).get("content", {}), operation["responses"].get("200", {})
            for content in [*bodies[0].values(), *bodies[1].get("content", {}).values()]:
                assert content["schema"]
                assert "example" in content or content["examples"]


def test_every_header_of_an_answer_is_described(at: Running) -> None:
    document = at.client.get("/openapi.json").json()
    for method, route, path, sent in asked_of(at):
        answer = at.client.request(method, path, content=sent)
        assert answer.status_code == (405 if method == "DELETE" else 200), answer.text
        [*_, described] = document["paths"][route].values()
        headers = {name.lower() for name in described["responses"][str(answer.status_code)].get("headers", {})}
        own = {name for name in answer.headers if name.startswith("x-headrace") or name in ("allow", "retry-after")}
        assert own <= headers, route
    moved = at.client.get("/models/")
    assert (moved.status_code, moved.headers["location"]) == (307, f"{at.url}/models")
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["responses"]["307"]["headers"].keys() == {"Location"}


def asked_of(at: Running) -> Iterator[tuple[str, str, str, bytes | None]]:
    """Of each route and each model that answers it: method, its path in the document, and what is asked."""
    states = at.client.get("/models").json()
    sent = {"image": file(photo(20, 16)), "text": b"Guten Morgen"}
    queries = {"interpolate": "?seed=1", "strip": "?seed=1", "vary": "?seed=1", "generate": "?seed=1"}
    for name in ("healthz", "readyz", "metrics", "models", "events"):
        yield "GET", f"/{name}", f"/{name}", None
    for name in ("", "/history", "/log", "/versions", "/versions/{ref}", "/versions/{ref}/weights"):
        yield "GET", f"/models/{{model}}{name}", f"/models/{states[0]['model']}{name.replace('{ref}', '1')}", None
    place = next(iter(states[0]["standing"]["watermark"]), "topic") + ":0:0"
    yield "GET", "/models/{model}/blame", f"/models/{states[0]['model']}/blame?record={place}", None
    yield "DELETE", "/models/{model}/classify", f"/models/{states[0]['model']}/classify", None
    assert {name for state in states for name in state["answers"]} == {ability.route for ability in ABILITIES}
    for state, name in ((one, name) for one in states for name in one["answers"]):
        posted = name in POSTED
        content = sent[state["input"]["kind"]] if posted else None
        path = f"/models/{state['model']}/{name}{queries.get(name, '')}"
        yield "POST" if posted else "GET", f"/models/{{model}}/{name}", path, content


def test_every_request_and_answer_has_an_example_that_fits_and_is_as_what_is_answered(at: Running) -> None:
    document = at.client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            sent = operation.get("requestBody", {}).get("content", {})
            given = operation["responses"].get("200", {}).get("content", {})
            assert given or method in ("put", "delete"), path
            assert sent or method not in ("post", "put"), path
            for content in (*sent.values(), *given.values()):
                assert content.keys() & {"example", "examples"}, path
                if "example" in content:
                    schema = {**content.get("schema", {}), "components": document["components"]}
                    jsonschema_rs.validate(schema, content["example"])
    for method, route, path, sent in asked_of(at):
        if method == "DELETE" or route.endswith(("{ref}", "weights", "metrics")):
            continue
        asked = path + "&format=json" * ("?" in path)
        answer = at.client.request(method, asked, content=sent, headers={"Accept": "application/json"})
        content = document["paths"][route][method.lower()]["responses"]["200"]["content"]
        if "application/json" in content:
            assert keys(answer.json()) in map(keys, shown(content["application/json"])), route


def shown(content: Mapping[str, Any]) -> list[Any]:
    """The examples of a kind of body: none of what is no JSON."""
    several = [example["value"] for example in content.get("examples", {}).values() if "value" in example]
    return [content["example"]] if "example" in content else several


def keys(answer: Any) -> set[str]:
    """The fields of an answer, or of the first one in a list."""
    return set(answer[0] if isinstance(answer, list) else answer)
