"""What the sampler's OpenAPI document shows of each route: a request and an answer; a test checks them."""

from __future__ import annotations

from typing import Any


class Either(dict[str, Any]):
    """By name: what is answered by one model or another."""


DIGEST = "70f208fc9464f3b8c2f1a7f0cbd2a3f7f4d5f9b6e1c0a8d7e6b5c4d3a2b1c0d9"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="  # one pixel
STANDING = {
    "model": "digits",
    "version": 31,
    "digest": DIGEST,
    "watermark": {"digits": {"0": 4638, "1": 4560}},
    "freshness_s": 0.3,
    "lag_records": 0,
}
CLASSIFIED = {**STANDING, "label": "7", "probability": 0.96, "probabilities": {"7": 0.96, "1": 0.04}}
DRAWN = {**STANDING, "model": "drawings", "images": [PNG], "seed": 7, "label": "7"}
WRITTEN = {**STANDING, "model": "verses", "seed": 7, "texts": ["the winter of our discontent"]}
STATE = {
    "model": "digits",
    "answers": ["classify"],
    "standing": STANDING,
    "problem": None,
    "created_ms": 1_764_500_000_000,
    "learner": "image-analytic",
    "input": {"kind": "image", "size": [28, 28], "channels": 1, "fit": "letterbox", "background": 0},
    "classes": ["1", "7"],
    "kinds": [],
    "updates": 294,
    "counts": {"learned": 9198, "held_out": 190},
    "metrics": {"prequential_accuracy": 0.972, "prequential_loss": 0.0725},
    "diagnoses": {},
}
MODEL = "/models/{model}"
#: by path: the JSON that is answered with 200
ANSWERS: dict[str, Any] = {
    "/healthz": {"status": "alive"},
    "/readyz": {
        "ready": True,
        "store": "reachable",
        "problem": None,
        "models": {"digits": {"version": 31, "problem": None}},
    },
    "/models": [STATE],
    MODEL: STATE,
    f"{MODEL}/classify": CLASSIFIED,
    f"{MODEL}/recognise": {**CLASSIFIED, "unknown": False},
    f"{MODEL}/versions": [{"version": 31, "digest": DIGEST, "aliases": ["stable"]}],
    f"{MODEL}/versions/{{ref}}": {"format": 1, "model": "digits", "version": 31, "learner": "image-analytic"},
    f"{MODEL}/generate": Either({"pictures": DRAWN, "texts": WRITTEN}),
    f"{MODEL}/interpolate": {**DRAWN, "to": 8},
    f"{MODEL}/strip": {**DRAWN, "versions": [31]},
    f"{MODEL}/vary": DRAWN,
    f"{MODEL}/encode": {**STANDING, "model": "drawings", "label": "7", "mean": [0.4, -1.2], "std": [0.1, 0.3]},
    f"{MODEL}/complete": {**STANDING, "model": "verses", "seed": 7, "text": "the winter of our discontent"},
}
#: by the end of the path and the kind of body: what is sent
REQUESTS: dict[str, dict[str, Any]] = {
    "complete": {"application/json": {"prompt": "Now is ", "seed": 7, "max_bytes": 100}},
    "{alias}": {"application/json": {"version": 31}},
}
BODIES: dict[str, Any] = {  # of other routes
    "text/plain": "Guten Morgen",
    "application/json": {"text": "Guten Morgen"},
    "application/x-www-form-urlencoded": {"text": "Guten Morgen"},
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
PARAMETERS: dict[str, Any] = {"model": "digits", "ref": "latest", "alias": "stable", "label": "7", "seed": 7, "n": 4}


def add_examples(document: dict[str, Any]) -> None:
    """Shows an example wherever something is sent or answered."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in PARAMETERS:
                    parameter["example"] = PARAMETERS[parameter["name"]]
            sent = BODIES | REQUESTS.get(path.rpartition("/")[2], {})
            answered = {"application/json": ANSWERS.get(path)}
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
