"""headrace's infrastructure, without learning: the log, the records, the snapshot store, the metrics."""

__version__ = "0.2.0"
