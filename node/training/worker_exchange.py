"""An exchange that shows the trainer each outcome, which the record and the delta log keep whole."""

from collections.abc import Callable

from shoal.swarm.rounds.exchange import Exchange, Offer, Outcome


class WatchedExchange:
    """on_outcome: told before the trainer applies it."""

    def __init__(self, exchange: Exchange, on_outcome: Callable[[Offer, Outcome], None]) -> None:
        self._exchange, self._on_outcome = exchange, on_outcome

    async def exchange(self, offer: Offer) -> Outcome:
        """raises: RoundSkipped, OutOfStep, ValueError"""
        outcome = await self._exchange.exchange(offer)
        self._on_outcome(offer, outcome)
        return outcome
