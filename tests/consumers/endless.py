"""A user's own decoder and learner that never return: at a record of which they are asked to wait."""

from __future__ import annotations

import threading

import torch

from models.learner import Batch, Blueprint, Report
from pipeline.records import Payload, Record, from_headers
from tests.consumers.counting import CountLearner, CountOptions, _model

goes_on = threading.Event()  # never, but for the end of a test
at_work = threading.Event()


def decode(record: Record) -> Payload:
    """Returns but for b"endless"."""
    if record.value == b"endless":
        at_work.set()
        goes_on.wait()
    return from_headers(record)


class EndlessLearner(CountLearner):
    """Learns numbers; 666 takes it for ever."""

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        report = super().learn(batch, rng)
        if self.model.counts[666]:
            at_work.set()
            goes_on.wait()
        return report


blueprint = Blueprint(CountOptions, EndlessLearner, _model, "text")
