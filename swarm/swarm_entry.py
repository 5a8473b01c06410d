"""Entering a swarm: by an invite, or with the membership that this home has; nodes and thin clients alike."""

from collections.abc import Callable
from dataclasses import dataclass

from . import joining, membership_file
from .errors import Refused, UsageError
from .home import Home
from .invite import Invite
from .membership import MembershipGuard, Swarm, check_certificate
from .membership_file import Membership
from .membership_gate import MembershipGate
from .revocation import Revocations
from .transport import Transport

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
    """Redeem an invite and remember the swarm in the home; an invite to the swarm of this home costs nothing.

    raises: Refused, SwarmUnreachable; UsageError when the home owns another swarm
    """
    swarm, known = invite.swarm, membership_file.load(home.swarm)
    if known is not None and known.swarm == swarm:
        return known
    if known is not None and known.swarm.owner == transport.me:
        raise UsageError(
            f"this home owns the swarm {known.swarm.name}; join {swarm.name} with another --home, to keep it"
        )
    if swarm.public:
        await joining.connect_any(transport, invite.bootstrap)
        membership = Membership(swarm, b"", invite.bootstrap)
    else:
        answer = await joining.redeem(transport, invite, name, now)
        membership = Membership(swarm, answer.certificate, invite.bootstrap, answer.revocations)
    membership_file.save(home.swarm, membership)
    return membership


def enter(membership: Membership, transport: Transport, clock: Clock) -> Entered:
    """raises: Refused when the certificate does not admit us (any more)"""
    swarm = membership.swarm
    revocations = Revocations(swarm.id, swarm.owner)
    revocations.merge(membership.revocations)
    reason = check_certificate(membership.certificate, swarm, transport.me, clock(), revocations)
    if reason:
        raise Refused(f"this home is no member of {swarm.name}: {reason}; join again with a new invite")
    gate = MembershipGate(MembershipGuard(swarm, revocations), membership.certificate, clock)
    return Entered(membership, revocations, gate)
