"""Member calls of the ledger, at whoever is asked: bytes in, an answer from the book or a witness's signature out."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.member_calls import MemberCalls

from . import gossip_messages as messages
from .ledger_answers import LedgerAnswers
from .witness_duty import WitnessDuty

ENTRIES, TIPS, PROOF, COSIGN = "ledger/entries", "ledger/tips", "ledger/proof", "ledger/cosign"
Result = TypeVar("Result")


class Use(Protocol):
    """Something that reads or writes the store, when nobody else does."""

    async def __call__(self, work: Callable[[], Result]) -> Result: ...


class LedgerCalls:
    """clock: unix seconds. signed: called when a witness has answered, as it may have caught a forger"""

    def __init__(
        self,
        answers: LedgerAnswers,
        duty: WitnessDuty,
        use: Use,
        clock: Callable[[], float],
        signed: Callable[[], Awaitable[None]],
    ) -> None:
        self._answers = answers
        self._duty = duty
        self._use = use
        self._clock = clock
        self._signed = signed

    async def serve(self, calls: MemberCalls) -> None:
        """raises: DaemonDied"""
        handlers = {ENTRIES: self._page, TIPS: self._tips, PROOF: self._proof, COSIGN: self._cosign}
        for method, handler in handlers.items():
            await calls.answer(method, handler)

    async def _page(self, peer: PeerId, body: bytes) -> bytes:
        wanted = messages.entries_wanted.decode(body)
        return messages.page.encode(await self._use(lambda: self._answers.page(peer, wanted, self._clock())))

    async def _tips(self, peer: PeerId, body: bytes) -> bytes:
        wanted = messages.tips_wanted.decode(body)
        return messages.tips.encode(await self._use(lambda: self._answers.tips(peer, wanted, self._clock())))

    async def _proof(self, peer: PeerId, body: bytes) -> bytes:
        wanted = messages.proof_wanted.decode(body)
        return messages.proof_found.encode(await self._use(lambda: self._answers.proof(peer, wanted, self._clock())))

    async def _cosign(self, peer: PeerId, body: bytes) -> bytes:
        wanted = messages.cosign_wanted.decode(body)
        try:
            return messages.cosigned.encode(await self._use(lambda: self._duty.answer(peer, wanted, self._clock())))
        finally:
            await self._signed()
