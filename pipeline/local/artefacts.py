"""Kafka's jars from Maven, each one checked against a pinned digest before anything of it is run."""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event

from pipeline.errors import ConfigError, LogUnavailable, Stopped
from pipeline.folders import locked, private
from pipeline.process import tied

PINS = importlib.resources.files("pipeline.local") / "jars.sha256"  # `sha256sum --check` reads it, too
TITLE = "Kafka 4.3.1"
# A Maven endpoint with all that it depends on; with "!", its own versions win over those of another's bill of
# materials.
ENDPOINT = (
    "org.apache.kafka:kafka_2.13:4.3.1!"
    "+org.apache.logging.log4j:log4j-core:2.25.1!"
    "+org.apache.logging.log4j:log4j-slf4j-impl:2.25.1!"
)
POLL_S = 0.1
SAY_EVERY_S = 3.0


def cache_folder(environ: Mapping[str, str]) -> Path:
    """`$XDG_CACHE_HOME/headrace`, or `~/.cache/headrace`."""
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"


def fetch(cache: Path, say: Callable[[str], None], stop: Event, pins: Path | None = None) -> list[Path]:
    """Returns Kafka's jars in `cache`, with checked digests. It asks the registry only for missing ones.

    Raises:
        ConfigError: what resolves the jars is not installed.
        LogUnavailable: a jar cannot be downloaded, or does not match its pin.
        Stopped: `stop` was set meanwhile.
    """
    lines = (pins or PINS).read_text("utf-8").splitlines()  # a SHA-256 in hex and a name
    wanted = {name.removeprefix("kafka/"): digest for digest, name in map(str.split, lines)}
    folder = cache / "kafka"
    private(folder)
    with locked(folder / ".lock", lambda: _wait(stop)):  # of several processes that find nothing, one downloads
        if not all((folder / name).exists() for name in wanted):
            _download(wanted, folder, say, stop)
    jars = [folder / name for name in wanted]
    for jar in jars:
        _check(jar, wanted[jar.name])
    return jars


def _download(wanted: Mapping[str, str], folder: Path, say: Callable[[str], None], stop: Event) -> None:
    if importlib.util.find_spec("jgo") is None:
        raise ConfigError(f"{TITLE} cannot be downloaded: jgo is not installed. Run `pip install 'headrace[local]'`.")
    say(f"downloading {TITLE}, once: {len(wanted)} files, 44 MB")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        _resolve(scratch, say, stop)
        found = {jar.name: jar for jar in (scratch / "jars").iterdir()}
        if strangers := found.keys() ^ wanted.keys():
            raise LogUnavailable(
                f"{TITLE} resolves to other files than the pinned ones: {', '.join(sorted(strangers))}. "
                "Remove a local override of the Maven repository, or install a newer headrace."
            )
        for jar in found.values():
            _check(jar, wanted[jar.name])
            jar.replace(folder / jar.name)


def _resolve(scratch: Path, say: Callable[[str], None], stop: Event) -> None:
    """Fills `scratch` in a child process, which can be ended at any moment."""
    command = [sys.executable, "-P", "-m", "pipeline.local.artefacts", str(scratch)]
    with (scratch / "log").open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            tied(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        said_s = time.monotonic()
        try:
            while process.poll() is None:
                _wait(stop)
                if time.monotonic() - said_s >= SAY_EVERY_S:
                    said_s = time.monotonic()
                    say(f"downloading {TITLE}: {_size(scratch) / 1e6:.0f} MB so far")
        finally:
            process.kill()
            status = process.wait()
        if status != 0:
            log.seek(0)
            why = (log.read().splitlines() or ["no reason given"])[-1]
            raise LogUnavailable(
                f"{TITLE} cannot be downloaded ({why}). Check the network and the proxy settings, then start again."
            )


def _wait(stop: Event) -> None:
    if stop.wait(POLL_S):
        raise Stopped(f"The download of {TITLE} was not awaited.")


def _size(folder: Path) -> int:
    sizes = []
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # it was only there while it was downloaded
            continue
    return sum(sizes)


def _check(jar: Path, digest: str) -> None:
    with jar.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != digest:
        raise LogUnavailable(
            f"{jar} is not the file that headrace was tested with: its SHA-256 is {actual}, not {digest}. "
            "Delete it, and start again; if that does not help, the download is not to be trusted."
        )


def main(scratch: Path) -> None:
    """Resolves and downloads into `scratch/jars`; a failure ends with its kind on standard error."""
    from jgo.env import EnvironmentBuilder, _builder
    from jgo.maven import MavenContext

    # It would download a whole JDK, which nothing pins, to ask which jars are modules; they all go on the class path.
    _builder.get_baseline_jar_tool = lambda: None
    try:
        # A repository of its own: the one in the home folder is shared with others, and jgo does not lock it.
        context = MavenContext(repo_cache=scratch / "repository")
        built = EnvironmentBuilder(context, scratch / "built").from_endpoint(ENDPOINT)
    except (OSError, RuntimeError) as error:  # jgo's own, and those of requests, which are OSErrors
        sys.exit(type(error).__name__)
    (scratch / "jars").mkdir()
    for jar in built.all_jars:
        jar.replace(scratch / "jars" / jar.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
