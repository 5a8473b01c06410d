"""Which swarm a node belongs to: the one of its home, one joined by invite, or one founded now."""

import secrets

import anyio.to_thread

from shoal.swarm.errors import UsageError
from shoal.swarm.identity import Identity
from shoal.swarm.members import membership_file
from shoal.swarm.members.invite import Invite
from shoal.swarm.members.membership import found_swarm
from shoal.swarm.members.membership_file import Membership
from shoal.swarm.members.swarm_entry import Clock, Entered, enter, join
from shoal.swarm.transport import Transport

from .model_finding import is_local
from .model_loading import named_span
from .model_source import EMBEDDED, resolve
from .options import BY_NEED, NodeOptions
from .peer_folder import PeerFolder
from .peer_model import kept_model


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


async def check_layers(options: NodeOptions) -> None:
    """Before a swarm is founded or an invite used up: does the model have the layers that were named?

    Of a model that only the swarm or a hub knows, nothing can be said yet. raises: UsageError
    """
    is_new = options.invite is not None or membership_file.load(options.home.swarm) is None
    if options.layers is None or options.model is None or not is_new:
        return
    wanted = options.model
    if wanted == BY_NEED and options.invite is None:  # a swarm of one: what this machine has
        kept = next(filter(None, map(kept_model, PeerFolder.every(options.home.cache))), None)
        if kept is not None:
            named_span(options.layers, kept)
            return
        wanted = EMBEDDED
    if is_local(wanted):
        model = await anyio.to_thread.run_sync(resolve, wanted, options.home.cache, abandon_on_cancel=True)
        named_span(options.layers, model)


def _refuse_contradiction(known: Membership, options: NodeOptions) -> None:
    swarm = known.swarm
    if options.swarm_name and options.swarm_name != swarm.name:
        raise UsageError(f"this home belongs to the swarm {swarm.name}; use another --home for {options.swarm_name}")
    if options.public and not swarm.public:
        raise UsageError(f"the swarm {swarm.name} of this home is private; use another --home for a public one")
