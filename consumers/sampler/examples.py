"""What the sampler's OpenAPI document shows of each route: a request and an answer; a test checks them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class RouteExample(NamedTuple):
    """Of one path, in JSON: what is answered with 200, and what is sent."""

    answered: Any = None
    sent: Any = None


class Either(dict[str, Any]):
    """By name: what is answered by one model or another."""


DIGEST = "70f208fc9464f3b8c2f1a7f0cbd2a3f7f4d5f9b6e1c0a8d7e6b5c4d3a2b1c0d9"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="  # one pixel
INFO = {
    "model": "digits",
    "version": 31,
    "digest": DIGEST,
    "watermark": {"digits": {"0": 4638, "1": 4560}},
    "freshness_s": 0.3,
    "lag_records": 0,
}
MODEL = "/models/{model}"
BODIES: dict[str, Any] = {  # where a path has no example of its own
    "text/plain": "Guten Morgen",
    "application/json": {"text": "Guten Morgen"},
    "application/x-www-form-urlencoded": {"text": "Guten Morgen"},
    "application/x-ndjson": '{"text": "Guten Morgen", "label": "de"}',
}
#: kinds that no JSON shows
FILES = {
    "image/*": "the picture itself: curl --data-binary @cat.png",
    "multipart/form-data": "a form with a file: curl -F image=@cat.png",
    "image/png": "a PNG file",
    "application/octet-stream": "a safetensors file",
    "text/plain": "headrace_served_version 31.0",
    "text/event-stream": 'data: {"text": "the "}\n\ndata: {"text": "winter"}\n\nevent: done\ndata: {"version": 31}\n\n',
}
TEXT = {"type": "string"}
#: of what is sent or answered and has no model of its own; in OpenAPI 3.1 bytes are a string of their media type
SCHEMAS: dict[str, Any] = {
    **{kind: {"type": "string", "contentMediaType": kind} for kind in ("image/png", "application/octet-stream")},
    "image/*": {"type": "string", "contentMediaType": "image/png"},
    "text/plain": TEXT,
    "application/json": {"type": "object", "properties": {"text": TEXT}, "required": ["text"]},
    "application/x-www-form-urlencoded": {"type": "object", "properties": {"text": TEXT}, "required": ["text"]},
    "multipart/form-data": {
        "type": "object",
        "properties": {
            "image": {"type": "string", "contentMediaType": "application/octet-stream"},
            "mask": {"type": "string", "contentMediaType": "application/octet-stream", "description": "to restore"},
            "text": TEXT,
        },
    },
}
ANSWERED: dict[str, Any] = {"application/json": {"type": "object"}}
PARAMETERS: dict[str, Any] = {
    "model": "digits",
    "topic": "digits",
    "after": ["digits:0:4638"],
    "record": "digits:0:4638",
    "ref": "latest",
    "alias": "stable",
    "label": "7",
    "seed": 7,
    "n": 4,
}


def add_examples(document: dict[str, Any], examples: Mapping[str, RouteExample]) -> None:
    """Shows an example wherever something is sent or answered; `examples` are by path."""
    for path, operations in document["paths"].items():
        example = examples.get(path, RouteExample())
        sent = BODIES if example.sent is None else {**BODIES, "application/json": example.sent}
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in PARAMETERS:
                    parameter["example"] = PARAMETERS[parameter["name"]]
            answered = {"application/json": example.answered}
            _show(operation.get("requestBody", {}).get("content", {}), sent, SCHEMAS)
            _show(operation["responses"].get("200", {}).get("content", {}), answered, SCHEMAS | ANSWERED)


def _show(contents: dict[str, Any], examples: dict[str, Any], schemas: dict[str, Any]) -> None:
    for kind, content in contents.items():
        content["schema"] = content.get("schema") or schemas[kind]
        example = examples.get(kind)
        if isinstance(example, Either):
            content["examples"] = {name: {"value": value} for name, value in example.items()}
        elif example is not None:
            content["example"] = example
        else:
            content["examples"] = {"file": {"summary": FILES[kind]}}
