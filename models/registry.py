"""The learners that come with headrace, by the name that a configuration gives."""

from __future__ import annotations

from models import (
    auto,
    image_analytic,
    image_classifier,
    image_gan,
    image_generator,
    image_recogniser,
    image_resnet,
    image_restorer,
    image_restyler,
    image_transfer,
    river_classifier,
    text_analytic,
    text_classifier,
    text_encoder,
    text_generator,
    text_gru,
)
from models.acquainted import acquainted
from models.learner import Blueprint

BUILTIN: dict[str, Blueprint] = {
    "image-analytic": image_analytic.BLUEPRINT,
    "image-auto": auto.IMAGE,
    "image-classifier": acquainted(image_classifier.BLUEPRINT),
    "image-gan": image_gan.BLUEPRINT,
    "image-recogniser": image_recogniser.BLUEPRINT,
    "image-resnet": acquainted(image_resnet.BLUEPRINT),
    "image-restorer": image_restorer.BLUEPRINT,
    "image-restyler": image_restyler.BLUEPRINT,
    "image-transfer": acquainted(image_transfer.BLUEPRINT),
    "image-vae": image_generator.BLUEPRINT,
    "river-classifier": acquainted(river_classifier.BLUEPRINT),
    "text-analytic": text_analytic.BLUEPRINT,
    "text-auto": auto.TEXT,
    "text-classifier": acquainted(text_classifier.BLUEPRINT),
    "text-encoder": acquainted(text_encoder.BLUEPRINT),
    "text-generator": text_generator.BLUEPRINT,
    "text-gru": acquainted(text_gru.BLUEPRINT),
}
