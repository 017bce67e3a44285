"""A broker with settings of its own, for what the shared one is not set up for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.local.server import HOST
from pipeline.local.servers import EmbeddedKafka


class ConfiguredKafka(EmbeddedKafka):
    """The embedded Kafka with further lines in its server.properties, where the last one of a name counts."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        super().__init__(folder)
        self.settings = dict(settings)

    def _command(self) -> Sequence[str]:
        command = super()._command()
        with (self.folder / "server.properties").open("a", encoding="utf-8") as file:
            file.writelines(f"{key}={value}\n" for key, value in self.settings.items())
        return command


class SecuredKafka(ConfiguredKafka):
    """One that also listens where TLS and a password are asked for; `keystore` is a PKCS #12 file."""

    def __init__(self, folder: Path, keystore: Path, store_password: str, user: str, password: str) -> None:
        login = "org.apache.kafka.common.security.plain.PlainLoginModule"
        super().__init__(
            folder,
            {
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL",
                "sasl.enabled.mechanisms": "PLAIN",
                "listener.name.sasl_ssl.plain.sasl.jaas.config": f'{login} required user_{user}="{password}";',
                "ssl.keystore.type": "PKCS12",
                "ssl.keystore.location": str(keystore),
                "ssl.keystore.password": store_password,
            },
        )

    def _command(self) -> Sequence[str]:
        port = self._claim("secured-port", None)
        public = f"PLAINTEXT://{self.bootstrap_servers},SASL_SSL://{HOST}:{port}"
        controller = f"CONTROLLER://{HOST}:{self._claim('controller-port', None)}"
        self.settings |= {"listeners": f"{public},{controller}", "advertised.listeners": public}
        self.secured = f"{HOST}:{port}"  # HOST:PORT of the listener
        return super()._command()
