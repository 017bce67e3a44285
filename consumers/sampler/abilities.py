"""What a model can be asked: each route below a model has a row here, with what the model must be able to do."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, cast

from consumers.sampler.follower import Live
from consumers.sampler.gate import refusal
from models.capabilities import Autoencoder, Classifier, Generator, Recogniser, Restorer, Restyler, TextGenerator

T = TypeVar("T")


def able(live: Live[Any], *kinds: type[T]) -> Live[T] | None:
    """The same version, if its model is of one of these kinds."""
    return cast("Live[T]", live) if isinstance(live.model, kinds) else None


class Ability(Generic[T]):
    """A route below a model, and the kinds of models that answer it."""

    def __init__(self, route: str, *kinds: type[T]) -> None:
        self.route = route
        self.kinds = kinds

    def of(self, live: Live[Any]) -> Live[T]:
        """The same version, whose model is known to answer.

        Raises:
            HTTPException: 409 where the model does something else.
        """
        if (found := able(live, *self.kinds)) is None:
            can = " or ".join(answers(live)) or "ask for its versions alone"
            detail = f"{live.manifest.model} does not {self.route}. What it does: {can}."
            raise refusal(409, "wrong-kind", detail)
        return found


#: in the order in which a model tells what it answers
ABILITIES: tuple[Ability[Any], ...] = (
    CLASSIFY := Ability("classify", Classifier),
    RECOGNISE := Ability("recognise", Recogniser),
    GENERATE := Ability[Generator | TextGenerator]("generate", Generator, TextGenerator),
    INTERPOLATE := Ability("interpolate", Generator),
    STRIP := Ability("strip", Generator),
    ENCODE := Ability("encode", Autoencoder),
    RECONSTRUCT := Ability("reconstruct", Autoencoder),
    VARY := Ability("vary", Autoencoder),
    COMPLETE := Ability("complete", TextGenerator),
    RESTORE := Ability("restore", Restorer),
    RESTYLE := Ability("restyle", Restyler),
)


def answers(live: Live[Any]) -> list[str]:
    """The routes that this model answers."""
    return [ability.route for ability in ABILITIES if isinstance(live.model, ability.kinds)]
