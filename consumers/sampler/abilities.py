"""What a model can be asked: a row here for each route below a model, and what a model must be able to do for it."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, cast

from consumers.sampler.follower import Live
from consumers.sampler.gate import refusal
from models.capabilities import Autoencoder, Classifier, Generator, Recogniser, Restorer, Restyler, TextGenerator

T = TypeVar("T")


def able(live: Live[Any], *kinds: type[T]) -> Live[T] | None:
    """The same version, where its model is one of these."""
    return cast("Live[T]", live) if isinstance(live.model, kinds) else None


class Ability(Generic[T]):
    """A route below a model, which a model answers that is one of these."""

    def __init__(self, route: str, *kinds: type[T]) -> None:
        self.route = route
        self._kinds = kinds

    def of(self, live: Live[Any]) -> Live[T]:
        """The same version.

        Raises:
            HTTPException: 409 where the model does something else.
        """
        if (found := able(live, *self._kinds)) is None:
            can = " or ".join(answers(live)) or "ask for its versions alone"
            detail = f"{live.manifest.model} does not {self.route}. What it does: {can}."
            raise refusal(409, "wrong-kind", detail)
        return found

    def __contains__(self, live: Live[Any]) -> bool:
        return isinstance(live.model, self._kinds)


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
    return [ability.route for ability in ABILITIES if live in ability]
