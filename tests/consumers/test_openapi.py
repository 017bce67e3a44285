"""The sampler answers as its OpenAPI document says, whatever is asked: by schemathesis, with models of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from tests.consumers.answering import serving
from tests.consumers.running import Running

MODELS = ("eyes", "voice", "drawings")
STATUSES = {"400", "401", "403", "404", "405", "408", "409", "413", "421", "422", "500", "502", "503", "504"}


@pytest.fixture(scope="module")
def at(redis_url: str) -> Iterator[Running]:
    with serving(redis_url, *MODELS, max_samples=4, max_side=32, max_text_bytes=64) as (at, _):
        yield at


CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
]


def test_it_answers_as_it_says(at: Running) -> None:
    document = schemathesis.openapi.from_url(f"{at.url}/openapi.json")
    found: Any
    for found in document.get_all_operations():
        for model in MODELS:
            asking(found.ok(), model)()


def asking(operation: Any, model: str) -> Callable[[], None]:
    """Asks one operation of one model for this and that."""

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def asked(case: Any) -> None:
        if "model" in (case.path_parameters or {}):
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
