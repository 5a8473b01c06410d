"""An invite is one line of text that lets one machine in; the messages with which it is redeemed.

The joiner proves that it knows the invite's secret without sending it: HMAC(secret, its PeerID). The transport has
authenticated that PeerID, so an eavesdropper or a relay gains nothing. An invite of a public swarm has no
secret: it only tells where the swarm is.
"""

import base64
import hashlib
import hmac
import math
import zlib

import msgspec

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage, Refused, UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity, verify

from .membership import MAX_CERTIFICATE_BYTES, MAX_NAME_LENGTH, Swarm, check_certificate, swarm_problem
from .revocation import MAX_LIST_BYTES, Revocations

PREFIX = "shoal1:"
DOMAIN = "invite"
JOIN_METHOD = "shoal.join"
SECRET_BYTES = 16
MAX_INVITE_BYTES = 4096
MAX_BOOTSTRAP = 8
MAX_ADDRESS_LENGTH = 256
DEFAULT_TTL_S = 7 * 86400.0
_DAMAGED = "the invite is damaged: a character is missing or wrong; copy the whole line again"


class Invite(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    swarm: Swarm
    bootstrap: tuple[str, ...]  # multiaddrs with /p2p/
    expires_at: float  # unix seconds
    secret: bytes  # SECRET_BYTES, or b"" in a public swarm
    signature: bytes = b""  # by the swarm's owner

    @property
    def id(self) -> str:
        return invite_id(self.secret)


_codec = Canonical(Invite, "an invite", MAX_INVITE_BYTES)


def invite_id(secret: bytes) -> str:
    """What the owner's store calls the invite; tells nothing of the secret."""
    return hashlib.sha256(b"shoal invite id 1\0" + secret).hexdigest()[:16]


def write_invite(owner: Identity, swarm: Swarm, bootstrap: tuple[str, ...], expires_at: float, secret: bytes) -> str:
    """One line without spaces.

    raises: UsageError when there are no addresses to name, or too many
    """
    unsigned = Invite(swarm, bootstrap, expires_at, secret)
    problem = _problem(unsigned)
    if problem:
        raise UsageError(f"cannot write an invite: {problem}")
    signature = owner.sign(DOMAIN, _codec.encode(unsigned))
    payload = _codec.encode(msgspec.structs.replace(unsigned, signature=signature))
    body = zlib.crc32(payload).to_bytes(4, "big") + payload
    return PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("=")


def read_invite(text: str, now: float) -> Invite:
    """Read a line that a person copied; line breaks and spaces inside are ignored.

    raises: UsageError when it is no invite or was damaged on the way; Refused when it is forged or has expired
    """
    line = "".join(text.split())
    if not line.lower().startswith(PREFIX):
        raise UsageError(f"this is not an invite: it does not begin with {PREFIX}")
    if len(line) > 2 * MAX_INVITE_BYTES:
        raise UsageError(_DAMAGED)
    encoded = line[len(PREFIX) :]
    try:
        body = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise UsageError(_DAMAGED) from error
    payload = body[4:]
    if zlib.crc32(payload).to_bytes(4, "big") != body[:4]:
        raise UsageError(_DAMAGED)
    try:
        invite = _codec.decode(payload)
    except MalformedMessage as error:
        raise UsageError("the invite was written by another version of shoal, or is no invite") from error
    problem = _problem(invite)
    if problem:
        raise Refused(f"the invite is forged: {problem}")
    unsigned = _codec.encode(msgspec.structs.replace(invite, signature=b""))
    if not verify(invite.swarm.owner, DOMAIN, unsigned, invite.signature):
        raise Refused("the invite is forged: the swarm's owner did not sign it")
    if invite.expires_at <= now:
        raise Refused("the invite has expired; ask for a new one")
    return invite


def _problem(invite: Invite) -> str:
    if invite.swarm.public != (not invite.secret) or len(invite.secret) not in (0, SECRET_BYTES):
        return "an invite of a private swarm has a secret, and one of a public swarm has none"
    if not 0 < len(invite.bootstrap) <= MAX_BOOTSTRAP:
        return f"an invite names 1 to {MAX_BOOTSTRAP} addresses, not {len(invite.bootstrap)}"
    for address in invite.bootstrap:
        if len(address) > MAX_ADDRESS_LENGTH or not address.startswith("/") or "/p2p/" not in address:
            return f"{address[:MAX_ADDRESS_LENGTH]!r} is not a multiaddr with /p2p/"
    if math.isnan(invite.expires_at):
        return "an invite has an expiry"
    return swarm_problem(invite.swarm)


class JoinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="join"):
    """To the owner, as a call of `JOIN_METHOD`."""

    invite: str  # its id
    proof: bytes  # HMAC-SHA256(secret, PeerID of the joiner)
    name: str  # of the joining node, for the owner's list


class RenewRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="renew"):
    """A member asks for a fresh certificate before its own runs out."""

    certificate: bytes


class JoinAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="joined"):
    certificate: bytes
    revocations: bytes  # the newest list, b"" when there is none


MembershipRequest = JoinRequest | RenewRequest
requests: Canonical[MembershipRequest] = Canonical(MembershipRequest, "a join request", 1024)
answers = Canonical(JoinAnswer, "a join answer", MAX_LIST_BYTES + MAX_CERTIFICATE_BYTES + 64)


def prove(secret: bytes, peer: PeerId) -> bytes:
    return hmac.digest(secret, b"shoal join 1\0" + peer.encode(), "sha256")


def join_request(invite: Invite, me: PeerId, name: str) -> bytes:
    return requests.encode(JoinRequest(invite.id, prove(invite.secret, me), name[:MAX_NAME_LENGTH]))


def read_answer(data: bytes, swarm: Swarm, me: PeerId, now: float) -> JoinAnswer:
    """raises: MalformedMessage; Refused when the owner's certificate does not admit us"""
    answer = answers.decode(data)
    revocations = Revocations(swarm.id, swarm.owner)
    revocations.merge(answer.revocations)
    reason = check_certificate(answer.certificate, swarm, me, now, revocations)
    if reason:
        raise Refused(reason)
    return answer
