"""`prefix_books.PrefixBooks` from a ledger: it thanks donors behind the sessions' back, and settles what others owe."""

import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass

import anyio
import structlog

from shoal.swarm import peer_id
from shoal.swarm.errors import NotSpoken, Refused, ShoalError, Unavailable
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.sessions.messages import Open as SessionOpen

from . import chunk_thanks
from . import entry as entries
from .bodies import WORD_BYTES, Close
from .chain import Accepted
from .chain import Refused as NotAccepted
from .chunk_thanks import METHOD, GivenChunks, Thanks, chunk_price
from .entry import Entry
from .ledger import Ledger
from .offer import session_name
from .payword import PayWords
from .session_meter import CatchUp, Manifests

MOST_WAITING = 256
TRIES, AGAIN_S = 3, 10.0  # for a donor that does not answer
WITHOUT_S = 3600.0  # a donor that keeps no books is not asked again for so long
SILENT_S = 600.0  # nor one that answered none of several tries, for which all others waited

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Owed:
    """price: of a chunk; 0 when the client of the session did not pay"""

    donor: PeerId
    session: SessionId
    chunks: int
    price: int


class PrefixAccounts:
    """paid: names of the sessions that are paid, as `LedgerMetering` keeps them. clock: monotonic seconds"""

    def __init__(
        self,
        ledger: Ledger,
        calls: MemberCalls,
        manifests: Manifests,
        paid: Collection[SessionId],
        catch_up: CatchUp,
        clock: Callable[[], float],
    ) -> None:
        self._ledger, self._calls, self._manifests = ledger, calls, manifests
        self._paid, self._catch_up, self._clock = paid, catch_up, clock
        self._given = GivenChunks()
        self._left_alone: dict[PeerId, float] = {}  # donors, and until when
        self._give, self._take = anyio.create_memory_object_stream[_Owed](MOST_WAITING)

    # Taken

    def took(self, donor: PeerId, request: SessionOpen, chunks: int) -> None:
        price = 0
        if request.session in self._paid:
            manifest = self._manifests(request.model)
            price = chunk_price(manifest, request.span) if manifest is not None else 0
        try:
            self._give.send_nowait(_Owed(donor, request.session, chunks, price))
        except anyio.WouldBlock:
            log.info("donor_not_thanked", donor=donor, reason="too many wait")

    async def run(self) -> None:
        """For ever."""
        async for owed in self._take:
            if self._left_alone.get(owed.donor, 0.0) > self._clock():
                continue
            try:
                await self._tell(owed.donor, await self._thanks(owed))
            except ShoalError as error:
                log.info("donor_not_thanked", donor=owed.donor, reason=str(error))

    async def _thanks(self, owed: _Owed) -> bytes:
        """With an account that is opened for them. raises: ShoalError"""
        price = owed.price
        if await self._ledger.spendable(self._ledger.key) < price * owed.chunks:
            price = 0
        words = PayWords(secrets.token_bytes(WORD_BYTES), owed.chunks)
        donor = peer_id.public_key_of(owed.donor)
        terms = chunk_thanks.terms(donor, session_name(owed.session), words.root, owed.chunks, price)
        entry = await self._ledger.append(terms)
        return chunk_thanks.thanks.encode(Thanks(entries.encode(entry), owed.chunks, words.word(owed.chunks)))

    async def _tell(self, donor: PeerId, body: bytes) -> None:
        """raises: ShoalError"""
        for left in reversed(range(TRIES)):
            try:
                await self._calls.call(donor, METHOD, body)
            except NotSpoken:
                self._leave_alone(donor, WITHOUT_S)
                raise
            except Unavailable:
                if not left:
                    self._leave_alone(donor, SILENT_S)
                    raise
                await anyio.sleep(AGAIN_S)
            else:
                return

    def _leave_alone(self, donor: PeerId, time_s: float) -> None:
        now = self._clock()
        self._left_alone = {peer: until for peer, until in self._left_alone.items() if until > now}
        self._left_alone[donor] = now + time_s

    # Given

    def gave(self, taker: PeerId) -> None:
        self._given.gave(taker)

    async def serve(self) -> None:
        """raises: DaemonDied"""
        await self._calls.answer(METHOD, self._settle)

    async def _settle(self, taker: PeerId, body: bytes) -> bytes:
        """raises: MalformedMessage, Refused, and other ShoalError when the ledger cannot be used"""
        said = chunk_thanks.thanks.decode(body)
        entry = entries.decode(said.entry)
        if entry.author != peer_id.public_key_of(taker) or self._ledger.is_forger(entry.author):
            raise Refused("these thanks are not the caller's, or its standing is gone")
        self._given.check(taker, entry, said, self._ledger.key)  # who got nothing makes no work
        if not await self._is_kept(taker, entry):
            raise Refused("the account does not follow what is known of its author")
        self._given.settled(taker, entry, said, self._ledger.key)
        self._ledger.settle(Close(entries.hash_of(entry), said.ticks, said.word))
        return b""

    async def _is_kept(self, taker: PeerId, entry: Entry) -> bool:
        """Whether the OPEN stands in our ledger. raises: ShoalError"""
        verdict = (await self._ledger.receive([entry]))[-1]
        if verdict == NotAccepted("gap"):
            held = (await self._ledger.chain(entry.author)).length
            missing = await self._catch_up(taker, entry.author, held, entry.seq)
            verdict = (await self._ledger.receive([*missing, entry]))[-1]
        return isinstance(verdict, Accepted) or verdict == NotAccepted("known")
