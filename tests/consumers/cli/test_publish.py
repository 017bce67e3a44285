"""`headrace publish` and `headrace label` as people use them, on the real Kafka."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from consumers.publish.unlearned import UNLABELLED
from models.familiarity import AcquaintedOptions
from models.registry import BUILTIN
from pipeline.config import KafkaConfig
from pipeline.process import tied
from pipeline.records import Record
from tests.consumers.publishing import HEADRACE, PATIENCE_S, Headrace, Log, Surroundings, eventually, png
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


def fill(folder: Path, **labels: int) -> None:
    """So many pictures of each label."""
    for number, (label, count) in enumerate(labels.items()):
        (folder / label).mkdir(parents=True)
        for picture in range(count):
            (folder / label / f"{picture:03}.png").write_bytes(png(1000 * number + picture))


def ids(records: list[Record]) -> list[bytes]:
    return [dict(record.headers)["id"] for record in records]


def test_files_folders_lines_and_texts(headrace: Headrace, folder: Path, topic: str, log: Log) -> None:
    fill(folder / "photos", cat=1)
    (folder / "photos" / "Thumbs.db").write_bytes(b"?")
    (folder / "b.txt").write_bytes(b"b")
    (folder / "c.jsonl").write_text('{"text": "c", "label": "x", "id": "7"}\n', "utf-8")
    done = headrace("publish", topic, "photos", "b.txt", "c.jsonl")
    assert (done.status, done.out) == (0, f"3 records published to {topic}.\n")
    assert "Thumbs.db" in done.err
    picture, text, entry = log.read(topic)
    assert picture.value == (folder / "photos/cat/000.png").read_bytes()
    assert dict(picture.headers).items() >= {("content-type", b"image/png"), ("label", b"cat")}
    assert (text.value, set(dict(text.headers))) == (b"b", {"content-type", "id"})
    assert dict(entry.headers) == {"content-type": b"text/plain", "label": b"x", "id": b"7"}


def test_one_file_over_the_limit_stops_no_other_and_is_published_alone_when_it_fits(
    headrace: Headrace, folder: Path, topic: str, log: Log
) -> None:
    fill(folder / "set", x=4)
    big = folder / "set" / "x" / "001.png"
    small = big.read_bytes()
    big.write_bytes(b"1" * 100_001)
    done = headrace("publish", topic, "set")
    assert (done.status, done.out) == (1, f"3 records published to {topic}.\n")
    assert "set/x/001.png: 100,001 bytes, over kafka.max_bytes = 100,000" in done.err
    assert "headrace: 1 record not published" in done.err
    assert headrace("publish", topic, "set").out == f"0 records published to {topic}.\n"
    big.write_bytes(small)
    done = headrace("publish", topic, "set")
    assert (done.status, done.out) == (0, f"1 record published to {topic}.\n")
    assert "3 records had been published before" in done.err
    assert len(set(log.values(topic))) == len(log.values(topic)) == 4
    assert headrace("publish", topic, "set").out == f"4 records published to {topic}.\n"  # a pass of its own


def test_what_the_topic_does_not_take_stops_no_other(
    headrace: Headrace, folder: Path, topics: Topics, log: Log
) -> None:
    topic = topics(settings={"max.message.bytes": "10000"})
    (folder / "set").mkdir()
    for number in range(20):
        (folder / "set" / f"{number}.png").write_bytes(png(number, 200 if number in (7, 8) else 8))
    done = headrace("publish", topic, "set", "--in-order", "--label", "x")
    assert (done.status, done.out) == (1, f"18 records published to {topic}.\n")
    for name in ("set/7.png", "set/8.png"):
        assert f"{name}: larger than {topic} takes" in done.err
    assert len(log.values(topic)) == len(set(log.values(topic))) == 18
    assert headrace("publish", topic, "set", "--label", "x").out == f"0 records published to {topic}.\n"


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_try_that_ended_early_is_gone_on_with(
    headrace: Headrace, folder: Path, topic: str, log: Log, way: signal.Signals
) -> None:
    lines = [json.dumps({"text": text}) + "\n" for text in ("yes", "no", "yes", "yes", "no", "why")]
    os.mkfifo(folder / "lines.jsonl")
    pipe = os.open(folder / "lines.jsonl", os.O_RDWR)  # a writer that pauses
    command = [HEADRACE, "publish", topic, "lines.jsonl"]
    process = subprocess.Popen(tied(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.write(pipe, "".join(lines[:3]).encode())
    log.read(topic, 3)
    process.send_signal(way)
    out, told = process.communicate(timeout=PATIENCE_S)
    os.close(pipe)
    if way != signal.SIGKILL:
        assert (process.returncode, out) == (128 + way, f"3 records published to {topic}.\n")
        assert "It ended early. The same command publishes the rest." in told
        assert "Traceback" not in told
    (folder / "lines.jsonl").unlink()
    (folder / "lines.jsonl").write_text("".join(lines))
    done = headrace("publish", topic, "lines.jsonl")
    assert (done.status, done.out) == (0, f"3 records published to {topic}.\n")
    assert Counter(log.values(topic)) == {b"yes": 3, b"no": 2, b"why": 1}
    assert headrace("publish", topic, "lines.jsonl").out == f"6 records published to {topic}.\n"


def test_a_stream_that_was_ended_is_not_gone_on_with(folder: Path, topic: str, log: Log) -> None:
    """Its lines are other ones, also where they say the same."""
    for passed in (1, 2):
        process = subprocess.Popen(
            tied([HEADRACE, "publish", topic, "-"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(b"GET /\nGET /\n")
        process.stdin.flush()
        log.read(topic, 2 * passed)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130  # with its standard input open
        process.communicate()
    assert log.values(topic) == 4 * [b"GET /"]


def test_a_folder_is_followed_and_the_next_start_forgets_nothing(folder: Path, topic: str, log: Log) -> None:
    drop = folder / "drop"
    drop.mkdir()
    (drop / "old.txt").write_text("old")

    def follow(at_least: int, name: str) -> tuple[int, str, str]:
        command = [HEADRACE, "publish", topic, "--follow", "drop", "--label", "x"]
        process = subprocess.Popen(tied(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        eventually((folder / ".headrace" / "publish").exists)
        (drop / "big.png").write_bytes(b"1" * 100_001)
        (drop / name).write_text(name)
        log.read(topic, at_least)
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out, told

    status, out, told = follow(1, "a.txt")
    assert (status, out) == (0, f"1 record published to {topic}.\n")
    assert "drop/big.png: 100,001 bytes" in told
    (drop / "b.txt").write_text("b")  # nobody follows
    status, out, told = follow(3, "c.txt")
    assert (status, out) == (0, f"2 records published to {topic}.\n")
    assert sorted(log.values(topic)) == [b"a.txt", b"b", b"c.txt"]


def test_what_is_published_twice_has_the_same_ids_and_every_pass_another_order(
    headrace: Headrace, folder: Path, topic: str, log: Log
) -> None:
    fill(folder / "photos", cat=10, dog=10)
    assert headrace("publish", topic, "photos", "--repeat", "2").out == f"40 records published to {topic}.\n"
    assert headrace("publish", topic, "photos", "--seed", "1").status == 0
    found = ids(log.read(topic))
    passes = [found[:20], found[20:40], found[40:]]
    assert len({tuple(order) for order in passes}) == 3
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(passes[2])
    assert len(set(found)) == 20


def test_labels_come_mixed_or_in_order(headrace: Headrace, folder: Path, topics: Topics, log: Log) -> None:
    fill(folder / "photos", cat=20, dog=20)
    for arguments, changes in ((["--in-order"], 1), ([], 10)):
        topic = topics()
        assert headrace("publish", topic, "photos", *arguments).status == 0
        labels = [dict(record.headers)["label"] for record in log.read(topic)]
        turns = sum(one != other for one, other in itertools.pairwise(labels))
        assert turns == changes if changes == 1 else turns > changes


def test_it_says_how_many_records_are_needed(headrace: Headrace, folder: Path, topic: str) -> None:
    fill(folder / "few", cat=2, dog=30)
    assert "2 labels, of the rarest 2 records. A label needs some 20" in headrace("publish", topic, "few").err
    fill(folder / "more", cat=20, dog=30)
    assert "2 labels, of the rarest 20 records.\n" in headrace("publish", topic, "more").err
    fill(folder / "one", cat=20)
    assert "All have one label, cat" in headrace("publish", topic, "one").err
    lines = [json.dumps({"text": f"{label} {n}", "label": label}) + "\n" for label in "ab" for n in range(20)]
    (folder / "sorted.jsonl").write_text("".join(lines), "utf-8")
    (folder / "mixed.jsonl").write_text("".join(lines[::3] + lines[1::3] + lines[2::3]), "utf-8")
    assert "They came label after label" in headrace("publish", topic, "sorted.jsonl").err
    assert "label after label" not in headrace("publish", topic, "mixed.jsonl").err


def test_a_label_for_all(headrace: Headrace, folder: Path, topic: str, log: Log) -> None:
    (folder / "a.jsonl").write_text('{"text": "a"}\n{"text": "b", "label": "other"}\n', "utf-8")
    assert headrace("publish", topic, "a.jsonl", "--label", "de").status == 0
    assert headrace("publish", topic, "-", "--label", " de ", stdin=b"c\n").status == 0
    fill(folder / "photos", cat=1)
    assert headrace("publish", topic, "photos", "--label", "de").status == 0
    assert log.labels(topic) == {"de": 4}


def test_a_file_of_lines_is_said_to_be_one_record(headrace: Headrace, folder: Path, topic: str) -> None:
    lines, letter = folder / "lines.txt", folder / "letter.txt"
    lines.write_text("one more line\n" * 30, "utf-8")
    letter.write_text("Dear reader,\n\nwith kind regards\n", "utf-8")
    told = headrace("publish", topic, str(lines), "--label", "en")
    assert "1 record published" in told.out
    assert f"lines.txt is one record. Its 30 lines are one each with `headrace publish {topic} - < FILE`." in told.err
    assert "is one record" not in headrace("publish", topic, str(letter), "--label", "en").err


def test_an_id(headrace: Headrace, folder: Path, topic: str, log: Log) -> None:
    (folder / "cat.png").write_bytes(png(0))
    assert headrace("publish", topic, "cat.png", "--id", "photo-17", "--json").json()["id"] == "photo-17"
    assert headrace("publish", topic, "-", "--id", "m-1", stdin=b"hello\n").status == 0
    assert ids(log.read(topic)) == [b"photo-17", b"m-1"]
    (folder / "more").mkdir()
    (folder / "more" / "1.txt").write_text("1")
    (folder / "more" / "2.txt").write_text("2")
    for arguments, stdin in ((["more"], b""), (["-"], b"one\ntwo\n"), (["more/1.txt", "more/2.txt"], b"")):
        done = headrace("publish", topic, *arguments, "--id", "m-2", stdin=stdin)
        assert (done.status, done.out) == (2, "")
        assert "nothing was published" in done.err
    assert len(log.read(topic)) == 2


def test_lines_that_are_no_text_are_named_and_a_second_try_publishes_them_alone(
    headrace: Headrace, topic: str, log: Log
) -> None:
    done = headrace("publish", topic, "-", stdin=b"one\nGr\xfc\xdfe\nthree\none\n")
    assert (done.status, done.out) == (1, f"3 records published to {topic}.\n")
    assert "standard input, line 2: not UTF-8 (byte 0xfc at 2)" in done.err
    done = headrace("publish", topic, "-", stdin="one\nGrüße\nthree\none\n".encode())
    assert (done.status, done.out) == (0, f"1 record published to {topic}.\n")
    assert Counter(log.values(topic)) == {b"one": 2, b"three": 1, "Grüße".encode(): 1}


def test_a_try_is_forgotten_where_the_topic_was_made_again_and_by_again(
    headrace: Headrace, folder: Path, topic: str, topics: Topics, log: Log
) -> None:
    (folder / "a.jsonl").write_text('{"text": "a"}\n{\n', "utf-8")
    assert headrace("publish", topic, "a.jsonl").status == 1
    assert headrace("publish", topic, "a.jsonl", "--again").out == f"1 record published to {topic}.\n"
    assert headrace("publish", topic, "a.jsonl").out == f"0 records published to {topic}.\n"
    topics.admin.delete_topics([topic])
    eventually(lambda: topic not in topics.admin.list_topics())
    assert headrace("publish", topic, "a.jsonl").out == f"1 record published to {topic}.\n"
    assert log.values(topic) == [b"a"]


def test_what_no_model_learns_is_reported(headrace: Headrace, folder: Path, topic: str) -> None:
    (folder / "flat").mkdir()
    for number in range(3):
        (folder / "flat" / f"{number}.png").write_bytes(png(number))
    (folder / "flat" / "large.png").write_bytes(png(3, 300))
    done = headrace("publish", topic, "flat", "--json")
    assert done.status == 0
    assert "flat/" in done.err
    assert "pictures will not learn it, nor others like it: image-analytic learns from labels" in done.err
    assert done.err.count("image-analytic learns") == 1
    assert done.json()["unlearned"] == {"pictures": {"unlabelled": 3, "too-large": 1}}
    done = headrace("publish", topic, "-", "--label", "x", "--json", stdin=b"a text\n")
    assert done.json()["unlearned"] == {"pictures": {"content-type": 1}, "drawings": {"content-type": 1}}
    assert "standard input, line 1: is published, but pictures will not learn it" in done.err
    assert headrace("publish", f"joined-{topic}", "-", stdin=b"a text\n").err == ""


def test_no_topic_is_made_by_a_typo(headrace: Headrace, folder: Path, topic: str, topics: Topics) -> None:
    (folder / "drop").mkdir()
    fill(folder / "photos", cat=1)
    for command in (["-"], ["photos"], ["--follow", "drop"]):
        done = headrace("publish", f"{topic}s", *command, stdin=b"a\n")
        assert (done.status, done.out) == (3, "")
        told = f"headrace: There is no topic {topic}s, and no model of the configuration reads it. Did you mean {topic}"
        assert done.err.startswith(told)
        assert done.err.endswith("give --new-topic, or new_topic=True to the client.\n")
    done = headrace("label", f"labels-{topic}s", "1", "cat")
    assert (done.status, done.out) == (3, "")
    assert f"Did you mean labels-{topic}?" in done.err
    assert not {f"{topic}s", f"labels-{topic}s"} & set(topics.admin.list_topics())
    assert headrace("label", f"labels-{topic}s", "1", "cat", "--new-topic").status == 0
    (folder / "headrace.toml").write_text((folder / "headrace.toml").read_text("utf-8").partition("[models")[0])
    assert headrace("publish", f"{topic}z", "-", stdin=b"a\n").status == 0  # there is no model yet


def test_a_topic_that_no_model_reads_is_reported(headrace: Headrace, topic: str) -> None:
    assert headrace("publish", f"{topic}s", "-", "--new-topic", stdin=b"a\n").status == 0
    done = headrace("publish", f"{topic}s", "-", stdin=b"a\n")
    assert f"No model of the configuration reads {topic}s" in done.err
    assert f"Did you mean {topic}?" in done.err
    assert (done.status, done.out) == (0, f"1 record published to {topic}s.\n")
    assert f"headrace label labels-{topic} ID LABEL" in headrace("publish", f"labels-{topic}", "-", stdin=b"a\n").err
    assert f"No model of the configuration reads {topic}" in headrace("label", topic, "1", "cat").err
    assert headrace("label", f"labels-{topic}", "1", "cat").err == ""


def test_a_label(headrace: Headrace, topic: str, log: Log) -> None:
    labels = f"labels-{topic}"
    assert (
        headrace("label", labels, "photo-17", " e\u0301te\u0301 ").out == f"photo-17 is été: published to {labels}.\n"
    )
    [record] = log.read(labels)
    assert (record.key, record.value, record.headers) == (b"photo-17", "été".encode(), ())
    assert headrace("label", labels, "1", "cat", "--json").json() == {"topic": labels, "id": "1", "label": "cat"}


def test_programs_read_what_became_of_the_records(headrace: Headrace, folder: Path, topic: str) -> None:
    fill(folder / "photos", cat=2, dog=1)
    (folder / "photos" / "dog" / "empty.png").write_bytes(b"")
    done = headrace("publish", topic, "photos", "--json")
    assert (done.status, done.json()) == (
        1,
        {
            "topic": topic,
            "published": 3,
            "published_before": 0,
            "not_published": 1,
            "id": None,
            "after": [f"{topic}:0:2"],
            "labels": {"cat": 2, "dog": 1},
            "unlearned": {},
            "ended_early": False,
        },
    )


def test_the_built_in_learners_that_need_no_label_are_listed() -> None:
    others = {name: each for name, each in BUILTIN.items() if not issubclass(each.options, AcquaintedOptions)}
    made = {name: blueprint.learner for name, blueprint in others.items()}  # those are classifiers
    kinds: dict[str, Any] = {
        name: it if isinstance(it, type) else get_type_hints(it)["return"] for name, it in made.items()
    }
    either = {name: get_args(kind) if isinstance(kind, UnionType) else (kind,) for name, kind in kinds.items()}
    bare = {name: [get_origin(kind) or kind for kind in some] for name, some in either.items()}
    assert {name for name, some in bare.items() if not all(kind.needs_label for kind in some)} == UNLABELLED
