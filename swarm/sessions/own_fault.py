"""Why nobody is found or reached, when the reason lies with this node itself."""

import anyio

from shoal.swarm.errors import DaemonDied, Refused, ShoalError
from shoal.swarm.members.handshake import Gate
from shoal.swarm.transport import Transport

MOMENT_S = 0.2  # a daemon that dies breaks its streams a little before its own end is seen


async def own_fault(transport: Transport, gate: Gate) -> ShoalError | None:
    """Asked when a plan came to nothing.

    returns: DaemonDied; Refused when this node is no member (any more); None when the reason lies elsewhere
    """
    with anyio.move_on_after(MOMENT_S):
        await transport.died()
        return DaemonDied("this node's own libp2p daemon died")
    try:
        gate.admit(transport.me, gate.certificate)
    except Refused as refused:
        return refused
    return None
