"""What stands between a trainer and its exchange: it sees each outcome whole, and does not wait where nobody comes."""

from collections.abc import Awaitable, Callable

import anyio

from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.exchange import Exchange, Offer, Outcome, OutOfStep

PATIENCE_S = 8.0  # without a quorum, until it is asked where the others are; then again and again


class WatchedExchange:
    """on_outcome: told before the trainer applies it."""

    def __init__(self, exchange: Exchange, on_outcome: Callable[[Offer, Outcome], None]) -> None:
        self._exchange, self._on_outcome = exchange, on_outcome

    async def exchange(self, offer: Offer) -> Outcome:
        """raises: RoundSkipped, OutOfStep, ValueError"""
        outcome = await self._exchange.exchange(offer)
        self._on_outcome(offer, outcome)
        return outcome


class AttentiveExchange:
    """A peer that was restarted may wait for a round that the others have had: then it is out of step, and told so.

    alone: whether the round lacks peers right now; behind: asks the others, None when nobody is further than we are
    ended: told when an exchange is over, whatever came of it
    committed: what the peers of a round committed to
    """

    def __init__(
        self,
        exchange: Exchange,
        alone: Callable[[], bool],
        behind: Callable[[], Awaitable[OutOfStep | None]],
        ended: Callable[[], None] = lambda: None,
        committed: Callable[[int], dict[PeerId, bytes]] = lambda _round: {},
    ) -> None:
        self.committed = committed
        self._exchange, self._alone, self._behind, self._ended = exchange, alone, behind, ended

    async def exchange(self, offer: Offer) -> Outcome:
        """raises: RoundSkipped, OutOfStep, ValueError"""
        outcome: Outcome | None = None
        missed: OutOfStep | None = None
        failure: Exception | None = None

        async def look() -> None:
            nonlocal missed
            while missed is None:
                await anyio.sleep(PATIENCE_S)
                if self._alone():
                    missed = await self._behind()
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            try:
                outcome = await self._exchange.exchange(offer)
            except Exception as error:  # noqa: BLE001  raised again outside of the group, as it is
                failure = error
            self._ended()
            tasks.cancel_scope.cancel()
        if outcome is not None:
            return outcome
        raise failure or missed or RuntimeError("an exchange that ended with nothing")
