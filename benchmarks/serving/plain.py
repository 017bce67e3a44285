"""What people write first: FastAPI and a model, a picture a forward pass. `plain.py CONFIG PORT http loop`."""

from __future__ import annotations

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request

from benchmarks.serving.peers import answer, newest, pixels

if __name__ == "__main__":
    config, port, *server = sys.argv[1:]
    model = newest(config)
    app = FastAPI()

    @app.post("/classify")
    async def classify(request: Request) -> dict[str, Any]:
        """The body is the picture. On the event loop, which answers more than FastAPI's threads."""
        with torch.inference_mode():
            return answer(model, model.classify(pixels(await request.body())[None])[0])

    http, loop = server
    uvicorn.run(app, port=int(port), http=http, loop=loop, log_level="warning")
