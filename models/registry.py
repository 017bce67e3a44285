"""The learners that come with headrace, by the name that a configuration gives."""

from __future__ import annotations

from models import auto
from models.acquainted import acquainted
from models.images import (
    analytic as image_analytic,
    classifier as image_classifier,
    flow as image_flow,
    gan as image_gan,
    recogniser as image_recogniser,
    resnet as image_resnet,
    restorer as image_restorer,
    restyler as image_restyler,
    transfer as image_transfer,
    vae as image_vae,
)
from models.learner import Blueprint
from models.texts import (
    analytic as text_analytic,
    classifier as text_classifier,
    encoder as text_encoder,
    generator as text_generator,
    gru as text_gru,
    river as river_classifier,
)

BUILTIN: dict[str, Blueprint] = {
    "image-analytic": image_analytic.BLUEPRINT,
    "image-auto": auto.IMAGE,
    "image-classifier": acquainted(image_classifier.BLUEPRINT),
    "image-flow": image_flow.BLUEPRINT,
    "image-gan": image_gan.BLUEPRINT,
    "image-recogniser": image_recogniser.BLUEPRINT,
    "image-resnet": acquainted(image_resnet.BLUEPRINT),
    "image-restorer": image_restorer.BLUEPRINT,
    "image-restyler": image_restyler.BLUEPRINT,
    "image-transfer": acquainted(image_transfer.BLUEPRINT),
    "image-vae": image_vae.BLUEPRINT,
    "river-classifier": acquainted(river_classifier.BLUEPRINT),
    "text-analytic": text_analytic.BLUEPRINT,
    "text-auto": auto.TEXT,
    "text-classifier": acquainted(text_classifier.BLUEPRINT),
    "text-encoder": acquainted(text_encoder.BLUEPRINT),
    "text-generator": text_generator.BLUEPRINT,
    "text-gru": acquainted(text_gru.BLUEPRINT),
}
