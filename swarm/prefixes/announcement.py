"""What a peer says in the DHT about a prefix that it can give: signed by its own key, under the first chunk's address.

One announcement names all chunks that a peer has of prefixes that begin alike, each by 8 bytes of its address, so a
peer that looks for a prefix finds out with one look-up who has how much of it. Nothing in it tells a stranger a prompt;
whoever knows a prompt can find out that somebody has shared it.
"""

import math
from collections import defaultdict

import msgspec

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage, Refused
from shoal.swarm.identifiers import PeerId, SwarmId
from shoal.swarm.identity import Identity, verify
from shoal.swarm.members.membership import check_certificate
from shoal.swarm.peer_id import is_peer_id
from shoal.swarm.records import CLOCK_SLACK_S, RecordReader

from .prefix_chain import LINK_BYTES, Address

DOMAIN = "prefix"
ANNOUNCEMENT_TTL_S = 600.0
MAX_ANNOUNCEMENT_BYTES = 4096
NAME_BYTES = 8  # of an address
MAX_CHUNKS = 256  # of one announcement: 16,384 tokens, or several shorter prefixes
MOST_OF_ONE_PEER = 64  # announcements; a peer that wants more is refused


class Announcement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    peer: PeerId
    swarm: SwarmId
    root: bytes  # address of the first chunk
    chunks: bytes  # NAME_BYTES of each chunk's address, the first one's included
    expires_at: float  # unix seconds
    certificate: bytes
    signature: bytes = b""

    def names(self, address: Address) -> bool:
        name = address[:NAME_BYTES]
        return any(self.chunks[at : at + NAME_BYTES] == name for at in range(0, len(self.chunks), NAME_BYTES))


announcements = Canonical(Announcement, "an announcement of a prefix", MAX_ANNOUNCEMENT_BYTES)


def sign_announcement(
    identity: Identity, swarm: SwarmId, certificate: bytes, chunks: list[Address], expires_at: float
) -> bytes:
    """chunks: the first of the prefix first; MAX_CHUNKS of them are named"""
    names = b"".join(address[:NAME_BYTES] for address in chunks[:MAX_CHUNKS])
    unsigned = Announcement(identity.peer_id, swarm, chunks[0], names, expires_at, certificate)
    signature = identity.sign(DOMAIN, announcements.encode(unsigned))
    return announcements.encode(msgspec.structs.replace(unsigned, signature=signature))


def read_announcement(data: bytes, reader: RecordReader, now: float) -> Announcement:
    """raises: MalformedMessage (form, limits, signature, swarm, lifetime); Refused (not a member)"""
    found = announcements.decode(data)
    if not is_peer_id(found.peer) or found.swarm != reader.swarm.id:
        raise MalformedMessage("an announcement of another swarm, or of nobody")
    if len(found.root) != LINK_BYTES or not 0 < len(found.chunks) <= MAX_CHUNKS * NAME_BYTES:
        raise MalformedMessage("an announcement of no prefix, or of too many chunks")
    if len(found.chunks) % NAME_BYTES:
        raise MalformedMessage("an announcement with a part of a name")
    if not (math.isfinite(found.expires_at) and found.expires_at <= now + ANNOUNCEMENT_TTL_S + CLOCK_SLACK_S):
        raise MalformedMessage("an announcement that expires too far in the future")
    unsigned = announcements.encode(msgspec.structs.replace(found, signature=b""))
    if not verify(found.peer, DOMAIN, unsigned, found.signature):
        raise MalformedMessage("an announcement that its peer did not sign")
    reason = check_certificate(found.certificate, reader.swarm, found.peer, now, reader.revocations)
    if reason:
        raise Refused(reason)
    return found


class AnnouncementQuota:
    """How many prefixes of one peer a storing node keeps at a time."""

    def __init__(self, most: int = MOST_OF_ONE_PEER) -> None:
        self._most = most
        self._live: defaultdict[PeerId, dict[bytes, float]] = defaultdict(dict)

    def admit(self, peer: PeerId, root: bytes, expires_at: float, now: float) -> None:
        """raises: Refused beyond the quota"""
        live = self._live[peer]
        if root not in live and len(live) >= self._most:
            for old in [old for old, until in live.items() if until <= now]:
                del live[old]
            if len(live) >= self._most:
                raise Refused(f"{peer} has announced {self._most} prefixes, and no more are kept of one peer")
        live[root] = expires_at
