"""How long a connection may stay, by a clock that the test sets."""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from consumers.sampler.connections import SILENT_S, Patient

STEP_S = SILENT_S / 8
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"


class ClockLoop(asyncio.SelectorEventLoop):
    """Its time passes as the test says."""

    passed_s = 0.0

    def time(self) -> float:
        return self.passed_s


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204})
    await send({"type": "http.response.body"})


async def outlasting(loop: ClockLoop, *, requests: int) -> int:
    """How many requests a connection answers, with STEP_S before each."""
    config = uvicorn.Config(answering, http=Patient, server_header=False, date_header=False)
    config.load()
    made = lambda: Patient(config=config, server_state=ServerState(), app_state={})  # noqa: E731
    async with await loop.create_server(made, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for answered in range(requests):
            loop.passed_s += STEP_S
            for _ in range(3):  # what is due has its turn before the request comes
                await asyncio.sleep(0)
            writer.write(REQUEST)
            if await reader.read(1000) != ANSWER:
                return answered
        writer.close()
    return requests


def test_a_connection_that_asks_stays_however_quick_the_answers_are() -> None:
    with asyncio.Runner(loop_factory=ClockLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, ClockLoop)
        assert runner.run(outlasting(loop, requests=40)) == 40
