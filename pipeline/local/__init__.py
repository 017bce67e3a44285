"""A Kafka and a Redis of one's own on this machine: for `headrace local`, the demo and the tests."""

from pipeline.local.passwords import remembered
from pipeline.local.server import Server, free_port, is_free
from pipeline.local.servers import EmbeddedKafka, EmbeddedRedis, Local

__all__ = [
    "EmbeddedKafka",
    "EmbeddedRedis",
    "Local",
    "Server",
    "free_port",
    "is_free",
    "remembered",
]
