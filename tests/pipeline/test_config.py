"""One file under the environment; messages that name place, key, value and fix; round trips as properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from pipeline.config import Config, KafkaConfig, load, validate
from pipeline.errors import ConfigError
from pipeline.images import ImageInput
from pipeline.texts import TextInput

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = """
[models.digits]
topics = ["digits"]
learner = "image-classifier"
input = { kind = "image", size = 28 }
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "headrace.toml"
    path.write_text(text, "utf-8")
    return path


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, ""), {}) == Config()


@pytest.mark.parametrize(
    "path", [ROOT / "consumers/cli/init.toml", ROOT / "deploy/headrace.toml"], ids=lambda path: path.name
)
def test_the_files_that_come_with_headrace_are_valid(path: Path) -> None:
    assert load(path, {}).models


def test_a_value_never_changes() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        KafkaConfig().__setattr__("bootstrap_servers", "elsewhere:9092")


@pytest.mark.parametrize(
    ("variable", "text", "key", "wanted"),
    [
        ("KAFKA__BOOTSTRAP_SERVERS", "kafka:9092", "kafka.bootstrap_servers", "kafka:9092"),
        ("KAFKA__PARTITIONS", "8", "kafka.partitions", 8),
        ("KAFKA__CREATE_TOPICS", "false", "kafka.create_topics", False),
        ("KAFKA__CLIENT__REQUEST_TIMEOUT_MS", "3000", "kafka.client", {"request_timeout_ms": 3000}),
        ("REDIS__URL", "redis://:p#w@redis:6379/0", "redis.url", "redis://:p#w@redis:6379/0"),
        ("MODELS__DIGITS__TOPICS", '["a", "b"]', "models.digits.topics", ("a", "b")),
        ("MODELS__DIGITS__SNAPSHOT_EVERY_S", "0.5", "models.digits.snapshot_every_s", 0.5),
        ("MODELS__DIGITS__INPUT__SIZE", "[32, 48]", "models.digits.input.size", (32, 48)),
        ("MODELS__DIGITS__METRICS__PORT", "9100", "models.digits.metrics.port", 9100),
    ],
)
def test_the_environment_wins_with_the_type_of_the_key(
    tmp_path: Path, variable: str, text: str, key: str, wanted: object
) -> None:
    value: Any = load(write(tmp_path, MODEL), {f"HEADRACE__{variable}": text, "UNRELATED": "1"})
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    assert value == wanted


@pytest.mark.parametrize("token", ["1234567890123456", "123456789012e3456", "2026-01-31T12:00:00"])
def test_a_token_that_looks_like_a_number_is_a_text(tmp_path: Path, token: str) -> None:
    assert load(write(tmp_path, ""), {"HEADRACE__SAMPLER__TOKEN": token}).sampler.token == token


@pytest.mark.parametrize(
    ("text", "environment", "named"),
    [
        (
            "[kafka]\npartitions = 0",
            {},
            ["headrace.toml", "kafka.partitions", "= 0", "greater than or equal to 1"],
        ),
        ("[kafka]\nbootstrap = 'k:1'", {}, ["headrace.toml", "kafka.bootstrap ", "'k:1'"]),
        ("[nothing]", {}, ["headrace.toml", "nothing"]),
        (MODEL.replace('"image"', '"imag"'), {}, ["models.digits.input", "'imag'", "'image', 'text'"]),
        (MODEL.replace("size = 28", "side = 28"), {}, ["models.digits.input.side", "= 28"]),
        (MODEL.replace("28", "0"), {}, ["models.digits.input.size", "= 0", "at least 1"]),
        (MODEL.replace("28", "[28, 0]"), {}, ["models.digits.input.size", "[28, 0]", "at least 1"]),
        (
            MODEL.replace("learner", "teacher"),
            {},
            ["models.digits.learner", "required", "models.digits.teacher"],
        ),
        (MODEL.replace("digits]", "'Two Words']"), {}, ["Two Words", "pattern"]),
        (MODEL.replace('["digits"]', "[]"), {}, ["models.digits.topics", "at least 1"]),
        (
            f'{MODEL}\n[models.digits.labels]\ntopic = "digits"',
            {},
            ["models.digits", "labels.topic a topic of its own"],
        ),
        (
            MODEL + "drift = { detector = 'none', reaction = 'boost' }",
            {},
            ["models.digits.drift", 'reaction = "boost" needs a detector'],
        ),
        ("kafka = = 1", {}, ["headrace.toml", "not valid TOML", "line 1"]),
        (
            MODEL,
            {"HEADRACE__MODELS__DIGITS__INPUT__CHANNELS": "2"},
            ["HEADRACE__MODELS__DIGITS__INPUT__CHANNELS", "models.digits.input.channels", "2", "1, 3 or 4"],
        ),
        ("", {"HEADRACE__REDIS__URL__HOST": "x"}, ["redis.url"]),
        ("redis = 3", {"HEADRACE__REDIS__URL": "x"}, ["HEADRACE__REDIS__URL", "redis is a value"]),
    ],
)
def test_a_message_names_the_source_the_key_the_value_and_the_fix(
    tmp_path: Path, text: str, environment: dict[str, str], named: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text), environment)
    assert [part for part in named if part not in str(caught.value)] == []


def test_every_wrong_key_has_its_own_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, "[kafka]\npartitions = 0\n[sampler]\nport = 70000"), {})
    assert len(str(caught.value).splitlines()) == 2


def test_a_message_does_not_repeat_a_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 16") as caught:
        load(write(tmp_path, "[sampler]\ntoken = 'hunter2'"), {})
    assert "hunter2" not in str(caught.value)


def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"headrace\.toml does not exist.*headrace init"):
        load(tmp_path / "headrace.toml", {})


def test_bytes_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(tmp_path / "headrace.toml", {})


def test_a_model_that_would_never_be_kept_is_refused() -> None:
    model = {"topics": ["t"], "learner": "l", "input": {"kind": "text"}, "snapshot_every_s": None}
    with pytest.raises(ConfigError, match="snapshot_every_updates or snapshot_every_s"):
        validate({"models": {"m": model}}, "here")
    assert (
        validate({"models": {"m": model | {"snapshot_every_updates": 5}}}, "here").model("m").snapshot_every_s is None
    )


def test_an_unknown_model_names_those_that_are_configured(tmp_path: Path) -> None:
    config = load(write(tmp_path, MODEL), {})
    assert config.model("digits").learner == "image-classifier"
    with pytest.raises(ConfigError, match=r"models\.letters .*known: digits.*\[models\.letters\]"):
        config.model("letters")


def test_a_family_is_the_models_name_unless_configured(tmp_path: Path) -> None:
    config = load(write(tmp_path, MODEL + 'family = "numbers"'), {})
    assert config.family("digits") == "numbers"
    assert config.family("never-configured") == "never-configured"


def test_shapes() -> None:
    assert ImageInput(size=28, channels=1).shape == (1, 28, 28)
    assert ImageInput(size=(32, 48)).shape == (3, 32, 48)
    assert TextInput(max_chars=100).shape == (100,)


SIDES = st.integers(1, 4096)
INPUTS = st.one_of(
    st.builds(
        ImageInput,
        size=SIDES | st.tuples(SIDES, SIDES),
        channels=st.sampled_from([1, 3, 4]),
        fit=st.sampled_from(["resize", "crop", "letterbox"]),
        background=st.integers(0, 255),
    ),
    st.builds(TextInput, max_chars=st.integers(1, 10_000)),
)
NAMES = st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,99}\Z")


@given(name=NAMES, fed=INPUTS, topics=st.lists(st.text(), min_size=1))
def test_a_configuration_survives_json(name: str, fed: ImageInput | TextInput, topics: list[str]) -> None:
    """As it does in every manifest."""
    config = validate({"models": {name: {"topics": topics, "learner": "l", "input": fed.model_dump()}}}, "here")
    assert config.model(name).input == fed
    assert validate(json.loads(config.model_dump_json()), "here") == config


@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=16).filter(
        lambda text: text[0] not in "[{\"'"
    )
)
def test_a_plain_text_in_the_environment_arrives_as_it_is(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = write(tmp_path_factory.getbasetemp(), "")
    assert load(path, {"HEADRACE__SAMPLER__TOKEN": text}).sampler.token == text
