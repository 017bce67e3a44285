"""Learners of pictures, one a file, and what they are made of.

A configuration names learners as `models.registry` does.
"""

from models.images.backbone import Backbone, BackboneOptions, references
from models.images.generator import between

__all__ = [
    "Backbone",
    "BackboneOptions",
    "between",
    "references",
]
