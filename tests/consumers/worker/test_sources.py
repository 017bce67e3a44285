"""What a learner starts from: found, read as nothing but weights, named where it is wrong, and the same at a proof."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from redis import Redis
from safetensors.torch import save_file

from consumers.worker.sources import Sources
from models.learner import Reference
from models.registry import BUILTIN
from pipeline.errors import ConfigError, NotRepeatable
from pipeline.store.store import Store
from tests.consumers.marked import Maker
from tests.services import unique

WEIGHTS = {"body.weight": torch.arange(6.0).view(2, 3), "body.bias": torch.ones(2)}


@pytest.fixture
def sources(redis: Redis) -> Sources:
    return Sources(Store(redis, unique("family"), unique("model")), lambda model: model)


def found(sources: Sources, kind: Any, name: object, recorded: dict[str, str] | None = None) -> Any:
    return sources.find({"weights": Reference(kind, str(name))}, "models.m.options", recorded)["weights"]


def test_both_kinds_of_file_give_the_same_weights(sources: Sources, tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    torch.save(WEIGHTS, tmp_path / "b.pth")
    torch.save({"state_dict": WEIGHTS, "epoch": 3}, tmp_path / "c.pt")
    for name in ("a.safetensors", "b.pth", "c.pt"):
        source = found(sources, "file", tmp_path / name)
        assert source.tensors.keys() == WEIGHTS.keys()
        assert all(torch.equal(source.tensors[key], WEIGHTS[key]) for key in WEIGHTS)
        assert source.digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


class Hostile:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("pwned"),))


def test_what_is_not_weights_is_refused_by_name(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Hostile()}, tmp_path / "hostile.pth")
    torch.save({"epoch": 3}, tmp_path / "more.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "broken.pth").write_bytes(b"\xff" * 20)
    (tmp_path / "weights.h5").write_bytes(b"")
    for name, why in [
        ("hostile.pth", "as weights alone"),
        ("more.pth", "more than a state dict"),
        ("broken.safetensors", "header too large"),
        ("broken.pth", "as weights alone"),
        ("weights.h5", "Convert"),
        ("nowhere.pth", "No such file"),
    ]:
        with pytest.raises(ConfigError, match=rf"models\.m\.options\.weights = .*{name}.*{why}"):
            found(sources, "file", tmp_path / name)
    assert not (tmp_path / "pwned").exists()


def test_a_folder_is_its_small_files_and_its_weights(sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        found(sources, "folder", tmp_path)
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"width": 3}))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "code.py").write_text("raise SystemExit")
    source = found(sources, "folder", tmp_path)
    assert source.files == {"config.json": b'{"width": 3}', "1_Pooling/config.json": b"{}"}
    assert source.tensors.keys() == WEIGHTS.keys()
    (tmp_path / "config.json").write_text(json.dumps({"width": 4}))
    assert found(sources, "folder", tmp_path).digest != source.digest


def test_a_version_brings_its_state_and_what_describes_it(redis: Redis, sources: Sources) -> None:
    name = unique("source")
    store = Store(redis, name, name)
    image = {"kind": "image", "size": 8, "channels": 1}
    options = {"width": 8, "hidden": 8, "replay_slots": 4}
    maker = Maker(store, "image-classifier", BUILTIN["image-classifier"], image, **options)
    x = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    for label in ("a", "b"):
        maker.learn(x, [label] * 2)
        maker.commit()
    for reference, classes in ((name, ["a", "b"]), (f"{name}@1", ["a"]), (f"{name}@latest", ["a", "b"])):
        source = found(sources, "version", reference)
        assert (source.learner, source.shape, source.options["width"]) == ("image-classifier", (1, 8, 8), 8)
        assert source.meta["classes"] == classes
        assert source.tensors["head.weight"].shape == (len(classes), 8)
        assert source.training["memory/x"].shape == (4, 1, 8, 8)
        assert source.digest == store.manifest(len(classes)).digest
    with pytest.raises(ConfigError, match="nobody"):
        found(sources, "version", "nobody")
    # A proof goes back to the version that it was, not to the one that the name means now.
    first = store.manifest(1).digest
    assert found(sources, "version", name, {"weights": first}).digest == first


def test_a_proof_is_refused_where_a_file_has_changed(sources: Sources, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(WEIGHTS, path)
    before = found(sources, "file", path).digest
    assert found(sources, "file", path, {"weights": before}).digest == before
    save_file({**WEIGHTS, "body.bias": torch.zeros(2)}, path)
    with pytest.raises(NotRepeatable, match="Put the old one back"):
        found(sources, "file", path, {"weights": before})
