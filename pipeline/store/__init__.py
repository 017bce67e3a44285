"""The snapshot store in Redis: versions, their tensors, and how each came to be.

A store reads; the one writer of a model commits. The format is described in docs/formats.md.
"""

from pipeline.store.changes import MADE_AGAIN, Change
from pipeline.store.codec import Array, header
from pipeline.store.history import Blame, Commit, blame, commits, places_of
from pipeline.store.lineage import Lineage, LineageBuilder, Runs
from pipeline.store.manifest import About, Group, HistoryEntry, Learned, Manifest, Ref, watermark_of
from pipeline.store.redis import Fence, Holding, connect, from_url, models
from pipeline.store.rowlog import Delta
from pipeline.store.store import AFTER_S, Store
from pipeline.store.writer import Committed, Draft

__all__ = [
    "AFTER_S",
    "MADE_AGAIN",
    "About",
    "Array",
    "Blame",
    "Change",
    "Commit",
    "Committed",
    "Delta",
    "Draft",
    "Fence",
    "Group",
    "HistoryEntry",
    "Holding",
    "Learned",
    "Lineage",
    "LineageBuilder",
    "Manifest",
    "Ref",
    "Runs",
    "Store",
    "blame",
    "commits",
    "connect",
    "from_url",
    "header",
    "models",
    "places_of",
    "watermark_of",
]
