"""Connections of kafka-python: settings, errors, and an end where Kafka refuses whoever connects.

kafka-python 3.0 tries a wrong password, or a certificate that it does not trust, again and again until its time is
up, and then says no more than that.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import (
    AuthorizationError,
    IllegalSaslStateError,
    KafkaConfigurationError,
    KafkaError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport

from pipeline.config import KafkaConfig
from pipeline.errors import ConfigError, LogError, LogUnavailable, TopicMissing
from pipeline.log.batches import PartitionRecords
from pipeline.words import near, said

CONNECT_MS = 10_000
BATCH_OVERHEAD = 1 << 20  # bytes that key, headers and framing may take beside a value of `max_bytes`
RECONNECT_MS = 1_000  # kafka-python's own 30 s would keep a worker idle long after a broker is back

# What delivery, order and watermarks rest on.
OURS = {
    "acks",
    "auto_offset_reset",
    "bootstrap_servers",
    "enable_auto_commit",
    "enable_idempotence",
    "group_id",
    "isolation_level",
    "kafka_client",
    "key_deserializer",
    "key_serializer",
    "transactional_id",
    "value_deserializer",
    "value_serializer",
}
DEFAULTS = {
    "bootstrap_timeout_ms": CONNECT_MS,
    "reconnect_backoff_max_ms": RECONNECT_MS,
    "allow_auto_create_topics": False,
    "enable_auto_commit": False,
    "group_id": None,
    "isolation_level": "read_committed",
    "metrics_enabled": False,
}
REFUSALS = (SaslAuthenticationFailedError, UnsupportedSaslMechanismError, IllegalSaslStateError)


class Untrusted(KafkaError):  # type: ignore[misc]  # kafka-python has no types
    """The broker's certificate does not hold."""


def connect(client: Any, config: KafkaConfig, **ours: Any) -> Any:
    """Connects a `client`, a class of kafka-python (which has no types), with the settings of `config.client`.

    A consumer gives our records (see `pipeline.log.batches`).

    Raises:
        ConfigError: a key of `config.client` is not known or not free, or its value does not fit.
        LogUnavailable: no broker answers.
        LogError: the broker refuses.
    """
    theirs = set().union(*(kind.DEFAULT_CONFIG for kind in (KafkaAdminClient, KafkaConsumer, KafkaProducer)))
    for key in config.client:
        if key in OURS:
            raise ConfigError(f"kafka.client.{key} is set by headrace and cannot be changed. Remove it.")
        if key not in theirs:
            raise ConfigError(
                f"kafka.client.{key} is not a setting of kafka-python.{near(key, theirs)} Correct or remove it."
            )
    settings = {**DEFAULTS, **ours, **config.client}
    with ExitStack() as on_failure:

        def closing(**of_client: Any) -> Any:
            """The client's thread and sockets; a constructor that raises leaves them open."""
            made = _network(**of_client)
            on_failure.callback(made.close)
            return made

        try:
            connected = client(
                bootstrap_servers=config.bootstrap_servers.split(","),
                kafka_client=closing,
                **{key: value for key, value in settings.items() if key in client.DEFAULT_CONFIG},
            )
        except (KafkaConfigurationError, ValueError, TypeError, RuntimeError) as error:  # all for bad values
            raise ConfigError(
                f"kafka.client does not fit ({said(error)}). Correct the setting that it names."
            ) from error
        except KafkaError as error:
            raise translated(error, config, "connect") from error
        on_failure.pop_all()
        if client is KafkaConsumer:
            connected._fetcher.PartitionRecords = partial(
                PartitionRecords, most_bytes=config.max_bytes + BATCH_OVERHEAD
            )
        return connected


@contextmanager
def connected(client: Any, config: KafkaConfig, doing: str, **ours: Any) -> Iterator[Any]:
    """The same, until the end of the context.

    Raises:
        LogUnavailable, LogError: as `translated`, for what fails meanwhile.
    """
    made = connect(client, config, **ours)
    try:
        yield made
    except KafkaError as error:
        raise translated(error, config, doing) from error
    finally:
        made.close()


def translated(error: KafkaError, config: KafkaConfig, doing: str) -> LogError:
    """Our error for kafka-python's: LogUnavailable where trying again may help."""
    what = f"Kafka at {config.bootstrap_servers} could not {doing} ({said(error)})."
    if error.retriable:
        return LogUnavailable(
            f"{what} See that it runs and that kafka.bootstrap_servers is right; "
            "`headrace up` starts one on this machine."
        )
    if isinstance(error, (*REFUSALS, Untrusted, AuthorizationError)):
        return LogError(f"{what} See that kafka.client has the right credentials and certificates, and their rights.")
    return LogError(f"{what} The broker's log says why.")


def missing_topics(config: KafkaConfig, topics: Iterable[str]) -> TopicMissing:
    names = list(topics)
    commands = "\n".join(
        f"  kafka-topics.sh --bootstrap-server {config.bootstrap_servers} --create --topic {name} "
        f"--partitions {config.partitions} --replication-factor {config.replication_factor}"
        for name in names
    )
    return TopicMissing(
        f"{', '.join(names)} cannot be read: no such topic at {config.bootstrap_servers}. "
        f"Set kafka.create_topics = true, or run:\n{commands}"
    )


def _network(**of_client: Any) -> Any:
    """Makes a client's thread and sockets of what the client passes to its `kafka_client`.

    Raises:
        ValueError: a file that its ssl settings name cannot be read.
    """
    if of_client["security_protocol"] in ("SSL", "SASL_SSL"):
        try:  # kafka-python reads them for each connection, where what is wrong would only be one that fails
            KafkaSSLTransport._build_ssl_context(KafkaSSLTransport.DEFAULT_CONFIG | of_client)
        except OSError as error:
            raise ValueError(f"a file of its ssl settings: {error}") from error
    net = NetworkSelector(**of_client)
    return KafkaNetClient(net=net, manager=_Connections(net, **of_client), **of_client)


class _Connections(KafkaConnectionManager):  # type: ignore[misc]  # kafka-python has no types
    """Ends the first connection with the reason for which a broker refused it.

    Later it goes on trying, as for a broker that is away: credentials may be changed on both sides while all runs.
    """

    _refusal: Exception | None = None

    def get_connection(self, node_id: Any, *args: Any, **settings: Any) -> Any:
        if self.bootstrapped:
            return super().get_connection(node_id, *args, **settings)
        if self._refusal is not None:
            raise self._refusal
        connection = super().get_connection(node_id, *args, **settings)
        connection.init_future.add_errback(self._failed)
        return connection

    async def _build_transport(self, *args: Any, **settings: Any) -> Any:
        """Delivers what comes together with the end of the connection, a refusal above all: kafka-python drops it."""
        transport = await super()._build_transport(*args, **settings)
        receive = transport._sock_recv

        def received() -> tuple[bytes, KafkaError | None]:
            data, error = receive()
            return data, None if data else error  # the end is met again by the next call

        transport._sock_recv = received
        return transport

    def _failed(self, error: Exception) -> None:
        cause = error.__context__
        if isinstance(cause, ssl.SSLCertVerificationError):
            self._refusal = Untrusted(f"the certificate that it shows does not hold: {cause.verify_message}")
        elif isinstance(error, REFUSALS):
            self._refusal = error
