"""The commands that ask the sampler, in this process, against a real one."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from consumers.cli import app as cli
from tests.consumers.answering import VERSIONS, file, photo, seen, serving
from tests.consumers.running import Running

CONFIG = """
[sampler]
port = {port}
"""


class Done(NamedTuple):
    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        assert (self.status, self.err) == (0, "")
        return self.out.decode()


Headrace = Callable[..., Done]


@pytest.fixture(scope="module")
def sampler(redis_url: str) -> Iterator[Running]:
    with serving(redis_url, "eyes", "voice", "drawings") as (at, _):
        yield at


@pytest.fixture
def headrace(
    sampler: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Headrace:
    """Runs a command line in a folder with a configuration and a picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "headrace.toml").write_text(CONFIG.format(port=sampler.url.rpartition(":")[2]), "utf-8")
    (tmp_path / "photo.png").write_bytes(file(photo(20, 16)))
    (tmp_path / "grey.png").write_bytes(file(photo(8, 8, 1)))
    (tmp_path / "dark.png").write_bytes(file(np.zeros((8, 8), np.uint8)))
    (tmp_path / "half.png").write_bytes(file(np.full((8, 8), 128, np.uint8)))

    def run(*arguments: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["headrace", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        status = ended.value.code or 0
        assert isinstance(status, int)
        out, err = capsysbinary.readouterr()
        return Done(status, out, err.decode())

    return run


def test_classify_and_recognise(headrace: Headrace) -> None:
    for way in ("dark.png", "-"):
        done = headrace("classify", "eyes", way, stdin=Path("dark.png").read_bytes())
        assert done.text == "100.0%  dark\n  0.0%  bright\n"
    assert headrace("recognise", "eyes", "half.png").text.startswith("unknown\n")
    assert headrace("recognise", "eyes", "dark.png").text.startswith("100.0%  dark\n")
    answer = json.loads(headrace("recognise", "eyes", "half.png", "--json").text)
    assert (answer["unknown"], answer["label"], answer["version"]) == (True, None, VERSIONS)
    refused = headrace("classify", "eyes", "no such file.png")  # so it is a text
    assert (refused.status, refused.out) == (9, b"")
    assert "reads image" in refused.err


def test_explain_and_nearest(headrace: Headrace) -> None:
    said = headrace("explain", "eyes", "dark.png", "-o", "why.png").text.splitlines()
    assert (said[0], len(said)) == ("100.0%  dark", 9)
    assert set(" ".join(said[1:]).split()) == {"+0.00"}
    assert seen(Path("why.png").read_bytes()).shape == (280, 280, 3)
    answer = json.loads(headrace("explain", "eyes", "dark.png", "--label", "bright", "--json").text)
    assert (answer["label"], answer["version"], len(answer["heat"])) == ("bright", VERSIONS, 8)
    near = headrace("nearest", "drawings", "grey.png", "-n", "1").text.splitlines()
    assert near[0].strip().endswith(("left", "right"))
    assert near[1:] == ["It is no copy."]
    assert len(json.loads(headrace("nearest", "drawings", "grey.png", "--json").text)["records"]) > 1
    refused = headrace("nearest", "eyes", "dark.png")
    assert (refused.status, refused.out) == (9, b"")
    assert "eyes keeps no records that it learned. What it does: classify or" in refused.err


PICTURES: list[tuple[list[str], tuple[int, ...]]] = [
    (["generate", "drawings", "-n", "4", "--label", "left"], (16, 16)),
    (["interpolate", "drawings", "--to", "2", "--steps", "3"], (8, 24)),
    (["strip", "drawings", "-n", "2", "--versions", "1,2,latest"], (16, 24)),
    (["strip", "drawings", "-n", "1", "--last", "2"], (8, 16)),
    (["vary", "drawings", "grey.png", "-n", "2", "--strength", "0.3"], (8, 16)),
    (["reconstruct", "drawings", "grey.png"], (8, 8)),
    (["restore", "eyes", "photo.png", "--kind", "holes", "--mask", "grey.png"], (16, 20, 3)),
    (["restyle", "eyes", "photo.png"], (16, 20, 3)),
]
SEEDED = {"generate", "interpolate", "strip", "vary"}


@pytest.mark.parametrize(("arguments", "shape"), PICTURES, ids=lambda value: value[0] if value else "")
def test_pictures_go_to_a_file_to_a_pipe_or_into_json(
    headrace: Headrace, arguments: list[str], shape: tuple[int, ...]
) -> None:
    seeded = arguments[0] in SEEDED
    asked = [*arguments, "--seed", "7"] if seeded else arguments
    model = arguments[1]
    said = f"Wrote out.png: {model}, version {VERSIONS}{', seed 7' * seeded}.\n"
    assert headrace(*asked, "-o", "out.png").text == said
    content = Path("out.png").read_bytes()
    assert seen(content).shape == shape
    piped = headrace(*asked)
    assert (piped.status, piped.err, piped.out) == (0, "", content)
    answer = json.loads(headrace(*asked, "--json").text)
    assert (answer["model"], answer["version"]) == (model, VERSIONS)
    first = seen(base64.b64decode(answer["images"][0]))
    np.testing.assert_array_equal(first, seen(content)[: len(first), : first.shape[1]])
    about = json.loads(headrace(*asked, "-o", "other.png", "--json").text)
    assert Path("other.png").read_bytes() == content
    assert about["file"] == "other.png"
    assert "images" not in about


def test_a_terminal_gets_no_png(headrace: Headrace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
    for arguments, _ in PICTURES:
        done = headrace(*arguments)
        assert (done.status, done.out) == (2, b"")
        assert "Give -o FILE.png" in done.err


def test_a_picture_comes_from_standard_input_too(headrace: Headrace) -> None:
    done = headrace("restyle", "eyes", "-", stdin=Path("photo.png").read_bytes())
    np.testing.assert_array_equal(seen(done.out), photo(20, 16)[:, ::-1])


def test_encode(headrace: Headrace) -> None:
    code = json.loads(headrace("encode", "drawings", "grey.png", "--label", "left", "--json").text)
    lines = headrace("encode", "drawings", "grey.png", "--label", "left").text.splitlines()
    numbers = [[float(number) for number in line.split()] for line in lines]
    np.testing.assert_allclose(numbers, list(zip(code["mean"], code["std"], strict=True)), rtol=1e-5)


def test_texts_are_completed_and_written(headrace: Headrace) -> None:
    asked = ["complete", "voice", "abc 家", "--seed", "1", "--temperature", "0.5", "--stop", "Samp"]
    assert headrace(*asked).text == f"家 cba v{VERSIONS} 1 \n"
    answer = json.loads(headrace(*asked, "--json").text)
    assert (answer["text"], answer["seed"], answer["version"]) == (f"家 cba v{VERSIONS} 1 ", 1, VERSIONS)
    asked[2] = "-"
    assert headrace(*asked, stdin="abc 家".encode()).text == f"家 cba v{VERSIONS} 1 \n"
    written = headrace("generate", "voice", "-n", "2", "--seed", "1").text
    assert written.count("Sampling") == 2
    assert json.loads(headrace("generate", "voice", "--json").text)["texts"]


def test_pieces_are_shown_as_they_come(headrace: Headrace, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("consumers.cli.answers.typer.echo", lambda *text, **how: shown.append(text))
    headrace("complete", "voice", "abc", "--max-bytes", "3")
    assert shown == [("c",), ("b",), ("a",), ()]


def test_what_is_wrong_is_one_sentence(headrace: Headrace, sampler: Running) -> None:
    for arguments, status, words in [
        (["restyle", "none", "photo.png"], 9, "There is no model none"),
        (["restyle", "voice", "photo.png"], 9, "voice does not restyle"),
        (["restyle", "eyes", "none.png"], 2, "none.png cannot be read"),
        (["complete", "voice", "x", "--url", "http://127.0.0.1:9"], 9, "does not answer"),
        (["classify", "eyes", "dark.png", "-c", "none.toml"], 2, "none.toml does not exist"),
    ]:
        done = headrace(*arguments, "-o", "out.png") if arguments[0] == "restyle" else headrace(*arguments)
        assert (done.status, done.out) == (status, b"")
        assert words in done.err
        assert done.err.startswith("headrace: ")
        assert len(done.err.splitlines()) == 1
    asked = headrace("classify", "eyes", "dark.png", "-c", "none.toml", "--url", sampler.url)
    assert asked.text.startswith("100.0%  dark")  # who names the sampler needs no configuration


def test_an_answer_after_a_record(headrace: Headrace) -> None:
    """Of a version in which the record has its outcome; drawings, too."""
    for command in (("classify", "eyes", "photo.png"), ("generate", "drawings", "-n", "2")):
        assert json.loads(headrace(*command, "--after", "topic:0:0", "--json").text)["version"] == VERSIONS
        refused = headrace(*command, "--after", "elsewhere:0:0", "--json")
        assert (refused.status, "does not read elsewhere" in refused.err) == (9, True)
