"""Records handed on by call: how a thin client without a DHT learns who is there.

Every record is signed by its peer, so whoever hands it on can hold back, but not forge.
"""

from collections.abc import Callable, Sequence

import anyio
import msgspec

from .directory import Lookup, RecordBook
from .errors import MalformedMessage, Refused, ShoalError, SwarmUnreachable
from .identifiers import ModelId, PeerId
from .members.member_calls import MemberCalls
from .records import NodeRecord, RecordReader

METHOD = "/shoal/records/1"
FRESH_S = 2.0  # what was fetched this long ago still counts as known
MAX_PAGES = 64
LOOK_PATIENCE_S = 1.0  # for a look-up before the answer; after a death it can take longer, then what is known must do

_requests = msgspec.msgpack.Decoder(str)  # the last PeerID of the page before, "" at first
_pages = msgspec.msgpack.Decoder(list[bytes])


async def serve_records(calls: MemberCalls, lookup: Lookup, clock: Callable[[], float]) -> None:
    async def handle(_: PeerId, body: bytes) -> bytes:
        try:
            after = _requests.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise MalformedMessage(f"not a request for records: {error}") from error
        if not after:
            with anyio.move_on_after(LOOK_PATIENCE_S):
                await lookup.nodes()
        return msgspec.msgpack.encode(lookup.book.page(clock(), after))

    await calls.answer(METHOD, handle)


class RemoteDirectory:
    """A `Lookup` for a client: asks the peers it knows, first the bootstrap peers. clock: unix seconds."""

    def __init__(
        self, calls: MemberCalls, reader: RecordReader, bootstrap: Sequence[PeerId], clock: Callable[[], float]
    ) -> None:
        self._calls = calls
        self._reader = reader
        self.book = RecordBook(reader)
        self._bootstrap = tuple(bootstrap)
        self._clock = clock
        self._fetched_at = 0.0

    async def nodes(self) -> list[NodeRecord]:
        if self._clock() - self._fetched_at > FRESH_S:
            await self._refresh()
        return self.book.live(self._clock())

    async def holders(self, model: ModelId) -> list[NodeRecord]:
        await self.nodes()
        return self.book.holders(model, self._clock())

    async def _refresh(self) -> None:
        """raises: SwarmUnreachable when nobody answers"""
        others = [record.peer for record in self.book.live(self._clock()) if record.peer not in self._bootstrap]
        reasons = []
        for peer in (*self._bootstrap, *others[:8]):
            try:
                await self._read_pages(peer)
            except ShoalError as error:
                reasons.append(str(error))
                continue
            self._fetched_at = self._clock()
            return
        raise SwarmUnreachable(f"nobody of the swarm answers: {'; '.join(reasons[:2]) or 'no peer is known'}")

    async def _read_pages(self, peer: PeerId) -> None:
        after = ""
        for _ in range(MAX_PAGES):
            answer = await self._calls.call(peer, METHOD, msgspec.msgpack.encode(after))
            try:
                page = _pages.decode(answer)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise MalformedMessage(f"{peer} sent no page of records") from error
            last = max((self._take(data) for data in page), default="")
            if last <= after:
                return
            after = last

    def _take(self, data: bytes) -> str:
        """returns: whose record it is, "" when it is not valid"""
        now = self._clock()
        self.book.merge(data, now)
        try:
            return self._reader.read(data, now).peer
        except (MalformedMessage, Refused):
            return ""
