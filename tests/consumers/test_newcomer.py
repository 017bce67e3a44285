"""What somebody gets who has 200 pictures in ten folders, and does what the README says: a good model at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from consumers.loading import build
from models.registry import BUILTIN
from pipeline.client.client import Client, Pulled
from pipeline.config import Config, load
from pipeline.process import tied
from pipeline.records import input_array
from tests.services import unique

HEADRACE = str(Path(sys.executable).with_name("headrace"))
PATIENCE_S = 90.0
EACH = 20  # pictures of a label that are published


def headrace(*arguments: str) -> str:
    """What the command prints."""
    done = subprocess.run([HEADRACE, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Digits in random order, a folder for each; the first ones are to be learned, `test` has the others."""
    digits = load_digits()
    for number, at in enumerate(np.random.default_rng(0).permutation(len(digits.images))):
        pixels, label = digits.images[at], digits.target[at]
        part = "photos" if number < EACH * 10 + 40 else "test"
        folder = tmp_path / part / f"digit {label}"
        folder.mkdir(parents=True, exist_ok=True)
        if part == "test" or len(list(folder.iterdir())) < EACH:
            Image.fromarray((pixels * 15.9).astype(np.uint8)).resize((48, 48)).save(folder / f"{number}.png")
    return tmp_path / "photos"


def accuracy(config: Config, pulled: Pulled, folder: Path) -> float:
    """On the pictures of a folder, whose sub-folders are the labels."""
    model = build(pulled.manifest, pulled.arrays, BUILTIN[pulled.manifest.learner])
    files = sorted(folder.rglob("*.png"))[::4]
    x = np.stack([input_array(path.read_bytes(), config.model("pictures").input) for path in files])
    told = model.classify(torch.from_numpy(x)).argmax(1).tolist()  # type: ignore[attr-defined]
    return float(np.mean([model.classes[at] == path.parent.name for at, path in zip(told, files, strict=True)]))


def test_a_folder_of_pictures_is_a_good_model_at_once(
    photos: Path, kafka: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    monkeypatch.setenv("HEADRACE__KAFKA__BOOTSTRAP_SERVERS", kafka)
    monkeypatch.setenv("HEADRACE__REDIS__URL", redis_url)
    headrace("init")
    topic = unique("pictures")
    file = Path("headrace.toml")
    file.write_text(
        file.read_text("utf-8").replace('topics = ["pictures"]', f'topics = ["{topic}"]\nfamily = "{topic}"', 1)
    )
    published = headrace("publish", topic, "photos")
    assert published == f"{sum(1 for _ in photos.rglob('*.png'))} records published to {topic}.\n"
    worker = subprocess.Popen(tied([HEADRACE, "train", "pictures"]), stderr=subprocess.PIPE, text=True)
    config = load(file, os.environ)
    with Client(config) as client:
        for ref in client.follow("pictures"):
            if client.show("pictures", str(ref.version)).counts["learned"] == int(published.split()[0]):
                break
        worker.send_signal(signal.SIGTERM)
        _, told = worker.communicate(timeout=PATIENCE_S)
        assert worker.returncode == 0, told
        assert accuracy(config, client.pull("pictures"), photos.parent / "test") > 0.85
