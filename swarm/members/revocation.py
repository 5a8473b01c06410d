"""Who may no longer take part: one list per swarm, signed by its owner; the newest version wins."""

import msgspec

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage, Refused
from shoal.swarm.identifiers import PeerId, SwarmId
from shoal.swarm.identity import Identity, verify

DOMAIN = "revocations"
MAX_LIST_BYTES = 64 << 10  # about 1,200 peers


class RevocationList(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    swarm: SwarmId
    version: int  # counts up with every change
    peers: tuple[PeerId, ...]  # sorted; none of these may take part
    serials: tuple[str, ...]  # sorted; certificates that count no more
    signature: bytes = b""  # by the swarm's owner


_codec = Canonical(RevocationList, "a revocation list", MAX_LIST_BYTES)


def sign_list(
    owner: Identity, swarm: SwarmId, version: int, peers: frozenset[PeerId], serials: frozenset[str] = frozenset()
) -> bytes:
    """raises: ValueError when the list would be too large to travel"""
    unsigned = RevocationList(swarm, version, tuple(sorted(peers)), tuple(sorted(serials)))
    signature = owner.sign(DOMAIN, _codec.encode(unsigned))
    data = _codec.encode(msgspec.structs.replace(unsigned, signature=signature))
    if len(data) > MAX_LIST_BYTES:
        raise ValueError(f"{len(peers)} revoked peers do not fit into one list")
    return data


def read_list(data: bytes, swarm: SwarmId, owner: PeerId) -> RevocationList:
    """raises: MalformedMessage; Refused when it is of another swarm or not signed by the owner"""
    found = _codec.decode(data)
    if found.swarm != swarm or found.version < 1:
        raise Refused("a revocation list of another swarm")
    if not verify(owner, DOMAIN, _codec.encode(msgspec.structs.replace(found, signature=b"")), found.signature):
        raise Refused("a revocation list that the swarm's owner did not sign")
    return found


class Revocations:
    """The newest list known here. Anything forged or older changes nothing."""

    def __init__(self, swarm: SwarmId, owner: PeerId) -> None:
        self._swarm = swarm
        self._owner = owner
        self.encoded = b""  # the newest list as signed, b"" while none is known
        self.version = 0
        self._peers: frozenset[PeerId] = frozenset()
        self._serials: frozenset[str] = frozenset()

    def merge(self, data: bytes) -> bool:
        """Whether `data` was a genuine list newer than ours, and is now ours."""
        if data == self.encoded:
            return False
        try:
            found = read_list(data, self._swarm, self._owner)
        except (MalformedMessage, Refused):
            return False
        if found.version <= self.version:
            return False
        self.encoded, self.version = data, found.version
        self._peers, self._serials = frozenset(found.peers), frozenset(found.serials)
        return True

    def revokes(self, peer: PeerId, serial: str = "") -> bool:
        return peer in self._peers or serial in self._serials

    @property
    def peers(self) -> frozenset[PeerId]:
        return self._peers
