"""What a swarm is, who belongs to it, and the check that every handshake makes.

A swarm is a name, an owner key and a salt; its id is the hash of these. A private swarm's members carry a
certificate that the owner signed. The peer's identity itself is authenticated by the transport, so a copied
certificate is worth nothing.
"""

import hashlib
import math
from functools import lru_cache

import msgspec

from shoal.swarm import peer_id
from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage, Refused
from shoal.swarm.identifiers import PeerId, SwarmId
from shoal.swarm.identity import Identity, verify

from .revocation import Revocations

DOMAIN = "certificate"
SALT_BYTES = 16
MAX_NAME_LENGTH = 64
MAX_CERTIFICATE_BYTES = 512
CERTIFICATE_TTL_S = 365 * 86400.0
CLOCK_SLACK_S = 300.0  # a certificate may be this much younger than we think the time is
_MAX_CACHED_PEERS = 16384


class Swarm(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    name: str
    owner: PeerId
    salt: bytes  # keeps a private swarm's id secret; may be empty in a public one
    public: bool  # anybody may join; no certificates

    @property
    def id(self) -> SwarmId:
        return SwarmId(hashlib.sha256(b"shoal swarm 1\0" + _swarm_encoder.encode(self)).hexdigest())


_swarm_encoder = msgspec.msgpack.Encoder()


def found_swarm(name: str, owner: PeerId, salt: bytes, *, public: bool = False) -> Swarm:
    """raises: ValueError with one line for the user"""
    swarm = Swarm(name, owner, salt, public)
    problem = swarm_problem(swarm)
    if problem:
        raise ValueError(problem)
    return swarm


def swarm_problem(swarm: Swarm) -> str:
    """What is wrong with a swarm's description, or an empty string."""
    if not 0 < len(swarm.name) <= MAX_NAME_LENGTH or not swarm.name.isprintable():
        return f"a swarm's name has 1 to {MAX_NAME_LENGTH} printable characters"
    if len(swarm.salt) != SALT_BYTES and not (swarm.public and not swarm.salt):
        return f"a private swarm's salt has {SALT_BYTES} bytes"
    if not peer_id.is_peer_id(swarm.owner):
        return "a swarm's owner is an ed25519 PeerID"
    return ""


class Certificate(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    swarm: SwarmId
    peer: PeerId
    serial: str  # 16 hex characters
    issued_at: float  # unix seconds
    expires_at: float  # unix seconds
    signature: bytes = b""  # by the swarm's owner


_codec = Canonical(Certificate, "a membership certificate", MAX_CERTIFICATE_BYTES)


def issue(
    owner: Identity, swarm: Swarm, peer: PeerId, serial: str, now: float, ttl_s: float = CERTIFICATE_TTL_S
) -> bytes:
    unsigned = Certificate(swarm.id, peer, serial, now, now + ttl_s)
    return _codec.encode(msgspec.structs.replace(unsigned, signature=owner.sign(DOMAIN, _codec.encode(unsigned))))


def read_certificate(data: bytes) -> Certificate:
    """raises: MalformedMessage; checks the form only"""
    return _codec.decode(data)


def check_certificate(
    certificate: bytes, swarm: Swarm, peer: PeerId, now: float, revocations: Revocations
) -> str | None:
    """Why `peer` may not take part in the swarm, or None when it may.

    certificate: ignored in a public swarm and for the owner
    """
    if revocations.revokes(peer):
        return f"peer {peer} was revoked by the owner of the swarm {swarm.name}"
    if swarm.public or peer == swarm.owner:
        return None
    if not certificate:
        return f"the swarm {swarm.name} is private and no membership certificate was shown; ask for an invite"
    try:
        found = _codec.decode(certificate)
    except MalformedMessage as error:
        return str(error)
    if found.swarm != swarm.id:
        return f"the membership certificate is of another swarm than {swarm.name}"
    if found.peer != peer:
        return "the membership certificate belongs to another peer"
    if revocations.revokes(peer, found.serial):
        return f"the membership certificate {found.serial} was revoked by the owner of the swarm {swarm.name}"
    if not (math.isfinite(found.issued_at) and math.isfinite(found.expires_at)):
        return "the membership certificate has no sound dates"
    if found.expires_at <= now:
        return f"the membership certificate of the swarm {swarm.name} has expired; ask the owner to renew it"
    if found.issued_at > now + CLOCK_SLACK_S:
        return "the membership certificate was issued in the future; check this machine's clock"
    if not _signed_by(swarm.owner, found):
        return f"the membership certificate was not signed by the owner of the swarm {swarm.name}"
    return None


@lru_cache(maxsize=_MAX_CACHED_PEERS)
def _signed_by(owner: PeerId, certificate: Certificate) -> bool:
    body = _codec.encode(msgspec.structs.replace(certificate, signature=b""))
    return verify(owner, DOMAIN, body, certificate.signature)


class MembershipGuard:
    """Admission of peers, remembered until their certificate expires or a newer revocation list arrives."""

    def __init__(self, swarm: Swarm, revocations: Revocations) -> None:
        self.swarm = swarm
        self.revocations = revocations
        self._until: dict[PeerId, tuple[bytes, float]] = {}  # certificate shown, valid until
        self._version = revocations.version

    def admit(self, peer: PeerId, certificate: bytes, now: float) -> None:
        """raises: Refused with the reason"""
        self._forget_when_the_list_changed()
        known = self._until.get(peer)
        if known and known[0] == certificate and now < known[1]:
            return
        reason = check_certificate(certificate, self.swarm, peer, now, self.revocations)
        if reason:
            self._until.pop(peer, None)
            raise Refused(reason)
        plain = self.swarm.public or peer == self.swarm.owner
        until = math.inf if plain else _codec.decode(certificate).expires_at
        if len(self._until) >= _MAX_CACHED_PEERS:
            self._until.pop(next(iter(self._until)))
        self._until[peer] = (certificate, until)

    def is_admitted(self, peer: PeerId, now: float) -> bool:
        """Whether the peer was admitted before and still may take part."""
        self._forget_when_the_list_changed()
        known = self._until.get(peer)
        return known is not None and now < known[1]

    def _forget_when_the_list_changed(self) -> None:
        if self.revocations.version != self._version:
            self._version = self.revocations.version
            self._until.clear()
