"""The sampler: serves the newest version of every model over HTTP, and the page.

It imports nothing of the worker, nor the worker of it.
"""
