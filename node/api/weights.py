"""Weights that the node holds and gives to its swarm: the seam, and its routes under /shoal/v1."""

from typing import Any, Protocol

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from shoal.swarm.client.error_codes import NOT_FOUND
from shoal.swarm.identifiers import ModelId

from .errors import ApiError
from .json_answer import json_answer
from .request_body import parsed, read_body

_SMALL_BODY = 16384


class WeightsHost(Protocol):
    def state(self) -> dict[str, Any]:
        """What is held and given, and what is being fetched."""

    async def fetch(self, model: str, layers: str) -> dict[str, Any]:
        """Bring the weights of some layers here. raises: UsageError, Unavailable, RemoteFault, OutOfMemory"""

    async def remove(self, model: ModelId) -> bool:
        """Whether there was something. raises: UsageError when it is in use"""


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    layers: str = "all"


_WANTED = msgspec.json.Decoder(Wanted)


def weights_routes(weights: WeightsHost) -> APIRouter:
    routes = APIRouter(prefix="/shoal/v1")

    @routes.get("/weights")
    async def state() -> Response:
        return json_answer(weights.state())

    @routes.post("/weights")
    async def fetch(request: Request) -> Response:
        wanted = parsed(await read_body(request, _SMALL_BODY) or b"{}", _WANTED)
        return json_answer(await weights.fetch(wanted.model, wanted.layers), 201)

    @routes.delete("/weights/{model}")
    async def remove(model: str) -> Response:
        if not await weights.remove(ModelId(model)):
            raise ApiError(f"no weights of {model!r} that came from peers are here", NOT_FOUND, "model")
        return json_answer({"removed": model})

    return routes
