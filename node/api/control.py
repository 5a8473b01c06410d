"""The seam between the HTTP API and the node that it controls, and its routes under /shoal/v1."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from shoal.swarm.client.error_codes import NOT_FOUND
from shoal.swarm.identifiers import PeerId

from .errors import ApiError
from .json_answer import json_answer
from .request_body import parsed, read_body

Facts = Mapping[str, Any] | msgspec.Struct
MAX_INVITE_TTL_S = 90 * 86400.0
MAX_DRAIN_S = 86400.0
_SMALL_BODY = 4096


class NodeControl(Protocol):
    """What the owner of the key may ask of the node; errors of `shoal.swarm.errors` become HTTP errors."""

    async def status(self) -> Facts: ...

    async def peers(self) -> Sequence[Facts]: ...

    async def invites(self) -> Sequence[Facts]: ...

    async def create_invite(self, ttl_s: float, name: str) -> Facts:
        """The new invite with its line to copy. raises: Refused when this node may not invite"""

    async def revoke_invite(self, invite: str) -> bool:
        """Whether there was such an invite. raises: Refused"""

    async def revoke_peer(self, peer: PeerId) -> bool:
        """Whether such a peer was a member. raises: Refused when this node does not own the swarm"""

    async def shutdown(self, drain_s: float | None) -> None:
        """Begin to stop and return at once; the answer still goes out.

        drain_s: wait for the sessions that run here to be moved or to end, for so long at most; None: as a signal does
        """


class NewInvite(msgspec.Struct):
    ttl_s: Annotated[float, msgspec.Meta(gt=0, le=MAX_INVITE_TTL_S)] = 86400.0
    name: Annotated[str, msgspec.Meta(max_length=64)] = ""


class Shutdown(msgspec.Struct):
    drain_s: Annotated[float, msgspec.Meta(ge=0, le=MAX_DRAIN_S)] | None = None


_SHUTDOWN = msgspec.json.Decoder(Shutdown)
_NEW_INVITE = msgspec.json.Decoder(NewInvite)


def control_routes(node: NodeControl) -> APIRouter:
    routes = APIRouter(prefix="/shoal/v1")

    @routes.get("/status")
    async def status() -> Response:
        return json_answer(await node.status())

    @routes.get("/peers")
    async def peers() -> Response:
        return json_answer({"peers": await node.peers()})

    @routes.post("/peers/{peer}/revoke")
    async def revoke_peer(peer: str) -> Response:
        if not await node.revoke_peer(PeerId(peer)):
            raise ApiError(f"no peer {peer!r} is a member of this swarm", NOT_FOUND, "peer")
        return json_answer({"revoked": peer})

    @routes.get("/invites")
    async def invites() -> Response:
        return json_answer({"invites": await node.invites()})

    @routes.post("/invites")
    async def create_invite(request: Request) -> Response:
        wanted = parsed(await read_body(request, _SMALL_BODY) or b"{}", _NEW_INVITE)
        return json_answer(await node.create_invite(wanted.ttl_s, wanted.name), 201)

    @routes.delete("/invites/{invite}")
    async def revoke_invite(invite: str) -> Response:
        if not await node.revoke_invite(invite):
            raise ApiError(f"no invite {invite!r}", NOT_FOUND, "invite")
        return json_answer({"revoked": invite})

    @routes.post("/shutdown")
    async def shutdown(request: Request) -> Response:
        wanted = parsed(await read_body(request, _SMALL_BODY) or b"{}", _SHUTDOWN)
        await node.shutdown(wanted.drain_s)
        return json_answer({"status": "stopping"}, 202)

    return routes
