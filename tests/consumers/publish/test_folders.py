"""Folders as people have them: what programs keep in them, links, data sets in parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.publish.folders import Entry, listing
from consumers.publish.outgoing import Refused


def made(folder: Path, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"1")
    return folder


def labels(folder: Path, said: list[str] | None = None) -> dict[str, str | None]:
    """File → label."""
    found = listing(folder, ([] if said is None else said).append)
    return {str(Path(one.path).relative_to(folder)): one.label for one in found if isinstance(one, Entry)}


@pytest.mark.parametrize(
    "kept",
    [
        ".ipynb_checkpoints",
        "@eaDir",
        "__MACOSX",
        "#recycle",
        "$RECYCLE.BIN",
        ".thumbnails",
        "System Volume Information",
    ],
)
def test_what_programs_keep_is_no_label(tmp_path: Path, kept: str) -> None:
    said: list[str] = []
    folder = made(tmp_path, "cat/1.png", f"{kept}/1.png", f"cat/{kept}/2.png", f"{kept}/dog/3.png", "cat/._1.png")
    assert labels(folder, said) == {"cat/1.png": "cat"}
    assert len(said) == 1
    assert kept in said[0]


def test_linked_folders_and_files_are_what_they_lead_to(tmp_path: Path) -> None:
    photos = made(tmp_path / "photos", "cat/1.png")
    made(tmp_path / "elsewhere", "2.png", "deep/3.png")
    (photos / "dog").symlink_to(tmp_path / "elsewhere")
    (photos / "bird").symlink_to(tmp_path / "elsewhere")  # under another label
    (photos / "cat" / "4.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    assert labels(photos) == {
        "cat/1.png": "cat",
        "cat/4.png": "cat",
        "dog/2.png": "dog",
        "dog/deep/3.png": "dog",
        "bird/2.png": "bird",
        "bird/deep/3.png": "bird",
    }


def test_links_in_circles_and_to_nothing_are_reported(tmp_path: Path) -> None:
    said: list[str] = []
    photos = made(tmp_path, "cat/1.png", "dog/2.png")
    (photos / "cat" / "self").symlink_to(photos / "cat")
    (photos / "cat" / "all").symlink_to(photos)
    (photos / "cat" / "gone.png").symlink_to(photos / "nothing")
    for one, other in (("cat", "dog"), ("dog", "cat")):
        (photos / one / "other").symlink_to(photos / other)
    found = labels(photos, said)
    assert {"cat/1.png": "cat", "dog/2.png": "dog"}.items() <= found.items()
    assert len(found) <= 4
    assert any("cat/gone.png: a link to nothing" in line for line in said)
    assert any("a link to a folder that is read already" in line for line in said)


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "Testing"), ("train", "valid", "test"), ("train",)])
def test_parts_of_a_set_are_no_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    said: list[str] = []
    folder = made(tmp_path, *(f"{name}/{label}/1.png" for name in names for label in ("cat", "dog")), "README.md")
    assert set(labels(folder, said).values()) == {"cat", "dog", None}
    assert "are parts of one set and no labels" in said[0] or len(names) == 1
    assert set(labels(folder / names[0]).values()) == {"cat", "dog"}


def test_a_train_among_other_vehicles_is_one(tmp_path: Path) -> None:
    assert set(labels(made(tmp_path, "train/1.png", "car/1.png", "bus/1.png")).values()) == {"train", "car", "bus"}


def test_pictures_in_the_parts_themselves_have_no_label(tmp_path: Path) -> None:
    assert set(labels(made(tmp_path, "train/1.png", "test/2.png")).values()) == {None}


def test_what_is_passed_over_is_said_in_a_sentence_a_reason(tmp_path: Path) -> None:
    said: list[str] = []
    made(tmp_path, "1.png", *(f"{number}.json" for number in range(100)))
    assert labels(tmp_path, said) == {"1.png": None}
    assert len(said) == 1
    assert said[0].endswith("neither a picture nor a text by its name (.png, .jpg, .webp, .txt, …). Passed over.")
    assert " and 97 more: " in said[0]


def test_photographs_of_a_telephone_are_named_as_such(tmp_path: Path) -> None:
    said: list[str] = []
    labels(made(tmp_path, "cat/IMG_1.HEIC", "cat/IMG_2.HEIC", "dog/3.jpg"), said)
    assert [line.split(": ", 1)[1] for line in said] == ["no model reads HEIC: save it as JPEG or PNG. Passed over."]


def test_folders_in_folders_without_end(tmp_path: Path) -> None:
    """As deep as a path may be: more than Python would recurse."""
    deep = tmp_path / "label"
    deep.mkdir()
    for _ in range(1200):
        deep /= "a"
        deep.mkdir()
    (deep / "1.png").write_bytes(b"1")
    try:
        assert list(labels(tmp_path).values()) == ["label"]
    finally:  # pytest takes old folders away by recursion, which ends at a thousand
        (deep / "1.png").unlink()
        while deep != tmp_path:
            deep.rmdir()
            deep = deep.parent


def test_a_folder_that_is_gone_is_reported(tmp_path: Path) -> None:
    [refused] = listing(tmp_path / "gone", print)
    assert isinstance(refused, Refused)
    assert "gone: No such file" in str(refused)
