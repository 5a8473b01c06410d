"""A training inside the running node: the seam, and its routes under /shoal/v1."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from .json_answer import json_answer
from .request_body import parsed, read_body

_SMALL_BODY = 16384


class TrainingHost(Protocol):
    async def start(self, config: str, resume: bool) -> AsyncIterator[dict[str, Any]]:
        """Train by a config file of this machine; the events. Who no longer reads them ends it. raises: UsageError"""

    def pause(self, paused: bool) -> None:
        """raises: SwarmUnreachable when none runs"""


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    config: str  # absolute path
    resume: bool = False


_WANTED = msgspec.json.Decoder(Wanted)


def training_routes(host: TrainingHost) -> APIRouter:
    routes = APIRouter(prefix="/shoal/v1")

    @routes.post("/training")
    async def train(request: Request) -> Response:
        wanted = parsed(await read_body(request, _SMALL_BODY) or b"{}", _WANTED)
        return StreamingResponse(
            _lines(await host.start(wanted.config, wanted.resume)), media_type="application/x-ndjson"
        )

    @routes.post("/training/pause")
    async def pause() -> Response:
        host.pause(True)
        return json_answer({"paused": True})

    @routes.post("/training/continue")
    async def go_on() -> Response:
        host.pause(False)
        return json_answer({"paused": False})

    return routes


async def _lines(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    async for event in events:
        yield msgspec.json.encode(event) + b"\n"
