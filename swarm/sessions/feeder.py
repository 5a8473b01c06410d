"""How the driver feeds the first hop: ids as they are, or through the layers that it keeps for itself.

Everything fed so far can be fed again (the prompt and what was generated, or the kept outputs of the local layers), to
the same first hop or to its replacement.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from shoal.swarm.errors import LocalFault
from shoal.swarm.identifiers import SessionId
from shoal.swarm.transport import Stream

from . import messages
from .compute import Compute, Work
from .kept_outputs import KeptOutputs
from .messages import Feed, slice_of, with_word

PREFILL_POSITIONS = 256  # ids in one feed: hops work on different feeds of one prompt at the same time
Turn = Callable[[int], Awaitable[bytes]]
"""Waits until positions from this one on may go, and gives the word that goes with them."""


def _chunks(ids: Sequence[int], start: int, positions: int) -> list[tuple[int, tuple[int, ...], bool]]:
    """(start, ids, is last) for the ids from index `start` on."""
    return [
        (at, tuple(ids[at : at + positions]), at + positions >= len(ids)) for at in range(start, len(ids), positions)
    ]


async def _in_turn(feed: Feed, turn: Turn | None) -> messages.Pushed:
    if turn is None:
        return feed
    word = await turn(feed.start)
    return with_word(feed, word) if feed.wants_token or feed.replay else slice_of(feed, word)


class IdFeeder:
    """The thin driver: token ids go to the first hop, `positions` of a prompt at once."""

    def __init__(self, positions: int | None = None) -> None:
        self._positions = positions or PREFILL_POSITIONS

    async def feed_all(self, stream: Stream, ids: Sequence[int], start: int, replay: bool, turn: Turn | None) -> None:
        """From position `start` on. turn: for a prompt in slices, each of which waits for the one before.

        raises: Unavailable
        """
        for at, chunk, last in _chunks(ids, start, self._positions):
            feed = Feed(at, len(chunk), chunk, b"", last, replay, ())
            await stream.send(messages.encode(await _in_turn(feed, turn)))

    async def feed_token(self, stream: Stream, start: int, token: int, tick: bytes) -> None:
        await stream.send(messages.encode(with_word(Feed(start, 1, (token,), b"", True, False, ()), tick)))

    def close(self) -> None:
        return


class LocalFeeder:
    """The driver with `local_layers=k`: embed and the first k layers run here; hidden states go to the first hop."""

    def __init__(self, compute: Compute, session: SessionId, keep_bytes: int, positions: int | None = None) -> None:
        self._positions = positions or PREFILL_POSITIONS
        self._compute = compute
        self._session = session
        self._kept = KeptOutputs(keep_bytes)

    async def _run(self, start: int, ids: tuple[int, ...], wants_token: bool, replay: bool) -> Feed:
        done = await self._compute.run(Work(self._session, start, len(ids), ids=ids))
        feed = Feed(start, len(ids), (), done.hidden, wants_token, replay, ())
        self._kept.add(feed)
        return feed

    async def _fresh(self, ids: Sequence[int], replay: bool) -> AsyncIterator[Feed]:
        for start, chunk, last in _chunks(ids, self._kept.length, self._positions):
            yield await self._run(start, chunk, last, replay)

    async def feed_all(self, stream: Stream, ids: Sequence[int], start: int, replay: bool, turn: Turn | None) -> None:
        """raises: LocalFault when what is to be fed again is no longer kept"""
        if replay:
            if start < self._kept.first:
                raise LocalFault("the outputs of the local layers are no longer kept")
            for feed in self._kept.replay(start):
                await stream.send(messages.encode(feed))
        async for feed in self._fresh(ids, replay):
            await stream.send(messages.encode(await _in_turn(feed, turn)))

    async def feed_token(self, stream: Stream, start: int, token: int, tick: bytes) -> None:
        await stream.send(messages.encode(with_word(await self._run(start, (token,), True, False), tick)))

    def close(self) -> None:
        self._compute.close(self._session)


Feeder = IdFeeder | LocalFeeder
