"""The benchmark's own arithmetic: what a run came to, what another library is given, the plots."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks.learners.data import Set, accuracy, calibration_error
from benchmarks.learning import plots
from benchmarks.learning.peers import export
from benchmarks.learning.runs import of_classes, summary
from benchmarks.learning.streams import pairs, sorted_by_class

SVG = "{http://www.w3.org/2000/svg}"


def test_what_a_run_came_to_is_recounted_by_hand() -> None:
    run = summary(
        by_part=[[0.9], [0.5, 1.0], [0.7, 0.4, 0.8]],
        sizes=[100, 100, 200],
        hits=[True] * 1000 + [True, False],
        spent_s=2.0,
        stored_bytes=3,
        state_bytes=4,
    )
    assert run.final == pytest.approx((70 + 40 + 160) / 400)
    assert run.incremental == pytest.approx((0.9 + 0.75 + 0.675) / 3)
    assert run.forgetting == pytest.approx((0.9 - 0.7 + 1.0 - 0.4) / 2)
    assert run.prequential == pytest.approx(1001 / 1002)
    assert run.by_thousand == [1.0, 0.5]
    assert run.records_per_s == 501
    assert "by_part" not in run.numbers()


def test_another_library_is_given_the_same_records_in_the_same_order(tmp_path: Path) -> None:
    labels = [name for name in "dbca" for _ in range(3)]
    records = Set(torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1), labels)
    groups = pairs(labels)
    stream = sorted_by_class(records, groups, seed=1)
    export(tmp_path / "1.npz", stream.records, [6, 12], [of_classes(records, classes) for classes in groups])
    with np.load(tmp_path / "1.npz") as arrays:
        assert arrays["x"].flatten().tolist() == stream.records.x.flatten().tolist()
        assert ["abcd"[number] for number in arrays["y"]] == stream.records.labels
        assert arrays["ends"].tolist() == [6, 12]
        assert arrays["test_x"].flatten().tolist() == [3, 4, 5, 9, 10, 11, 0, 1, 2, 6, 7, 8]
        assert arrays["test_y"].tolist() == [1] * 3 + [0] * 3 + [3] * 3 + [2] * 3
        assert arrays["test_stretch"].tolist() == [0] * 6 + [1] * 6


def test_plots_have_a_line_for_each_part_that_was_measured(tmp_path: Path) -> None:
    runs = {"runs": [{"by_part": [[0.5], [0.25, 1.0]]}, {"by_part": [[1.0], [0.75, 1.0]]}]}
    shuffled = {"runs": [{"by_part": [[0.5]]}]}
    results = {"tiles-one": {"raw": runs}, "tiles-<two>": {"raw": runs}, "tiles-shuffled": {"raw": shuffled}}
    (tmp_path / "results.json").write_text(json.dumps({**results, "constant": {"raw": {}}}), "utf-8")
    plots.write(tmp_path)
    assert [path.name for path in tmp_path.glob("*.svg")] == ["tiles.svg"]
    drawing = ElementTree.parse(tmp_path / "tiles.svg").getroot()  # noqa: S314
    assert len(drawing.findall(f"{SVG}polyline")) == 4
    texts = [text.text for text in drawing.findall(f"{SVG}text")]
    assert {"one 75.0%", "<two> 75.0%", "one 50.0%", "<two> 50.0%"} <= set(texts)


class Answers:
    """Says what it is told to."""

    def __init__(self, p: list[list[float]]) -> None:
        self.classes = ["a", "b"]
        self._p = torch.tensor(p)

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        return self._p[: len(x)]

    def load_state_dict(self, state_dict: object) -> None: ...


def test_the_calibration_error_is_recounted_by_hand() -> None:
    model = Answers([[0.9, 0.1], [0.92, 0.08], [0.3, 0.7], [1.0, 0.0]])
    records = Set(torch.zeros(4, 1), ["a", "b", "b", "a"])
    # 0.9 and 0.92 are in one bin, of which half are right; 0.7 and 1.0 are alone and right
    assert calibration_error(model, records) == pytest.approx((2 * abs(0.91 - 0.5) + 0.3 + 0.0) / 4)
    assert accuracy(model, records) == 0.75
