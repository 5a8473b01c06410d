"""KV that outlives its session: the seam, and its routes under /shoal/v1."""

from typing import Any, Literal, Protocol

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from shoal.compression.kv_levels import KvLevel

from .json_answer import json_answer
from .request_body import parsed, read_body

_LARGEST_BODY = 4 << 20


class KvHost(Protocol):
    async def stat(self) -> Any:  # noqa: ANN401  JSON
        """The tiers, what is in them, and what was done with it since the start."""

    async def fetch(self, prompt: str | tuple[int, ...], level: KvLevel) -> Any:  # noqa: ANN401  JSON
        """Take what others have of this prompt's prefix. raises: UsageError, Refused"""

    async def drop(self, which: Literal["all", "private", "taken"]) -> int:
        """returns: chunks that are gone"""


class PrefixToFetch(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str | tuple[int, ...]
    level: KvLevel = "lossless"


class WhatToDrop(msgspec.Struct, forbid_unknown_fields=True):
    which: Literal["all", "private", "taken"] = "all"


_FETCH = msgspec.json.Decoder(PrefixToFetch)
_DROP = msgspec.json.Decoder(WhatToDrop)


def kv_routes(host: KvHost) -> APIRouter:
    routes = APIRouter(prefix="/shoal/v1/kv")

    @routes.get("")
    async def stat() -> Response:
        return json_answer(await host.stat())

    @routes.post("/fetch")
    async def fetch(request: Request) -> Response:
        wanted = parsed(await read_body(request, _LARGEST_BODY) or b"{}", _FETCH)
        return json_answer(await host.fetch(wanted.prompt, wanted.level))

    @routes.post("/drop")
    async def drop(request: Request) -> Response:
        wanted = parsed(await read_body(request, _LARGEST_BODY) or b"{}", _DROP)
        return json_answer({"dropped": await host.drop(wanted.which)})

    return routes
