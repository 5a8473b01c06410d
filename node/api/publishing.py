"""Models that the node gives to its swarm: the seam, and its routes under /shoal/v1."""

from collections.abc import Sequence
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


class Publisher(Protocol):
    async def publish(self, folder: str) -> Any:  # noqa: ANN401  JSON
        """What is given away now. raises: UsageError (not a model that can be served), OutOfMemory"""

    def published(self) -> Sequence[Any]: ...

    def withdraw(self, model: ModelId) -> bool:
        """Whether there was such a model. raises: OutOfMemory"""


class Folder(msgspec.Struct, forbid_unknown_fields=True):
    folder: str


_FOLDER = msgspec.json.Decoder(Folder)


def publishing_routes(publisher: Publisher) -> APIRouter:
    routes = APIRouter(prefix="/shoal/v1")

    @routes.get("/publications")
    async def published() -> Response:
        return json_answer({"publications": publisher.published()})

    @routes.post("/publications")
    async def publish(request: Request) -> Response:
        wanted = parsed(await read_body(request, _SMALL_BODY) or b"{}", _FOLDER)
        return json_answer(await publisher.publish(wanted.folder), 201)

    @routes.delete("/publications/{model}")
    async def withdraw(model: str) -> Response:
        if not publisher.withdraw(ModelId(model)):
            raise ApiError(f"no model {model!r} is published here", NOT_FOUND, "model")
        return json_answer({"withdrawn": model})

    return routes
