"""The sampler's routes that tell what is served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from consumers.sampler.abilities import ABILITIES, answers
from consumers.sampler.after import FRESH
from consumers.sampler.examples import INFO, MODEL, RouteExample
from consumers.sampler.service import Service, ServiceOf
from models.capabilities import Restorer
from pipeline.client import VersionInfo
from pipeline.store import Learned

if TYPE_CHECKING:
    from consumers.sampler.follower import Follower

ROUTES = ", ".join(ability.route for ability in ABILITIES)
STATE = {
    "model": "digits",
    "answers": ["classify"],
    "standing": INFO,
    "problem": None,
    "worker": "alive",
    "created_ms": 1_764_500_000_000,
    "learner": "image-analytic",
    "input": {"kind": "image", "size": [28, 28], "channels": 1, "fit": "letterbox", "background": 0},
    "classes": ["1", "7"],
    "kinds": [],
    "topics": ["digits"],
    "labels": None,
    "updates": 294,
    "counts": {"learned": 9198, "held_out": 190},
    "metrics": {"prequential_accuracy": 0.972, "prequential_loss": 0.0725},
    "diagnoses": {},
    "probes": {"7": {"now": 0.97, "best": 0.99, "first": 0.4, "records": 19}},
    "last": [{"record": "digits:0:4637", "label": "7", "predicted": "1"}],
}
EXAMPLES = {"/models": RouteExample([STATE]), MODEL: RouteExample(STATE)}
router = APIRouter(tags=["models"])


class ModelState(BaseModel):
    """A model as it is served at this moment; what is null is not known before its first version."""

    model: str
    answers: list[str] = Field(description=f"the routes below this model that it answers, of: {ROUTES}")
    standing: VersionInfo | None
    problem: str | None = Field(description="why the newest version is not the live one")
    worker: str | None = Field(None, description="alive, or why nothing is learned; null: no worker runs")
    created_ms: int | None = None
    learner: str | None = None
    input: dict[str, Any] | None = None
    classes: list[str] = []
    kinds: list[str] = Field([], description="of damage that it undoes")
    topics: list[str] = Field([], description="whose records it learns")
    labels: str | None = Field(None, description="the topic that corrects them, or labels them later")
    updates: int | None = None
    counts: dict[str, int] = Field({}, description="records by outcome")
    metrics: dict[str, float | None] = Field({}, description="prequential: predicted first, then learned")
    diagnoses: dict[str, str] = Field({}, description="why it does badly, if it does, and what to do")
    probes: dict[str, dict[str, Any]] = Field({}, description="by class: accuracy on so many held-out records")
    last: list[Learned] = Field([], description="of the records that this version learned")


@router.get("/models")
async def list_models(service: ServiceOf) -> list[ModelState]:
    """Every model: its live version, its classes, its metrics, how fresh it is."""
    return [model_state(service, name, follower) for name, follower in service.serving.followers().items()]


@router.get("/models/{model}", dependencies=FRESH)
async def get_model(model: str, service: ServiceOf) -> ModelState:
    """One model."""
    return model_state(service, model, service.serving.follower(model))


def model_state(service: Service, name: str, follower: Follower) -> ModelState:
    """What there is to say about a model at this moment."""
    live = follower.live
    if live is None:
        problem = follower.problem or "It has no version yet."
        return ModelState(model=name, answers=[], standing=None, problem=problem, worker=follower.worker)
    manifest, topics = live.manifest, service.serving.topics(name)
    return ModelState(
        model=name,
        answers=answers(live),
        standing=VersionInfo(**live.info(service.clock())),
        problem=follower.problem,
        worker=follower.worker,
        created_ms=manifest.created_ms,
        learner=manifest.learner,
        input=manifest.input,
        classes=manifest.classes,
        kinds=list(live.model.kinds) if isinstance(live.model, Restorer) else [],
        topics=[topic for topic, of_labels in topics.items() if not of_labels],
        labels=next((topic for topic, of_labels in topics.items() if of_labels), None),
        updates=manifest.updates,
        counts=manifest.counts,
        metrics=manifest.metrics,
        diagnoses=manifest.diagnoses,
        probes=manifest.probes,
        last=list(manifest.last),
    )
