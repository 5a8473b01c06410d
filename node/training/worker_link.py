"""How fast this machine's uplink is: data echoed by peers, which every node does, so that nothing has to be agreed on.

An echo goes up and comes down again; on a home's link the way up is by far the slower one, so its time is taken for
the whole. A fast figure may so come out too low by half, never too high.
"""

from collections.abc import Callable, Sequence

import anyio

from shoal.swarm.errors import ShoalError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.routing.pings import METHOD

BODY_BYTES = 128 << 10
AT_ONCE = 4
PATIENCE_S = 15.0


async def measured_uplink(
    calls: MemberCalls, peers: Sequence[PeerId], clock: Callable[[], float] = anyio.current_time
) -> float | None:
    """Bits a second; None when nobody echoed anything in time. peers: some that are there, nearest first"""
    if not peers:
        return None
    targets = [peers[index % min(len(peers), AT_ONCE)] for index in range(AT_ONCE)]
    small = await _echoed(calls, targets[:1], 1, clock)
    large = await _echoed(calls, targets, BODY_BYTES, clock)
    if small is None or large is None:
        return None
    return 8 * large[1] / max(1e-6, large[0] - small[0])


async def _echoed(
    calls: MemberCalls, targets: Sequence[PeerId], size: int, clock: Callable[[], float]
) -> tuple[float, int] | None:
    """Seconds and bytes of echoes side by side."""
    echoed: list[int] = []

    async def echo(peer: PeerId) -> None:
        try:
            echoed.append(len(await calls.call(peer, METHOD, bytes(size), PATIENCE_S)))
        except ShoalError:
            return  # another one may answer

    began = clock()
    async with anyio.create_task_group() as tasks:
        for peer in targets:
            tasks.start_soon(echo, peer)
    return (clock() - began, sum(echoed)) if echoed else None
