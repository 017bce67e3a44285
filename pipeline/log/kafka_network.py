"""The connections of a kafka-python client, which give up where Kafka refuses whoever connects.

kafka-python 3.0 tries a wrong password, or a certificate that it does not trust, again and again until its time is
up, and then says no more than that.
"""

from __future__ import annotations

import ssl
from typing import Any

from kafka.errors import (
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport

REFUSALS = (SaslAuthenticationFailedError, UnsupportedSaslMechanismError, IllegalSaslStateError)


class Untrusted(KafkaError):  # type: ignore[misc]  # kafka-python has no types
    """The broker's certificate does not hold."""


def network(**of_client: Any) -> Any:
    """A client's thread and sockets; takes what the client passes to its `kafka_client`.

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
    """Ends the first connecting with the reason for which a broker, any of them, was not to be had.

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
