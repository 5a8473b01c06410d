"""Round trips measured by empty calls, into a `LatencyBook`."""

from collections.abc import Callable, Iterable, Sequence

import anyio

from shoal.swarm.errors import ShoalError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.records import NodeRecord
from shoal.swarm.transport import Transport

from .latency import LatencyBook

METHOD = "/shoal/ping/1"
PING_TIMEOUT_S = 2.0
AT_ONCE = 16


async def serve_pings(calls: MemberCalls) -> None:
    async def pong(_: PeerId, body: bytes) -> bytes:
        return body

    await calls.answer(METHOD, pong)


class Pinger:
    """clock: monotonic seconds"""

    def __init__(self, transport: Transport, calls: MemberCalls, book: LatencyBook, clock: Callable[[], float]) -> None:
        self.book = book
        self._transport = transport
        self._calls = calls
        self._clock = clock

    @property
    def me(self) -> PeerId:
        return self._transport.me

    async def measure(self, records: Iterable[NodeRecord], timeout_s: float = PING_TIMEOUT_S) -> None:
        """Ping these peers side by side; those that do not answer count as slow."""
        await self._ping_all([record for record in records if record.peer != self.me][:AT_ONCE], timeout_s)

    async def _ping_all(self, others: Iterable[NodeRecord], timeout_s: float) -> None:
        async with anyio.create_task_group() as tasks:
            for record in others:
                tasks.start_soon(self._ping, record, timeout_s)

    async def measure_unknown(self, records: Iterable[NodeRecord], timeout_s: float) -> None:
        known = self.book.rtt_ms()
        await self.measure((record for record in records if record.peer not in known), timeout_s)

    async def answering(self, records: Sequence[NodeRecord], timeout_s: float) -> set[PeerId]:
        """Those of these peers that answer now, at the addresses of their records. All are asked, however many."""
        peers = {record.peer for record in records}
        for peer in peers:
            self.book.forget(peer)
        await self._ping_all([record for record in records if record.peer != self.me], timeout_s)
        return set(self.book.nearest(peers, len(peers)))

    async def _ping(self, record: NodeRecord, timeout_s: float) -> None:
        try:
            if record.peer not in self.book.rtt_ms():
                await self._transport.connect(record.peer, record.addresses, timeout_s)
                await self._calls.call(record.peer, METHOD, b"", timeout_s)  # the first one pays for the connection
            began_s = self._clock()
            await self._calls.call(record.peer, METHOD, b"", timeout_s)
        except ShoalError:
            self.book.unanswered(record.peer, self._clock())
            return
        now = self._clock()
        self.book.measured(record.peer, (now - began_s) * 1e3, now)
