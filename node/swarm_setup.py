"""Which swarm a node belongs to: the one of its home, one joined by invite, or one founded now."""

import secrets

from shoal.swarm.errors import UsageError
from shoal.swarm.identity import Identity
from shoal.swarm.members import membership_file
from shoal.swarm.members.invite import Invite
from shoal.swarm.members.membership import found_swarm
from shoal.swarm.members.membership_file import Membership
from shoal.swarm.members.swarm_entry import Clock, Entered, enter, join
from shoal.swarm.transport import Transport

from .options import NodeOptions


async def enter_swarm(
    options: NodeOptions, identity: Identity, transport: Transport, invite: Invite | None, clock: Clock
) -> tuple[Entered, bool]:
    """returns: the membership, and whether the swarm was founded now. raises: UsageError, Refused, SwarmUnreachable"""
    if invite is not None:
        return enter(await join(options.home, transport, invite, options.name, clock()), transport, clock), False
    known = membership_file.load(options.home.swarm)
    if known is not None:
        _refuse_contradiction(known, options)
        return enter(known, transport, clock), False
    name = options.swarm_name or f"{options.name}'s swarm"
    swarm = found_swarm(name, identity.peer_id, secrets.token_bytes(16), public=options.public)
    membership = Membership(swarm, b"", ())
    membership_file.save(options.home.swarm, membership)
    return enter(membership, transport, clock), True


def _refuse_contradiction(known: Membership, options: NodeOptions) -> None:
    swarm = known.swarm
    if options.swarm_name and options.swarm_name != swarm.name:
        raise UsageError(f"this home belongs to the swarm {swarm.name}; use another --home for {options.swarm_name}")
    if options.public and not swarm.public:
        raise UsageError(f"the swarm {swarm.name} of this home is private; use another --home for a public one")
