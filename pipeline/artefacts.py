"""Maven artefacts, each one checked against a pinned digest before anything of it is run."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.resources
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, HeadraceError, LogUnavailable, StoreUnavailable

PINS = importlib.resources.files("pipeline") / "jars.sha256"  # `sha256sum --check` reads it, too


@dataclass(frozen=True)
class Artefact:
    """A Maven endpoint with all that it depends on; `name` is its folder in the cache and in the pins."""

    name: str
    title: str
    endpoint: str  # with "!", its own versions win over those of another's bill of materials
    unavailable: type[HeadraceError]


KAFKA = Artefact(
    "kafka",
    "Kafka 4.3.1",
    "org.apache.kafka:kafka_2.13:4.3.1!"
    "+org.apache.logging.log4j:log4j-core:2.25.1!"
    "+org.apache.logging.log4j:log4j-slf4j-impl:2.25.1!",
    LogUnavailable,
)
REDIS = Artefact("redis", "Redis 6.2", "com.github.codemonstur:embedded-redis:1.4.3!", StoreUnavailable)


def cache_folder(environ: Mapping[str, str]) -> Path:
    """`$XDG_CACHE_HOME/headrace`, or `~/.cache/headrace`."""
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"


def fetch(artefact: Artefact, cache: Path, say: Callable[[str], None], pins: Path | None = None) -> list[Path]:
    """The artefact's jars in `cache`, digests checked; if none is missing, no registry is asked.

    Raises:
        ConfigError: what resolves the artefacts is not installed.
        LogUnavailable, StoreUnavailable: a jar cannot be downloaded, or does not match its pin.
    """
    wanted = _pinned(artefact, pins)
    folder = cache / artefact.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes that find nothing, one downloads
        if not all((folder / name).exists() for name in wanted):
            say(f"downloading {artefact.title} ({len(wanted)} files)…")
            _download(artefact, wanted, folder)
    jars = [folder / name for name in wanted]
    for jar in jars:
        _check(artefact, jar, wanted[jar.name])
    return jars


def _pinned(artefact: Artefact, pins: Path | None) -> dict[str, str]:
    """File name → SHA-256 in hex."""
    lines = (pins or PINS).read_text("utf-8").splitlines()
    digests = {name: digest for digest, name in (line.split() for line in lines)}
    prefix = artefact.name + "/"
    return {name.removeprefix(prefix): d for name, d in digests.items() if name.startswith(prefix)}


def _download(artefact: Artefact, wanted: Mapping[str, str], folder: Path) -> None:
    try:
        from jgo.env import EnvironmentBuilder, _builder
        from jgo.maven import MavenContext
    except ImportError:
        raise ConfigError(
            f"{artefact.title} cannot be downloaded: jgo is not installed. Run `pip install 'headrace[local]'`."
        ) from None
    # It would download a whole JDK, which nothing pins, to ask which jars are modules; they all go on the class path.
    _builder.get_baseline_jar_tool = lambda: None
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        try:
            # A repository of its own: the one in the home folder is shared with others, and jgo does not lock it.
            context = MavenContext(repo_cache=Path(scratch) / "repository")
            built = EnvironmentBuilder(context, Path(scratch) / "built").from_endpoint(artefact.endpoint)
            found = {jar.name: jar for jar in built.all_jars}
        except (OSError, RuntimeError) as error:  # jgo's own, and those of requests, which are OSErrors
            raise artefact.unavailable(
                f"{artefact.title} cannot be downloaded ({type(error).__name__}). "
                "Check the network and the proxy settings, then start again."
            ) from error
        if strangers := found.keys() ^ wanted.keys():
            raise artefact.unavailable(
                f"{artefact.title} resolves to other files than the pinned ones: "
                f"{', '.join(sorted(strangers))}. "
                "Remove a local override of the Maven repository, or install a newer headrace."
            )
        for name, jar in found.items():
            _check(artefact, jar, wanted[name])
            jar.replace(folder / name)


def _check(artefact: Artefact, jar: Path, digest: str) -> None:
    with jar.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != digest:
        raise artefact.unavailable(
            f"{jar} is not the file that headrace was tested with: its SHA-256 is {actual}, not {digest}. "
            "Delete it, and start again; if that does not help, the download is not to be trusted."
        )
