"""Single pictures over HTTP: the sampler beside a plain FastAPI handler and beside LitServe, with the same model."""
