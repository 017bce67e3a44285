"""The learners that come with headrace, by the name that a configuration gives."""

from __future__ import annotations

from models import image_classifier, image_generator, text_classifier
from models.learner import Blueprint

BUILTIN: dict[str, Blueprint] = {
    "image-classifier": image_classifier.BLUEPRINT,
    "image-vae": image_generator.BLUEPRINT,
    "text-classifier": text_classifier.BLUEPRINT,
}
