"""The library for people: publish pictures and texts, pull versions, ask the sampler, deal with dead letters.

from pathlib import Path

from pipeline.client import Client
from pipeline.config import load

with Client(load(Path("headrace.toml"), environ={})) as client:
    client.publish_image("digits", Path("seven.png"), label="7")
    newest = client.pull("digits")
    print(newest.manifest.version, newest.tensors())
    model = newest.module()  # an nn.Module
    print(client.classify("digits", Path("seven.png")).label)
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING

from pipeline.client.sampling import Picture, SamplingClient, encoded
from pipeline.errors import StoreError
from pipeline.log.dead_letters import DeadLetter, Resolution, late_headers, read_dead_letters, resolve, with_values
from pipeline.log.publisher import Publisher, Receipt
from pipeline.log.topics import ensure_topics, refuse_typo
from pipeline.records import Partition, Place, headers_of, name_of
from pipeline.store import Array, Blame, Commit, Manifest, Ref, Store, blame, commits, connect, places_of
from pipeline.store.codec import Encoded
from pipeline.texts import utf8

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import torch
    from redis import Redis

    from pipeline.config import Config

WAIT_MS = 1000  # how long one call waits for an event


@dataclass(frozen=True, slots=True, eq=False)
class Pulled:
    """One version: what it is, and its serving weights.

    Args:
        learner: what the configuration names for the model, if it knows it.
    """

    manifest: Manifest
    arrays: Mapping[str, Array]
    learner: str | None = None

    def safetensors(self) -> bytes:
        """The weights as one safetensors file."""
        return Encoded(self.arrays).serialized()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights by name, ready for `load_state_dict`."""
        # Importing torch takes seconds: only who asks for tensors pays.
        from safetensors.torch import load as tensors

        return tensors(self.safetensors())

    def module(self) -> torch.nn.Module:
        """The version as a model on the CPU, ready to be asked. What each can do, `models.capabilities` says.

        Code of a user's own is imported where the configuration names it for this model, and nowhere else.

        Raises:
            ConfigError: the learner is not built in, and not named by the configuration.
            Corrupt: the weights do not fit the model that the manifest describes.
        """
        # `pipeline` knows no model: the part of headrace that does is named in its distribution.
        [build] = metadata.distribution("headrace").entry_points.select(group="headrace.modules")
        model: torch.nn.Module = build.load()(self.manifest, self.arrays, self.learner)
        return model


class Client(SamplingClient):
    """Publishes to the log, reads the snapshot store, asks the sampler; connects to each when it is first used.

    Args:
        url: of the sampler; default: where the configuration has it, on this machine.

    Publishing does not wait: `flush`, `close` and the end of a `with` block do, and raise what went wrong.
    """

    def __init__(self, config: Config, url: str | None = None) -> None:
        super().__init__(url or config.sampler)
        self._config = config
        self._topics: set[str] = set()  # known to exist

    def close(self) -> None:
        """Waits until what was published is acknowledged, and disconnects.

        Raises:
            LogUnavailable: not in time.
            LogError: a record was refused.
        """
        # What was used is entered and left at once: one that fails to close does not keep the other open.
        with ExitStack() as stack:
            stack.callback(super().close)
            if "_redis" in vars(self):
                stack.callback(self._redis.close)
            if "_publisher" in vars(self):
                stack.enter_context(self._publisher)

    # --- publish ---

    def publish_image(
        self,
        topic: str,
        image: Picture,
        *,
        label: str | None = None,
        id: str | None = None,
        new_topic: bool = False,
    ) -> Receipt:
        """Publishes one picture: a file or its bytes as they are, an array or PIL image as PNG.

        Args:
            image: an array is uint8 (H, W), (H, W, 3) or (H, W, 4), or uint16 (H, W).
            label: of what is in it, for learners that need to know.
            id: the producer's own name of the record.
            new_topic: a topic that does not exist is made, also where no model of the configuration reads it.

        Raises:
            ConfigError: the file cannot be read.
            TopicMissing: there is no such topic, and no model reads it.
            RecordError: no such array, a PIL image that PNG cannot hold, or more than `kafka.max_bytes`; or a label or
                an id that can be none.
            LogUnavailable: Kafka cannot be reached, or does not make room in time.
        """
        content, content_type = encoded(image)
        return self._publish(topic, content, content_type, label, id, new_topic)

    def publish_text(
        self, topic: str, text: str, *, label: str | None = None, id: str | None = None, new_topic: bool = False
    ) -> Receipt:
        """Publishes one text; the rest is as for `publish_image`.

        Raises:
            RecordError: it holds half a character.
        """
        return self._publish(topic, utf8(text), "text/plain", label, id, new_topic)

    def publish_label(self, topic: str, id: str, label: str, *, new_topic: bool = False) -> Receipt:
        """Publishes the label of the record with this id, which came or comes without, to a topic of labels.

        Raises:
            TopicMissing, RecordError, LogUnavailable: as `publish_image`.
        """
        value, key = name_of("label", label).encode(), name_of("id", id).encode()
        return self._publish(topic, value, None, None, None, new_topic, key)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Waits until what was published is acknowledged.

        Raises:
            LogUnavailable: not in time.
            LogError: a record was refused.
        """
        self._publisher.flush(timeout_s)

    # --- pull ---

    def pull(self, model: str, ref: str = "latest", *, after: Sequence[str] = ()) -> Pulled:
        """A version by number, alias or the beginning of its digest; each tensor is checked against its own.

        Args:
            after: positions of records, "topic:partition:offset". Waits up to 30 s for a version in which they have
                their outcome.

        Raises:
            NotFound: there is no such version, or none in time.
            Corrupt: it is damaged, or of a newer format.
            ConfigError: it takes more than `sampler.max_model_bytes`.
            StoreUnavailable: Redis cannot be reached.
        """
        store = self._store(model)
        store.wait_for([Place.parsed(position) for position in after])
        manifest = store.manifest(store.resolve(ref))
        table = self._config.models.get(model)
        return Pulled(manifest, store.arrays(manifest, "serving"), table.learner if table else None)

    def follow(self, model: str) -> Iterator[Ref]:
        """The newest version, if there is one, and then every further one as it appears, without end.

        Raises:
            StoreUnavailable: Redis cannot be reached.
        """
        store = self._store(model)
        past = store.events("0")  # read before the head, so that no commit falls between the two
        after_id = past[-1].id if past else "0"
        head = store.head()
        if head is not None:
            yield head
        newest = head.version if head else 0
        while True:
            for event in store.events(after_id, WAIT_MS):
                after_id = event.id
                if (event.kind, event.model) != ("commit", model):
                    continue
                ref = Ref.model_validate({"version": event.version, "digest": event.digest})
                if ref.version > newest:
                    newest = ref.version
                    yield ref

    def versions(self, model: str) -> list[Ref]:
        """Every version that is kept, oldest first."""
        return self._store(model).versions()

    def show(self, model: str, ref: str = "latest") -> Manifest:
        """All about a version but its weights: parent, watermark, settings, metrics, environment."""
        store = self._store(model)
        return store.manifest(store.resolve(ref))

    def log(self, model: str, limit: int | None = None) -> list[Commit]:
        """The history, newest version first, of all versions there ever were: what each learned since its parent."""
        return commits(self._store(model), limit)

    def blame(self, model: str, topic: str, partition: int, offset: int) -> Blame:
        """What became of a record in this model: the first version that learned it, or why none did."""
        return blame(self._store(model), Partition(topic, partition), offset)

    def find(self, topic: str, id: str) -> list[tuple[int, int]]:
        """Partition and offset of every record with this id; reads the topic from its beginning to its end.

        Args:
            id: the producer's own, or what `publish` gave as the id of a record without one.

        Raises:
            LogUnavailable: Kafka cannot be reached.
        """
        return [(partition.number, offset) for partition, offset in places_of(self._config.kafka, topic, id)]

    def aliases(self, model: str) -> dict[str, Ref]:
        """What the aliases name; "latest" always is the newest version and not listed."""
        return self._store(model).aliases()

    # --- dead letters ---

    def dead_letters(
        self,
        topic: str,
        model: str | None = None,
        reason: str | None = None,
        *,
        since_ms: int = 0,
        resolved: bool = False,
    ) -> list[DeadLetter]:
        """The open dead letters of a topic, oldest first, without the originals' values; see `read_dead_letters`."""
        return read_dead_letters(
            self._config.kafka, topic, model=model, reason=reason, since_ms=since_ms, resolved=resolved
        )

    def fetch(self, letter: DeadLetter) -> DeadLetter:
        """A letter that was listed, with the original's value.

        Raises:
            OffsetsGone: the record that holds it was removed.
            LogUnavailable: Kafka cannot be reached.
        """
        [fetched] = with_values(self._config.kafka, [letter])
        return fetched

    def requeue(self, *letters: DeadLetter) -> list[DeadLetter]:
        """Publishes the originals again, each for its model alone, with a label that came later; see `resolve`.

        Returns:
            What was requeued: letters that were resolved since they were listed are left out.

        Raises:
            StoreError: the model's newest version does not account for an original yet: nothing is requeued.
            OffsetsGone: an original was removed from the log.
            ConfigError: the decoder of a model that gets labels later is not there.
            LogUnavailable: Kafka cannot be reached.
            LogError: another process requeues or drops letters of the topic at this moment.
        """
        for model in dict.fromkeys(letter.model for letter in letters):
            self._check_accounted(model, [letter for letter in letters if letter.model == model])
        return self._resolved("requeued", letters)

    def drop(self, *letters: DeadLetter) -> list[DeadLetter]:
        """Gives letters up: they are not listed any more. Returns and raises as `requeue`, but needs no version."""
        return self._resolved("dropped", letters)

    def _resolved(self, resolution: Resolution, letters: Iterable[DeadLetter]) -> list[DeadLetter]:
        by_topic: dict[str, list[DeadLetter]] = {}
        for letter in letters:
            by_topic.setdefault(letter.record.topic, []).append(letter)
        done: list[DeadLetter] = []
        for topic, those in by_topic.items():
            headers = late_headers(self._config, those) if resolution == "requeued" else {}
            done += resolve(self._config.kafka, topic, those, resolution, headers)
        return done

    def _check_accounted(self, model: str, letters: list[DeadLetter]) -> None:
        store = self._store(model)
        head = store.head()
        manifest = store.manifest(head) if head else None
        for letter in letters:
            if not (manifest and manifest.accounts_for(letter.record.place)):
                raise StoreError(
                    f"The newest version of {model} does not account for {letter.origin} yet: its worker will read it "
                    "again by itself, and would learn it twice. Let it run until its next version, then requeue."
                )

    # --- inside ---

    @cached_property
    def _publisher(self) -> Publisher:
        return Publisher(self._config.kafka)

    @cached_property
    def _redis(self) -> Redis:
        return connect(self._config.redis.url)

    def _store(self, model: str) -> Store:
        most = self._config.sampler.max_model_bytes
        return Store(self._redis, self._config.family(model), model, max_bytes=most)

    def _publish(
        self,
        topic: str,
        value: bytes,
        content_type: str | None,
        label: str | None,
        id: str | None,
        new_topic: bool,
        key: bytes | None = None,
    ) -> Receipt:
        names = {kind: name_of(kind, name) for kind, name in (("label", label), ("id", id)) if name is not None}
        if topic not in self._topics:
            if not new_topic:
                refuse_typo(self._config, topic, of_labels=key is not None)
            ensure_topics(self._config.kafka, [topic])
            self._topics.add(topic)
        headers = headers_of(content_type, names.get("label"), names.get("id"))
        return self._publisher.publish(topic, value, key=key, headers=headers)
