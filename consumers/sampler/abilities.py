"""What a model can be asked: each route below a model has a row here, with what the model must be able to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from consumers.sampler.follower import Live
from consumers.sampler.gate import refusal
from consumers.sampler.remembered import keeps_records
from models.capabilities import Autoencoder, Classifier, Generator, Recogniser, Restorer, Restyler, TextGenerator

if TYPE_CHECKING:
    from pipeline.store import Manifest

T = TypeVar("T")


def able(live: Live[Any], *kinds: type[T]) -> Live[T] | None:
    """The same version, if its model is of one of these kinds."""
    return cast("Live[T]", live) if isinstance(live.model, kinds) else None


def of_any(manifest: Manifest) -> bool:
    return True


class Ability(Generic[T]):
    """A route below a model, and the kinds of models that answer it.

    Args:
        where: whether a version has what it takes.
        lacks: what else the model does not do.
    """

    def __init__(
        self, route: str, *kinds: type[T], where: Callable[[Manifest], bool] = of_any, lacks: str = ""
    ) -> None:
        self.route = route
        self.kinds = kinds
        self._where = where
        self._lacks = lacks or f"does not {route}"

    def answered_by(self, live: Live[Any]) -> bool:
        return isinstance(live.model, self.kinds) and self._where(live.manifest)

    def of(self, live: Live[Any]) -> Live[T]:
        """The same version, whose model is known to answer.

        Raises:
            HTTPException: 409 where the model does something else.
        """
        if not self.answered_by(live):
            can = " or ".join(answers(live)) or "ask for its versions alone"
            detail = f"{live.manifest.model} {self._lacks}. What it does: {can}."
            raise refusal(409, "wrong-kind", detail)
        return live


#: in the order in which a model tells what it answers
ABILITIES: tuple[Ability[Any], ...] = (
    CLASSIFY := Ability("classify", Classifier),
    RECOGNISE := Ability("recognise", Recogniser),
    EXPLAIN := Ability("explain", Classifier),
    NEAREST := Ability[Classifier | Generator](
        "nearest", Classifier, Generator, where=keeps_records, lacks="keeps no records that it learned"
    ),
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
    return [ability.route for ability in ABILITIES if ability.answered_by(live)]
