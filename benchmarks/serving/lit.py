"""The same by LitServe, with batches: `lit.py CONFIG PORT`. Its requests are JSON, a picture in them base64."""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve
import torch
from torch import Tensor

from benchmarks.serving.peers import answer, newest, pixels

BATCH = 64  # the most pictures in one forward pass, as in the sampler


class Classify(litserve.LitAPI):  # type: ignore[misc]
    """As its documentation has it."""

    def setup(self, device: str) -> None:
        self.model = newest(sys.argv[1])

    def decode_request(self, request: dict[str, str]) -> Tensor:
        return pixels(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Tensor]) -> Tensor:
        return torch.stack(inputs)

    @torch.inference_mode()
    def predict(self, x: Tensor) -> Tensor:
        return self.model.classify(x)

    def unbatch(self, output: Tensor) -> list[Tensor]:
        return list(output)

    def encode_response(self, output: Tensor) -> dict[str, Any]:
        return answer(self.model, output)


if __name__ == "__main__":
    api = Classify(max_batch_size=BATCH, batch_timeout=0.0, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
