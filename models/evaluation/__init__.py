"""How well a model does: on the records that come, on records held out, by drawings; and whether the stream drifts."""

from models.evaluation.drawings import NEIGHBOURS, bits_per_dimension, quality
from models.evaluation.drift import ClassHits, DriftDetector
from models.evaluation.held_out import PREFIX, HeldOut, is_held_out
from models.evaluation.prequential import LossRange, Prequential
from models.evaluation.retention import Retention

__all__ = [
    "NEIGHBOURS",
    "PREFIX",
    "ClassHits",
    "DriftDetector",
    "HeldOut",
    "LossRange",
    "Prequential",
    "Retention",
    "bits_per_dimension",
    "is_held_out",
    "quality",
]
