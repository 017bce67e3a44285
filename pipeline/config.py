"""One `headrace.toml`, overridable by environment variables, validated with messages that name key, value and fix."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SerializeAsAny,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from pipeline.errors import ConfigError
from pipeline.inputs import Input
from pipeline.records import KINDS, as_input
from pipeline.words import near, said

ENV_PREFIX = "HEADRACE__"
FREE = {"client", "options"}  # tables whose values have no type here
SECRET = re.compile("token|password|secret")  # keys whose values are not repeated in messages
CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")  # of an address
NAMING = (
    "not of the pattern of names: use lower-case letters, digits, '.', '_' and '-', and begin with a letter or a digit"
)
NAME = r"^[a-z0-9][a-z0-9._-]{0,99}$"


class Section(BaseModel):
    """Base of every table of the file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _is_address(url: str) -> bool:
    """Whether it has a host, and a port that can be one where it has any."""
    try:
        split = urlsplit(url)
        return bool(split.hostname) and split.port != 0
    except ValueError:
        return False


def _addresses(servers: str) -> str:
    if not all(_is_address(f"kafka://{server.strip()}") for server in servers.split(",")):
        raise ValueError("give HOST:PORT, or several with commas between them")
    return servers


def _redis_url(url: str) -> str:
    kind, _, rest = url.partition("://")
    where = rest.rpartition("@")[2]  # what a password may hold is not known here
    if kind != "unix" and not (kind in ("redis", "rediss") and _is_address(f"redis://{where}")):
        raise ValueError("give an address such as redis://:PASSWORD@HOST:PORT/0")
    return url


class KafkaConfig(Section):
    """Where the log is. `client` passes any kafka-python setting through: SASL, TLS, timeouts."""

    bootstrap_servers: Annotated[str, AfterValidator(_addresses)] = "127.0.0.1:9092"
    create_topics: bool = True
    partitions: int = Field(2, ge=1)  # of a topic that is created
    replication_factor: int = Field(1, ge=1)  # of a topic that is created
    max_bytes: int = Field(10 << 20, ge=1024)  # the largest record that is published or fetched
    client: dict[str, Any] = {}


class RedisConfig(Section):
    """Where the snapshots are."""

    url: Annotated[str, AfterValidator(_redis_url)] = "redis://127.0.0.1:6379/0"


class MetricsConfig(Section):
    """Where a worker serves `/metrics`. Port 0: a free one, printed at the start."""

    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535)


class SamplerConfig(Section):
    """The HTTP service. Bound elsewhere than to loopback, it needs `token`."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    token: str | None = Field(None, min_length=16)
    open_reading: bool = False  # beyond loopback, too, all may read without the token
    hosts: tuple[str, ...] = ()  # names that it is asked by, beside addresses and localhost
    publish: bool = True  # records are taken for topics that models read: by who may write
    proxies: tuple[IPvAnyNetwork, ...] = ()  # that say who asks, by X-Forwarded-For: addresses or networks
    max_upload_bytes: int = Field(10 << 20, ge=1024)
    max_pixels: int = Field(40_000_000, ge=1)  # of a picture, whatever a stored version says
    max_models: int = Field(100, ge=1)  # that are served, where the configuration names none
    max_model_bytes: int = Field(4 << 30, ge=1)  # of a stored version in memory, of workers, too
    max_total_bytes: int = Field(16 << 30, ge=1)  # of all versions that are served
    max_batch: int = Field(64, ge=1)  # requests answered by one forward pass
    max_samples: int = Field(64, ge=1)  # drawn by one request
    max_versions: int = Field(16, ge=1)  # loaded for one film-strip
    max_side: int = Field(512, ge=16)  # pixels: a larger picture is scaled down before it is restored or restyled
    max_text_bytes: int = Field(4096, ge=1)  # of a prompt, and of what one request has written
    slots: int = Field(2, ge=1)  # texts, restored pictures and film-strips that are worked on at one time
    threads: int = Field(1, ge=1)


class HoldOutConfig(Section):
    """Records that are never learned, to ask a model what it cannot know. `slots` is fixed once it is above 0."""

    slots: int = Field(0, ge=0)  # records that are kept; 0: none is held out
    share: float = Field(0.02, gt=0, le=0.5)  # of the stream
    every_s: float = Field(60.0, gt=0)  # how often the model is asked, between two updates
    features: dict[str, Any] = {}  # a frozen network that drawings are judged by: source, or architecture and weights
    drawings: int = Field(500, ge=10)  # that are judged


class LabelsConfig(Section):
    """Where labels come from that are known later than their records; ids say which record a label is for."""

    topic: str
    window_s: float = Field(3600.0, gt=0)  # the most that the timestamps of a record and its label are apart
    max_records: int = Field(10_000, ge=1)  # records that wait, and as many labels


class DriftConfig(Section):
    """What watches a classifier's prequential errors, and what is done when they rise for good."""

    detector: Literal["hddm", "ddm", "page-hinkley", "none"] = "hddm"
    reaction: Literal["alarm", "boost", "flush"] = "alarm"  # all raise the alarm; boost and flush also do something
    boost_factor: float = Field(2.0, gt=1)  # of the learning rate, right after an alarm
    boost_updates: int = Field(200, ge=1)  # until it is its own again

    @model_validator(mode="after")
    def _alarmed(self) -> DriftConfig:
        if self.detector == "none" and self.reaction != "alarm":
            raise ValueError(f'reaction = "{self.reaction}" needs a detector: set one')
        return self


class ModelConfig(Section):
    """One model: what it reads, what it is, how often it is snapshot, what is kept."""

    topics: tuple[str, ...] = Field(min_length=1)
    learner: str  # a built-in name, or module:Blueprint of the user's own
    input: Annotated[SerializeAsAny[Input], BeforeValidator(as_input)]
    options: dict[str, Any] = {}  # the learner's own
    decoder: str | None = None  # module:function of the user's own
    family: str | None = Field(None, pattern=NAME)  # default: the model's name
    start: str = "earliest"  # or "latest", or an ISO 8601 time: where a model without a version begins
    seed: int = Field(0, ge=0)
    device: str = "auto"
    threads: int = Field(1, ge=1)  # of torch
    cpu_isa: Literal["avx2"] | None = None  # has x86 processors of several kinds give the same bits, for a price
    decode_threads: int = Field(1, ge=1)
    batch_size: int = Field(64, ge=1)
    max_wait_ms: int = Field(200, ge=0)  # the longest a record waits for its batch to fill
    snapshot_every_updates: int | None = Field(None, ge=1)
    snapshot_every_s: float | None = Field(2.0, gt=0)
    keyframe_every: int = Field(1, ge=1)  # one in every so many versions holds what going on needs, not only serving
    keep_last: int = Field(20, ge=2)
    keep_every: int | None = Field(None, ge=1)  # one in every M versions is kept for good
    lease_s: float = Field(10.0, gt=0)  # a silent worker loses its lease after this long
    guard: bool = True  # no loss, weight or other state that is not finite becomes part of a version
    deterministic: bool = False  # on CUDA: the same bits again, for a price; keyframe_every and verify need it there
    drift: DriftConfig = DriftConfig()
    hold_out: HoldOutConfig = HoldOutConfig()
    labels: LabelsConfig | None = None
    metrics: MetricsConfig = MetricsConfig()

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.snapshot_every_updates is None and self.snapshot_every_s is None:
            raise ValueError("set snapshot_every_updates or snapshot_every_s, or nothing learned is ever kept")
        if self.labels is not None and self.labels.topic in self.topics:
            raise ValueError("give labels.topic a topic of its own, not one of topics")
        return self

    @property
    def read_topics(self) -> tuple[str, ...]:
        """All that a worker reads."""
        return self.topics if self.labels is None else (*self.topics, self.labels.topic)


class Config(Section):
    """The whole file."""

    kafka: KafkaConfig = KafkaConfig()
    redis: RedisConfig = RedisConfig()
    sampler: SamplerConfig = SamplerConfig()
    models: dict[Annotated[str, Field(pattern=NAME)], ModelConfig] = {}

    def model(self, name: str) -> ModelConfig:
        """The model's table.

        Raises:
            ConfigError: there is none.
        """
        if name not in self.models:
            names = ", ".join(sorted(self.models)) or "none"
            raise ConfigError(
                f"models.{name} is not in the configuration (known: {names}).{near(name, self.models)} "
                f"Correct the name, or add a [models.{name}] table."
            )
        return self.models[name]

    def family(self, name: str) -> str:
        """The family that holds the model's keys: its own name unless configured."""
        return (self.models[name].family if name in self.models else None) or name


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Reads the file, and overrides it by the environment: `HEADRACE__REDIS__URL=…` sets the key redis.url.

    Raises:
        ConfigError: the file is missing or not TOML, or a value does not fit: one line for each.
    """
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        beside = [other.name for other in path.parent.glob("*.toml")]
        advice = near(path.name, beside) or f" `headrace init {path}` writes a commented one."
        raise ConfigError(f"{path} does not exist.{advice}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {said(error)}. Name a file that can be.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None
    origins = _overlay(tree, environ)
    return validate(tree, str(path), origins)


def validate(tree: Mapping[str, Any], source: str, origins: Mapping[str, str] | None = None) -> Config:
    """The configuration in `tree`; `origins` names the environment variable that a key came from."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [_line(item, tree, source, origins or {}) for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _line(item: ErrorDetails, tree: Mapping[str, Any], source: str, origins: Mapping[str, str]) -> str:
    """Where a value does not fit, and what to do."""
    key = _key(item["loc"], tree)
    variables = [variable for name, variable in origins.items() if f"{name}.".startswith(f"{key}.")]
    where = f"{variables[0] if variables else source}: {key.removesuffix('.[key]')}"
    match item["type"]:
        case "missing":
            return f"{where} is required, and is not there. Set it."
        case "extra_forbidden":
            advice = unknown_key(str(item["loc"][-1]), _keys_of(item["loc"]))
        case "string_pattern_mismatch":
            advice = NAMING
        case _:
            advice = item["msg"].removeprefix("Value error, ")
    return f"{where} = {_shown(key, item['input'])}: {advice}."


def _shown(key: str, value: object) -> str:
    """The value, but no secret: it may also be in an address, or somewhere in a table."""
    if isinstance(value, Mapping):
        return "a table"
    return "(hidden)" if SECRET.search(key) else CREDENTIALS.sub("…@", repr(value))


def _key(loc: tuple[int | str, ...], tree: Any) -> str:
    """The key as the file has it: pydantic also names the member of a union that it took."""
    parts = []
    for part in loc:
        inside = tree[part] if isinstance(tree, Mapping) and part in tree else None
        if inside is not None or part == loc[-1]:
            parts.append(str(part))
            tree = inside
    return ".".join(parts)


def unknown_key(key: str, names: Iterable[str]) -> str:
    """What to do about a key that is none of those that are known."""
    return f"there is no such key.{near(key, names)} Correct its name, or remove it"


def _keys_of(loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the table that `loc` points into."""
    sections: list[Any] = [Config]
    for part in loc[:-1]:
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        sections = [found for field in fields for found in _sections(field.annotation)] or sections
    return sorted({name for section in sections for name in section.model_fields})


def _sections(annotation: Any) -> list[Any]:
    """The tables that a value of this type may be."""
    if annotation is Input:
        return list(KINDS.values())
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _sections(inner)]


def _overlay(tree: dict[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Writes the environment's values into `tree`; returns which variable each key came from."""
    origins = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX):
            continue
        *tables, key = variable.removeprefix(ENV_PREFIX).lower().split("__")
        node = tree
        for table in tables:
            node = node.setdefault(table, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{variable}: {table} is a value, not a table. Name a key inside a table.")
        node[key] = _value(text, free=bool(FREE.intersection(tables)))
        origins[".".join([*tables, key])] = variable
    return origins


def _value(text: str, free: bool) -> Any:
    """A TOML value where it is one, else the text itself.

    A number only where no type says what the value must be: elsewhere a token of digits has to stay a text.
    """
    if not free and not text.startswith(("[", "{", '"', "'")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
