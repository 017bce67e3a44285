"""headrace's infrastructure, without learning: the log, the records, the snapshot store, the metrics."""

from headrace_start import shadowed

if problem := shadowed():
    raise ImportError(problem)

__version__ = "0.2.0"
