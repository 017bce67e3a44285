"""The client: publish, pull, follow, and ask the sampler.

A user needs `Client` alone.
"""

from pipeline.client.answers import (
    Classified,
    Code,
    Completed,
    Drawn,
    Explained,
    Interpolated,
    Nearest,
    Neighbour,
    Pictures,
    Published,
    PublishedRecord,
    Recognised,
    Strip,
    VersionInfo,
    WeighedPart,
    Written,
)
from pipeline.client.client import Client
from pipeline.client.sampling import SamplingClient
from pipeline.client.sent import Essence, Mark, essence, mark, sent_since

__all__ = [
    "Classified",
    "Client",
    "Code",
    "Completed",
    "Drawn",
    "Essence",
    "Explained",
    "Interpolated",
    "Mark",
    "Nearest",
    "Neighbour",
    "Pictures",
    "Published",
    "PublishedRecord",
    "Recognised",
    "SamplingClient",
    "Strip",
    "VersionInfo",
    "WeighedPart",
    "Written",
    "essence",
    "mark",
    "sent_since",
]
