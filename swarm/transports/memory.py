"""The simulator's transport: a whole network in one process; every delay and loss is a function of one seed.

anyio only: under trio with a clock that jumps, an hour of silence passes at once; under asyncio it runs in
real time. Faults are commands: kill, hang and resume a peer, cut and heal a link, slow it down.
"""

import math
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.abc

from shoal.swarm.errors import DaemonDied, StreamBroken
from shoal.swarm.identifiers import PeerId

from .memory_link import ONE_CONTINENT, Conditions, Host, Link, Traffic
from .memory_stream import Break, MemoryStream
from .memory_transport import MemoryTransport


class MemoryNetwork:
    """`async with MemoryNetwork(seed=7) as network: alice = network.join(PeerId("alice"))`.

    A bug in a handler (any exception but ShoalError) ends the network and comes out of the `async with`.
    """

    def __init__(self, seed: int = 0, conditions: Conditions = ONE_CONTINENT) -> None:
        self.conditions = conditions
        self._seed = seed
        self._transports: dict[PeerId, MemoryTransport] = {}
        self._links: dict[tuple[PeerId, PeerId], Link] = {}
        self._connections: dict[int, tuple[MemoryStream, MemoryStream]] = {}
        self._opened = 0
        self._stack = AsyncExitStack()
        self._tasks: anyio.abc.TaskGroup

    async def __aenter__(self) -> Self:
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._tasks.cancel_scope.cancel()
        if isinstance(error, Exception):  # comes out as it is, not in a group
            return await self._stack.__aexit__(None, None, None)
        return await self._stack.__aexit__(kind, error, trace)

    def join(self, peer: PeerId) -> MemoryTransport:
        """A new process of this peer; after `kill` the same peer may join again.

        raises: ValueError when it is alive already
        """
        if self.is_alive(peer):
            raise ValueError(f"{peer} is in the network already")
        transport = MemoryTransport(self, Host(peer))
        self._transports[peer] = transport
        return transport

    def is_alive(self, peer: PeerId) -> bool:
        transport = self._transports.get(peer)
        return transport is not None and not transport.host.dead.is_set()

    def kill(self, peer: PeerId) -> None:
        """As kill -9 of node and daemon: its handlers stop, its streams break, dialling it is refused."""
        transport = self._transports[peer]
        now = anyio.current_time()
        transport.host.die()
        transport.cancel_all(DaemonDied(f"{peer} was killed"))
        for near, far in self._ends_at(peer):
            near.break_at(Break(now, -math.inf, DaemonDied, f"{peer} was killed"))
            link = self.link(peer, far.me)
            if not link.cut:
                there = now + link.latency_s
                far.break_at(Break(there, there, StreamBroken, f"{peer} is gone"))

    def hang(self, peer: PeerId) -> None:
        """Alive but silent: streams to it open and take frames until a window is full; nothing comes back."""
        self._transports[peer].host.hang()

    def resume(self, peer: PeerId) -> None:
        self._transports[peer].host.resume()

    def partition(self, one: PeerId, other: PeerId) -> None:
        """Cut the link: frames under way are lost, streams break after a while, dialling times out."""
        now = anyio.current_time()
        for sender, receiver in ((one, other), (other, one)):
            self.link(sender, receiver).cut = True
        for near, far in self._ends_at(one):
            if far.me == other:
                for end in (near, far):
                    at = now + self.conditions.cut_detection_s
                    end.break_at(Break(at, now, StreamBroken, f"the link to {end.peer} was cut"))

    def heal(self, one: PeerId, other: PeerId) -> None:
        """Streams that broke stay broken; new ones open."""
        self.link(one, other).cut = self.link(other, one).cut = False

    def set_latency(self, one: PeerId, other: PeerId, latency_s: float) -> None:
        """One way, in both directions, for frames sent from now on."""
        self.link(one, other).latency_s = self.link(other, one).latency_s = latency_s

    def traffic(self, sender: PeerId, receiver: PeerId) -> Traffic:
        return self.link(sender, receiver).traffic

    def link(self, sender: PeerId, receiver: PeerId) -> Link:
        key = (sender, receiver)
        if key not in self._links:
            self._links[key] = Link(self._seed, sender, receiver, self.conditions)
        return self._links[key]

    def living(self, peer: PeerId) -> MemoryTransport | None:
        return self._transports[peer] if self.is_alive(peer) else None

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks.start_soon(work)

    def connection(self, near: Host, far: Host) -> tuple[MemoryStream, MemoryStream]:
        number = self._opened
        self._opened += 1
        there, back = self.link(near.peer, far.peer), self.link(far.peer, near.peer)
        ends = MemoryStream.pair(near, far, there, back, lambda: self._forget(number))
        self._connections[number] = ends
        return ends

    def disconnect(self, one: PeerId, other: PeerId) -> None:
        for near, far in self._ends_at(one):
            if far.me == other:
                near.abort()

    def _forget(self, number: int) -> None:
        self._connections.pop(number, None)

    def _ends_at(self, peer: PeerId) -> list[tuple[MemoryStream, MemoryStream]]:
        """Every open connection of a peer, its own end first."""
        pairs = tuple(self._connections.values())
        return [(a, b) for a, b in pairs if a.me == peer] + [(b, a) for a, b in pairs if b.me == peer]
