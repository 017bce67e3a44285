"""What every command says when something is wrong: what, where, and what to do; in one table."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from redis import Redis

from consumers.cli.command import app
from pipeline.local.servers import EmbeddedRedis
from pipeline.process import tied
from pipeline.store.store import Store
from pipeline.words import counted, near, said
from tests.consumers.cli import test_cli as shared
from tests.consumers.cli.test_cli import HEADRACE, PATIENCE_S, Headrace
from tests.consumers.marked import Maker
from tests.consumers.running import Running, configuration, running

folder, headrace, model, topic, maker = shared.folder, shared.headrace, shared.model, shared.topic, shared.maker

NO_MODEL = "There is no model nothing-like-it (known: "
TYPO = "Did you mean {model}?"
NO_FILE = "nofile.png is no file. Correct the path"
# Command line; status; what is wrong, where; what to do. {model} and {topic} are the test's, {url} is its sampler's,
# {closed} an address where nobody listens, {taken} a port that is in use.
TABLE = [
    ("init", 2, "headrace.toml exists already", "Remove it, or name another file"),
    ("init no/such.toml", 1, "no/such.toml: No such file or directory", "See that the path exists"),
    ("up -c headrace.tml", 2, "headrace.tml does not exist", "Did you mean headrace.toml?"),
    ("up -c elsewhere.xml", 2, "elsewhere.xml does not exist", "`headrace init elsewhere.xml` writes"),
    ("up -c empty.toml", 2, "empty.toml has no model", "Add a [models.NAME] table"),
    ("local -c other.xml", 2, "other.xml does not exist", "`headrace init other.xml` writes"),
    ("local --redis-port {taken}", 2, "Port {taken} is in use, so Redis cannot listen", "Stop what listens, or name"),
    ("train {model} -c .", 2, ". cannot be read: Is a directory", "Name a file that can be"),
    ("train {model}x", 2, "models.{model}x is not in the configuration", TYPO),
    ("train broken -c learner.toml", 2, 'learner = "text-clasifier" is not built in', "Did you mean text-classifier?"),
    ("train broken -c option.toml", 2, "models.broken.options.replay_slot = 1: there is no such key", "replay_slots?"),
    ("train broken -c kind.toml", 2, 'models.broken.input.kind = "image"', 'Set it to "text"'),
    ("train broken -c metrics.toml", 2, "metrics: 127.0.0.1:{taken} cannot be bound (Address already", "Set another"),
    ("watch -c key.toml", 2, "key.toml: redis.ur = 'redis://…@there': there is no such key", "Did you mean url?"),
    ("watch -c deep.toml", 2, "deep.toml: models.a.input.sise = 3: there is no such key", "Did you mean size?"),
    ("watch -c value.toml", 2, "value.toml: sampler.port = 70000: ", "less than or equal to 65535"),
    ("watch -c lacks.toml", 2, "lacks.toml: models.a.topics is required", "Set it."),
    ("watch -c name.toml", 2, "name.toml: models.A b = 'A b': ", "use lower-case letters"),
    ("watch -c toml.toml", 2, "toml.toml is not valid TOML", "at line 1"),
    ("watch -c url.toml", 2, "url.toml: redis.url = 'redis://…@h:99999/0': ", "give an address such as redis://"),
    ("watch -c port.toml", 2, "port.toml: kafka.bootstrap_servers = '127.0.0.1:99999': ", "give HOST:PORT"),
    (
        "dead-letters list t -c client.toml",
        2,
        "kafka.client.acs is not a setting of kafka-python",
        "Did you mean acks?",
    ),
    ("watch --once -c closed.toml", 4, "Redis cannot be reached: {closed}: Connection refused", "`headrace up` starts"),
    ("watch --once -c secret.toml", 4, "Redis refused the credentials", "Give redis.url its password"),
    ("serve -c sampler.toml", 2, "sampler: 127.0.0.1:{taken} cannot be bound (Address already in use)", "Set another"),
    ("publish {topic}", 2, "Nothing to publish", "Give files and folders"),
    ("publish {topic} nofile.png", 2, "nofile.png: No such file or directory", "Correct the path"),
    ("publish {topic}x cat.txt", 3, "There is no topic {topic}x, and no model", "Did you mean {topic}? To make it"),
    ("dead-letters list t\udcff", 2, "'t\\udcff' can be no topic", "Use 1 to 249 letters"),
    ("train m\udcff", 2, "models.m\\udcff is not in the configuration", ""),
    ("publish", 2, "Missing argument 'topic'.", "`headrace publish --help` tells"),
    ("publsh", 2, "No such command 'publsh'. Did you mean 'publish'", "`headrace --help` tells"),
    ("publish t --lable x", 2, "No such option: --lable. Did you mean --label?", "`headrace publish --help` tells"),
    ("publish t a.txt --seed x", 2, "Invalid value for '--seed': ", "`headrace publish --help` tells"),
    ("train a b", 2, "Got unexpected extra argument (b).", "`headrace train --help` tells"),
    ("watch --every", 2, "Option '--every' requires an argument.", "--help` tells"),
    ("dead-letters lst", 2, "No such command 'lst'. Did you mean 'list'?", "`headrace dead-letters --help` tells"),
    ("dead-letters list t --limit 0", 2, "Invalid value for '--limit': ", "`headrace dead-letters list --help` tells"),
    ("label answers 17 cat -c other.xml", 2, "other.xml does not exist", "`headrace init other.xml` writes"),
    ("classify {model} nofile.png --url {url}", 2, NO_FILE, "a text that looks like one goes through standard input"),
    ("classify {model} lines.tx --url {closed}", 2, "'{closed}' is no address of a sampler", "http://127.0.0.1:8080"),
    (
        "classify {model} x --url http://{closed}",
        9,
        "127.0.0.1 does not answer: Connection refused",
        "`headrace serve`",
    ),
    ("classify {model}x text --url {url}", 9, "There is no model {model}x here", "Known: {model}"),
    ("classify {model} picture.png --url {url}", 9, "The record cannot be read: ", ""),
    ("recognise {model} text --url {url}", 9, "{model} does not recognise", "What it does: classify"),
    ("explain {model} text --label x --url {url}", 9, "{model} has learned no label 'x'", "Known: "),
    ("nearest {model} text --url {url}", 9, "{model} keeps no records that it learned", "What it does: classify"),
    ("generate {model} -n 1000 --url {url}", 9, "n = 1000: at most 64 at one time", "Ask for less"),
    ("generate {model} --label x --url {url}", 9, "{model} has learned no label 'x'", "Known: "),
    ("interpolate {model} --steps 999 --url {url}", 9, "steps = 999: at most 64 at one time", "Ask for less"),
    ("strip {model} --versions 1,99 --url {url}", 9, "99 names no version of {model}", "lists them"),
    ("encode {model} nofile.png --url {url}", 2, "nofile.png cannot be read: No such file", "Name a file that can be"),
    ("reconstruct {model} picture.png --url {url}", 9, "{model} does not reconstruct", "What it does: classify"),
    ("vary {model} picture.png --url {url}", 9, "{model} does not vary", "What it does: classify"),
    ("restore {model} picture.png --url {url}", 9, "{model} does not restore", "What it does: classify"),
    ("restyle {model} picture.png --url {url}", 9, "{model} does not restyle", "What it does: classify"),
    ("complete {model} text --url {url}", 9, "{model} does not complete", "What it does: classify"),
    ("pull nothing-like-it", 4, NO_MODEL, "`headrace watch` lists"),
    ("pull {model}x", 4, "There is no model {model}x", TYPO),
    ("pull {model} 99", 4, "99 names no version of {model}", "`headrace versions {model}` lists them"),
    ("pull {model} --to no/mine", 1, "no/mine: No such file or directory", "See that the path exists"),
    ("versions {model} -c closed.toml", 4, "Redis cannot be reached: {closed}", "See that it runs"),
    ("alias nothing-like-it a", 4, NO_MODEL, "`headrace watch` lists"),
    ("alias {model} a 99", 4, "99 names no version of {model}", "`headrace versions {model}` lists them"),
    ("alias {model} 12", 2, "'12' cannot be an alias", "Use lower-case letters"),
    ("alias {model} a --delete", 4, "{model} has no alias a", "`headrace versions {model}` lists them"),
    ("delete {model}x --yes", 4, "There is no model {model}x", TYPO),
    ("reset {model}x --yes", 4, "There is no model {model}x", TYPO),
    ("log {model} -c closed.toml", 4, "Redis cannot be reached: {closed}", "See that it runs"),
    ("show {model}x", 4, "There is no model {model}x", TYPO),
    ("show {model}@99", 4, "99 names no version of {model}", "`headrace versions {model}` lists them"),
    ("blame", 2, "Name one record", "headrace blame TOPIC:PARTITION:OFFSET"),
    ("blame {topic}:x", 2, "'{topic}:x' is no place of a record", "Write TOPIC:PARTITION:OFFSET"),
    ("verify {model}x", 2, "models.{model}x is not in the configuration", TYPO),
    ("verify {model} --from 99", 4, "99 names no version of {model}", "`headrace versions {model}` lists them"),
    ("dead-letters list {topic} --since now", 2, "--since now is not a time", "Write it as 2026-"),
    ("dead-letters show {topic} {topic}:0:1", 3, "{topic}:0:1 is no such dead letter", "list {topic}` shows"),
    ("dead-letters requeue {topic}", 2, "Nothing is chosen", "or use --model, --reason, --since or --all"),
    ("dead-letters drop {topic} {topic}:0:1", 3, "{topic}:0:1 is no such dead letter", "list {topic}` shows"),
]
CONFIGS = {
    "empty": "",
    "learner": '[models.broken]\ntopics = ["t"]\nlearner = "text-clasifier"\ninput = {{ kind = "text" }}\n',
    "option": '[models.broken]\ntopics = ["t"]\nlearner = "text-classifier"\ninput = {{ kind = "text" }}\n'
    "options = {{ replay_slot = 1 }}\n",
    "kind": '[models.broken]\ntopics = ["t"]\nlearner = "text-classifier"\ninput = {{ kind = "image" }}\n',
    "metrics": '[models.broken]\ntopics = ["t"]\nlearner = "text-classifier"\ninput = {{ kind = "text" }}\n'
    "metrics = {{ port = {taken} }}\n",
    "key": '[redis]\nur = "redis://:secret@there"\n',
    "deep": '[models.a]\ntopics = ["t"]\nlearner = "image-vae"\ninput = {{ kind = "image", sise = 3 }}\n',
    "value": "[sampler]\nport = 70000\n",
    "lacks": '[models.a]\nlearner = "image-vae"\ninput = {{ kind = "image" }}\n',
    "name": '[models."A b"]\ntopics = ["t"]\nlearner = "image-vae"\ninput = {{ kind = "image" }}\n',
    "toml": "[models\n",
    "url": '[redis]\nurl = "redis://:secret@h:99999/0"\n',
    "port": '[kafka]\nbootstrap_servers = "127.0.0.1:99999"\n',
    "client": "[kafka.client]\nacs = 1\n",
    "closed": '[redis]\nurl = "redis://{closed}/0"\n[models.a]\ntopics = ["t"]\nlearner = "a"\n'
    'input = {{ kind = "text" }}\n',
    "secret": '[redis]\nurl = "{secret}"\n[models.a]\ntopics = ["t"]\nlearner = "a"\ninput = {{ kind = "text" }}\n',
    "sampler": "[sampler]\nport = {taken}\n",
}


@pytest.fixture
def sampler(maker: Maker, model: str, redis_url: str) -> Iterator[Running]:
    """It serves the test's model, which classifies texts."""
    with running(configuration(redis_url, {model: {"family": model}})) as at:
        assert at.serves(model, 3)
        yield at


@pytest.fixture
def names(folder: Path, sampler: Running, model: str, topic: str) -> Iterator[dict[str, str]]:
    """What the table's placeholders stand for, and the files that it names."""
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        socket.socket() as closed,
        EmbeddedRedis(folder / "redis", password="right") as secret,
    ):
        closed.bind(("127.0.0.1", 0))  # and does not listen
        found = {
            "model": model,
            "topic": topic,
            "url": sampler.url,
            "taken": str(taken.getsockname()[1]),
            "closed": f"127.0.0.1:{closed.getsockname()[1]}",
            "secret": secret.url.replace("right", "wrong"),
        }
        for name, text in CONFIGS.items():
            (folder / f"{name}.toml").write_text(text.format(**found), "utf-8")
        (folder / "cat.txt").write_text("cat")
        (folder / "picture.png").write_bytes(b"\xff\xfe\x00")
        yield found


def test_every_error_says_what_where_and_what_to_do(headrace: Headrace, names: dict[str, str]) -> None:
    wrong = []
    for line, status, what, advice in TABLE:
        done = headrace(*line.format(**names).split())
        told = done.err.strip()
        if (
            done.status != status
            or done.out
            or not told.startswith("headrace: ")
            or what.format(**names) not in told
            or advice.format(**names) not in told
            or re.search(r"Traceback|\[Errno|\.\.(?!\.)|: None\b|/models/|\bself\b|secret", told)
            or "\n" in told
        ):
            wrong.append(
                f"headrace {line}: status {done.status}, {done.out!r}, {told!r}; wanted {status}, {what!r}, {advice!r}"
            )
    assert not wrong, "\n".join(wrong)


def test_the_table_has_every_command() -> None:
    group = typer.main.get_group(app)
    letters = group.commands["dead-letters"]
    commands = {name for name in group.commands if name not in ("dead-letters", "demo")}
    commands |= {f"dead-letters {name}" for name in letters.commands}  # type: ignore[attr-defined]
    found = {line.split()[0] for line, *_ in TABLE} | {" ".join(line.split()[:2]) for line, *_ in TABLE}
    assert commands <= found


def test_names_that_nobody_knows_are_no_silence(headrace: Headrace, folder: Path, model: str, topic: str) -> None:
    for command in ("versions", "log"):
        done = headrace(command, f"{model}x")
        assert (done.status, done.out) == (0, "")
        assert done.err.startswith(f"There is no model {model}x (known: ")
        assert f"Did you mean {model}?" in done.err
    assert f"(read: {topic}). Did you mean {topic}?" in headrace("blame", f"{topic}x:0:0").err


def test_the_version_and_the_completion_are_printed(headrace: Headrace, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import __version__

    assert headrace("--version") == (0, f"headrace {__version__}\n", "")
    assert "--install-completion" in headrace("--help").out


def test_counted_things_have_their_plural(headrace: Headrace, maker: Maker, redis: Redis) -> None:
    assert [counted(n, "record") for n in (0, 1, 2000)] == ["0 records", "1 record", "2,000 records"]
    store: Store = maker.store
    assert "1 learned in all, 1 update\n" in headrace("show", f"{store.model}@1").out


def test_a_librarys_error_becomes_a_part_of_a_sentence() -> None:
    assert said(ConnectionError("Error 111 connecting to h:1. Connection refused.")) == "h:1: Connection refused"
    assert said(RuntimeError("[Error 10] MessageSizeTooLargeError: None")) == "MessageSizeTooLargeError"
    assert said(ValueError()) == "ValueError"
    assert said(RuntimeError("KafkaTimeoutError: Unable to bootstrap from ['h:9']")) == "no answer"
    assert said(FileNotFoundError(2, "whatever (while …)", "x")) == "No such file or directory"
    assert near("picturs", ["pictures", "drawings"]) == " Did you mean pictures?"
    assert near("a", ["pictures"]) == ""


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        ("train {model} --json", ['{"model": "{model}", "metrics": "http://', '{"model": "{model}", "version": ']),
        ("serve --json", ['{"url": "http://127.0.0.1:']),
        ("local data --kafka-port 0 --redis-port 0 --json", ['{"kafka": "127.0.0.1:']),
    ],
)
def test_what_runs_on_tells_programs_where(folder: Path, model: str, command: str, lines: list[str]) -> None:
    file = folder / "headrace.toml"
    file.write_text(file.read_text("utf-8").replace("tests.consumers.counting:blueprint", "text-analytic"), "utf-8")
    process = subprocess.Popen(
        tied([str(HEADRACE), *command.replace("{model}", model).split()]),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    told = [first, *rest.splitlines()]
    assert len(told) == len(lines)
    for line, begin in zip(told, lines, strict=True):
        assert line.startswith(begin.replace("{model}", model))
        assert json.loads(line)
