"""What a client without a ledger has to know of the swarm's ledger to make a stamp: the newest root, by call.

Whoever answers can hold back or lie; the client's stamp is refused then, and nothing else happens.
"""

from collections.abc import Callable, Collection

from .errors import MalformedMessage, ShoalError
from .identifiers import PeerId
from .members.member_calls import MemberCalls
from .members.stamp import Roots, StampMaker

METHOD = "/shoal/beacon/1"
ROOT_BYTES = 32
KEPT_S = 300.0


async def serve_root(calls: MemberCalls, roots: Roots) -> None:
    async def handle(_: PeerId, body: bytes) -> bytes:
        if body:
            raise MalformedMessage("a question for the root has no content")
        return next(iter(roots()), b"")

    await calls.answer(METHOD, handle)


class AskedRoot:
    """`lanes.Stamping` of a thin client. make: of its stamps, by roots; clock: unix seconds"""

    def __init__(
        self,
        calls: MemberCalls,
        peers: Callable[[], Collection[PeerId]],
        make: Callable[[Roots], StampMaker],
        clock: Callable[[], float],
    ) -> None:
        self._calls, self._peers, self._clock = calls, peers, clock
        self._maker = make(lambda: (self._root,) if self._root else ())
        self._root = b""
        self._asked_at = float("-inf")

    async def stamp(self) -> bytes:
        if self._clock() - self._asked_at > KEPT_S:
            self._asked_at = self._clock()
            self._root = await self._newest()
        return await self._maker.stamp()

    async def _newest(self) -> bytes:
        """b"" where nobody keeps a ledger."""
        for peer in list(self._peers())[:3]:
            try:
                answer = await self._calls.call(peer, METHOD)
            except ShoalError:
                continue
            if len(answer) == ROOT_BYTES:
                return answer
        return b""
