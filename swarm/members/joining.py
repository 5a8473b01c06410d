"""Joining and renewing: the exchange between a node and the owner of a private swarm."""

from collections.abc import Callable, Sequence

from shoal.swarm.errors import PeerUnreachable, SwarmUnreachable
from shoal.swarm.identifiers import PeerId
from shoal.swarm.transport import CallHandler, Transport

from . import invite as invites
from .invite import Invite, JoinAnswer
from .membership import Swarm

METHOD = "/shoal/join/1"  # the one method that a stranger may call


def split_address(address: str) -> tuple[str, PeerId]:
    """`/ip4/1.2.3.4/tcp/5/p2p/12D3...` -> (`/ip4/1.2.3.4/tcp/5`, the PeerID)."""
    dial, _, peer = address.rpartition("/p2p/")
    return dial, PeerId(peer)


async def connect_any(transport: Transport, bootstrap: Sequence[str], timeout_s: float = 10.0) -> list[PeerId]:
    """Connect to the bootstrap peers. returns: those that answered. raises: SwarmUnreachable when none did"""
    by_peer: dict[PeerId, list[str]] = {}
    for address in bootstrap:
        dial, peer = split_address(address)
        by_peer.setdefault(peer, []).append(dial)
    reached, reasons = [], []
    for peer, addresses in by_peer.items():
        try:
            await transport.connect(peer, addresses, timeout_s)
            reached.append(peer)
        except PeerUnreachable as error:
            reasons.append(str(error))
    if not reached:
        raise SwarmUnreachable(f"no peer of the swarm answers at {', '.join(bootstrap) or 'no known address'}")
    return reached


async def redeem(transport: Transport, invite: Invite, name: str, now: float) -> JoinAnswer:
    """raises: SwarmUnreachable when the owner does not answer; Refused: expired, used, forged, revoked"""
    await connect_any(transport, invite.bootstrap)
    request = invites.join_request(invite, transport.me, name)
    try:
        answer = await transport.call(invite.swarm.owner, METHOD, request, timeout_s=10.0)
    except PeerUnreachable as error:
        raise SwarmUnreachable(
            f"the owner of {invite.swarm.name} is not reachable; invites are redeemed at the owner's node, try later"
        ) from error
    return invites.read_answer(answer, invite.swarm, transport.me, now)


async def renew(transport: Transport, swarm: Swarm, certificate: bytes, now: float) -> JoinAnswer:
    """A fresh certificate for a member whose own runs out. raises: as `redeem`"""
    request = invites.requests.encode(invites.RenewRequest(certificate))
    answer = await transport.call(swarm.owner, METHOD, request, timeout_s=10.0)
    return invites.read_answer(answer, swarm, transport.me, now)


async def serve_joining(transport: Transport, handle: Callable[[PeerId, bytes], bytes]) -> None:
    """handle: `invite_store.InviteStore`'s answer to a request; may raise ShoalError"""

    async def answer(peer: PeerId, body: bytes) -> bytes:
        return handle(peer, body)

    handler: CallHandler = answer
    await transport.answer(METHOD, handler)
