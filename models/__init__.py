"""headrace's learning, without I/O: the learner protocol, replay memory, and one file per family of models."""
