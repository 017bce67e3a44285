"""The worker: learns what comes and commits versions, one process a model."""
