"""headrace's processes, where log, store and learners meet: trainer, sampler, command line."""
