"""Infrastructure without learning: the log, the records, the snapshot store, the metrics."""
