"""How `headrace publish` and `headrace label` wait for Kafka, and what they say where they end without success."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.config import KafkaConfig
from pipeline.process import tied
from tests.consumers.publishing import HEADRACE, PATIENCE_S, Headrace, Log, Surroundings
from tests.services import Topics


@pytest.fixture
def topic(topics: Topics) -> str:
    """Of a classifier and a generator of pictures."""
    return topics()


@pytest.fixture
def headrace(
    tmp_path: Path, kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Headrace:
    return Surroundings(tmp_path, kafka, topic, monkeypatch, capsys).run


@pytest.fixture
def folder(headrace: Headrace, tmp_path: Path) -> Path:
    """Where the user is."""
    return tmp_path


@pytest.fixture
def log(kafka_config: KafkaConfig) -> Log:
    return Log(kafka_config)


@contextmanager
def kafka_at(port: int, kafka: str) -> Iterator[None]:
    """Whoever asks there is told of the brokers of another address."""
    host, _, real = kafka.partition(":")

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(1 << 16):
            writer.write(content)
        writer.close()

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection(host, int(real))
        await asyncio.gather(copy(reader, ours), copy(theirs, writer))

    async def serve(is_up: threading.Event, end: threading.Event) -> None:
        async with await asyncio.start_server(joined, "127.0.0.1", port):
            is_up.set()
            await asyncio.to_thread(end.wait)

    is_up, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve(is_up, end)))
    thread.start()
    try:
        assert is_up.wait(PATIENCE_S)
        yield
    finally:
        end.set()
        thread.join()


def away(*arguments: str) -> tuple[int, subprocess.Popen[str]]:
    """A command that was told to wait for a Kafka, and where that would be."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        tied([HEADRACE, *arguments]),
        env=os.environ | {"HEADRACE__KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{port}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    told = process.stderr.readline()
    while "Waiting for it" not in told:
        assert told
        told = process.stderr.readline()
    return port, process


@pytest.mark.parametrize("command", ["publish", "label"])
def test_a_kafka_that_is_starting_is_waited_for(kafka: str, folder: Path, topic: str, log: Log, command: str) -> None:
    (folder / "a.txt").write_text("a")
    arguments = [topic, "a.txt"] if command == "publish" else [f"labels-{topic}", "1", "a"]
    port, process = away(command, *arguments)
    with kafka_at(port, kafka):
        _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, told
    assert log.values(arguments[0]) == [b"a"]


@pytest.mark.parametrize(("command", "status"), [("publish", 130), ("follow", 0), ("label", 130)])
def test_the_waiting_is_ended_by_ctrl_c(folder: Path, topic: str, command: str, status: int) -> None:
    (folder / "a.txt").write_text("a")
    arguments = {
        "publish": ["publish", topic, "a.txt"],
        "follow": ["publish", topic, "--follow", "."],
        "label": ["label", topic, "1", "a"],
    }[command]
    _, process = away(*arguments)
    process.send_signal(signal.SIGINT)
    out, told = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, "Traceback" in told) == (status, False)
    assert out == ("" if command == "label" else f"0 records published to {topic}.\n")


#: command line → exit status, and what is wrong, where, what to do
ERRORS: dict[str, tuple[int, tuple[str, ...]]] = {
    "publish TOPIC": (2, ("Nothing to publish", "Give files and folders")),
    "publish TOPIC a.txt --follow .": (2, ("two things at once", "Give files and folders")),
    "publish TOPIC - a.txt": (2, ("Standard input goes alone", "Publish the files by a command of their own")),
    "publish TOPIC --follow . --id 1": (2, ("--follow takes neither --id nor --repeat", "Leave them out")),
    "publish TOPIC --follow . --repeat 2": (2, ("--follow takes neither --id nor --repeat", "Leave them out")),
    "publish TOPIC --follow a.txt": (2, ("a.txt is not a folder", "Create it")),
    "publish TOPIC --follow nowhere": (2, ("nowhere is not a folder", "Create it")),
    "publish TOPIC - --repeat 2": (2, ("Standard input can be read once", "publish a .jsonl file")),
    "publish TOPIC missing.png": (2, ("missing.png: No such file", "Correct the path")),
    "publish TOPIC a.txt missing.jsonl": (2, ("missing.jsonl: No such file", "nothing was published")),
    "publish TOPIC headrace.toml": (2, ("headrace.toml: neither a picture nor a text", "Leave it out")),
    "publish TOPIC a.txt b.txt --id 1": (2, ("--id is of one record", "Publish them one by one")),
    "publish TOPIC a.txt --id ''": (2, ("The id ''", "use 1 to 200")),
    "publish TOPIC a.txt --label ' '": (2, ("The label '", "use 1 to 200")),
    "publish TOPIC a.txt --label 'a\x1bb'": (2, ("The label 'a\\x1bb'", "leave out control characters")),
    "publish TOPIC a.txt -c other.toml": (2, ("other.toml does not exist", "headrace init")),
    "publish new-TOPIC a.txt --new-topic -c closed.toml": (
        3,
        ("new-TOPIC", "no such topic", "--create --topic new-TOPIC"),
    ),
    "publish 'no topic' a.txt": (2, ("'no topic' can be no topic", "Use 1 to 249 letters")),
    "publish TOPIC a.txt --label a\udcff": (2, ("The label a\\udcff is not UTF-8", "--label")),
    "publish TOPIC a.txt --id a\udcff": (2, ("The id a\\udcff is not UTF-8", "--id")),
    "publish a\udcff a.txt": (2, ("'a\\udcff' can be no topic", "Use 1 to 249 letters")),
    "publish TOPIC a\udcff.txt": (2, ("a\\udcff.txt: No such file", "Correct the path")),
    "publish TOPIC --follow a\udcff": (2, ("a\\udcff is not a folder", "Create it")),
    "label labels-TOPIC 1 ''": (2, ("The label '", "use 1 to 200")),
    "label labels-TOPIC '' cat": (2, ("The id ''", "use 1 to 200")),
    "label labels-TOPIC 1 cat -c other.toml": (2, ("other.toml does not exist", "headrace init")),
    "label new-TOPIC 1 cat --new-topic -c closed.toml": (
        3,
        ("new-TOPIC", "no such topic", "--create --topic new-TOPIC"),
    ),
    "label 'no topic' 1 cat": (2, ("'no topic' can be no topic", "Use 1 to 249 letters")),
    "label labels-TOPIC 1 a\udcff": (2, ("The label a\\udcff is not UTF-8", "--label")),
}


@pytest.mark.parametrize("command", ERRORS)
def test_every_error_says_what_is_wrong_where_and_what_to_do(
    headrace: Headrace, folder: Path, topic: str, log: Log, command: str
) -> None:
    (folder / "a.txt").write_text("a")
    (folder / "b.txt").write_text("b")
    config = (folder / "headrace.toml").read_text("utf-8")
    (folder / "closed.toml").write_text(config.replace("[kafka]", "[kafka]\ncreate_topics = false"), "utf-8")
    done = headrace(*(word.replace("TOPIC", topic) for word in shlex.split(command)))
    status, parts = ERRORS[command]
    assert (done.status, done.out) == (status, "")
    [told] = [line for line in done.err.splitlines() if line.startswith("headrace: ")]
    assert "Traceback" not in done.err
    for part in parts:
        assert part.replace("TOPIC", topic) in done.err, told
    assert log.values(topic) == []
