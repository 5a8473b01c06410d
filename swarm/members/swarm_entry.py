"""Entering a swarm: by an invite, or with the membership that this home has; nodes and thin clients alike."""

from collections.abc import Callable
from dataclasses import dataclass

from shoal.swarm import private_file
from shoal.swarm.errors import Refused, UsageError
from shoal.swarm.home import Home
from shoal.swarm.identifiers import PeerId
from shoal.swarm.transport import Transport

from . import joining, membership_file
from .invite import Invite
from .membership import MembershipGuard, Swarm, check_certificate
from .membership_file import Membership
from .membership_gate import MembershipGate
from .revocation import Revocations

Clock = Callable[[], float]  # unix seconds


@dataclass(frozen=True, slots=True)
class Entered:
    membership: Membership
    revocations: Revocations
    gate: MembershipGate

    @property
    def swarm(self) -> Swarm:
        return self.membership.swarm


async def join(home: Home, transport: Transport, invite: Invite, name: str, now: float) -> Membership:
    """Redeem an invite and remember the swarm in the home.

    An invite to the swarm of this home costs nothing while its certificate is good; one that has run out, or a damaged
    file (which is kept beside the new one), is what a new invite is for.

    raises: Refused, SwarmUnreachable; UsageError when the home owns another swarm
    """
    swarm = invite.swarm
    known, damaged = _remembered(home)
    if known is not None and known.swarm == swarm and _problem(known, transport.me, now) is None:
        return known
    if known is not None and known.swarm != swarm and known.swarm.owner == transport.me:
        raise UsageError(
            f"this home owns the swarm {known.swarm.name}; join {swarm.name} with another --home, "
            f"or move {home.swarm} away to give that swarm up"
        )
    if swarm.public:
        await joining.connect_any(transport, invite.bootstrap)
        membership = Membership(swarm, b"", invite.bootstrap)
    else:
        answer = await joining.redeem(transport, invite, name, now)
        membership = Membership(swarm, answer.certificate, invite.bootstrap, answer.revocations)
    if damaged:
        home.swarm.replace(home.swarm.with_name(f"{home.swarm.name}.damaged"))
    membership_file.save(home.swarm, membership)
    return membership


def _remembered(home: Home) -> tuple[Membership | None, bool]:
    """What the home says, and whether that cannot be read. raises: UsageError when others may read the file"""
    data = private_file.read(home.swarm)
    if data is None:
        return None, False
    try:
        return membership_file.read(data, home.swarm), False
    except UsageError:
        return None, True


def _revocations(membership: Membership) -> Revocations:
    revocations = Revocations(membership.swarm.id, membership.swarm.owner)
    revocations.merge(membership.revocations)
    return revocations


def _problem(membership: Membership, me: PeerId, now: float) -> str | None:
    return check_certificate(membership.certificate, membership.swarm, me, now, _revocations(membership))


def enter(membership: Membership, transport: Transport, clock: Clock) -> Entered:
    """raises: Refused when the certificate does not admit us (any more)"""
    swarm = membership.swarm
    revocations = _revocations(membership)
    reason = check_certificate(membership.certificate, swarm, transport.me, clock(), revocations)
    if reason:
        raise Refused(f"this home is no member of {swarm.name}: {reason}; join again with a new invite")
    gate = MembershipGate(MembershipGuard(swarm, revocations), membership.certificate, clock)
    return Entered(membership, revocations, gate)
