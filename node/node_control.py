"""What the key's owner may ask of a running node: the data behind `shoal status`, `peers`, `invite` and `down`."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import shoal
from shoal.swarm.errors import Refused, UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.invite import DEFAULT_TTL_S, read_invite
from shoal.swarm.members.invite_store import InviteStore
from shoal.swarm.records import NodeRecord
from shoal.swarm.units import describe

from .leaving import Leave

if TYPE_CHECKING:
    from .node import Node


class LiveControl:
    """`api.control.NodeControl` over a running node."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    def _known(self) -> list[NodeRecord]:
        """What the node's own loop found at its last look: status must answer at once."""
        return self._node.directory.book.live(time.time())  # noqa: TID251

    async def status(self) -> dict[str, Any]:
        node = self._node
        swarm = node.setup.swarm
        return {
            "schema": 1,
            "name": node.options.name,
            "peer": node.transport.me,
            "version": shoal.__version__,
            "uptime_s": time.time() - node.started_at,  # noqa: TID251
            "swarm": {
                "name": swarm.name,
                "id": swarm.id,
                "public": swarm.public,
                "owner": swarm.owner,
                "mine": swarm.owner == node.transport.me,
            },
            "network": {
                "addresses": list(node.full_addresses),
                "reachable": node.directory.reachable,
                "loopback": node.options.network.loopback,  # then reachable says nothing of other machines
                "peers": len([r for r in self._known() if r.peer != node.transport.me]),
            },
            "device": node.device,
            "hosted": [
                {
                    "model": hosted.model,
                    "name": hosted.manifest.name,
                    "layers": hosted.layers_text,
                    "of_layers": hosted.manifest.layers,
                    "dtype": hosted.dtype,
                    "step_ms": hosted.engine.step_ms,
                    "sessions": hosted.engine.sessions,
                    "queue": hosted.engine.queue_length,
                    "tokens": hosted.engine.tokens_done,
                    "free_tokens": hosted.engine.free_tokens,
                }
                for hosted in node.hosted
            ],
            "moving": node.hosting.told_move(),
            "moves": node.hosting.moves,
            "leaving": None if node.drained is None else asdict(node.drained),
            "sessions": [{"session": s.session[:8], "driver": s.driver, "held": s.held} for s in node.hops.sessions()],
            "peers": await self.peers(),
        }

    async def peers(self) -> list[dict[str, Any]]:
        rtt_ms = self._node.pinger.book.rtt_ms()
        standing = self._node.planner.standing
        return [
            {
                "peer": record.peer,
                "name": record.name,
                "me": record.peer == self._node.transport.me,
                "version": record.version,
                "rtt_ms": rtt_ms.get(record.peer),
                "standing": standing.shown(record.peer),
                "remark": standing.remark(record.peer),
                "hosted": [
                    {
                        "model": item.model,
                        "name": item.name,
                        "layers": describe(item.span, item.layers),
                        "start": item.span.start,
                        "stop": item.span.stop,
                        "of_layers": item.layers,
                        "dtype": item.dtype,
                        "step_ms": item.step_ms,
                        "sessions": item.queue,
                        "free_tokens": item.free_tokens,
                    }
                    for item in record.hosted
                ],
                "coming": [
                    {
                        "model": item.model,
                        "name": item.name,
                        "layers": describe(item.span, item.layers),
                        "dtype": item.dtype,
                        "settled": item.settled,
                    }
                    for item in record.coming
                ],
                "expires_in_s": record.expires_at - time.time(),  # noqa: TID251
            }
            for record in self._known()
        ]

    def _store(self) -> InviteStore:
        if self._node.invites is None:
            raise Refused("only the owner of the swarm can invite and revoke; ask the one who invited you")
        return self._node.invites

    async def invites(self) -> list[dict[str, Any]]:
        entries = self._store().invites(time.time())  # noqa: TID251
        return [
            {"id": e.id, "state": e.state, "created_at": e.created_at, "expires_at": e.expires_at, "used_by": e.used_by}
            for e in entries
        ]

    async def create_invite(self, ttl_s: float, name: str) -> dict[str, Any]:
        now = time.time()  # noqa: TID251
        line = self._store().create(self._node.full_addresses, now, ttl_s or DEFAULT_TTL_S)
        invite = read_invite(line, now)
        return {
            "id": invite.id if invite.secret else None,  # one of a public swarm stands in no list
            "invite": line,
            "expires_at": invite.expires_at,
            "name": name,
            "single_use": not self._node.setup.swarm.public,
        }

    async def revoke_invite(self, invite: str) -> bool:
        store = self._store()
        if not any(entry.id == invite for entry in store.invites(time.time())):  # noqa: TID251
            return False
        store.revoke_invite(invite, time.time())  # noqa: TID251
        return True

    async def revoke_peer(self, peer: PeerId) -> bool:
        store = self._store()
        if peer == self._node.transport.me:
            raise UsageError("this is the node itself, the owner of the swarm; `shoal down` stops it")
        if not self._node.setup.swarm.public and peer not in {member.peer for member in store.members()}:
            return False
        self._node.setup.revocations.merge(store.revoke_peer(peer, time.time()))  # noqa: TID251
        await self._node.loops.spread_revocations()
        return True

    async def shutdown(self, drain_s: float | None) -> None:
        self._node.ask_to_stop("shoal down", None if drain_s is None else Leave(drain_s, waits=True))
