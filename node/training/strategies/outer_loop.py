"""A strategy over an exchange: rounds run beside the inner steps, and are waited for when they are due."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import anyio
import anyio.abc
from anyio import to_thread

from shoal.compression.update_codec import Values
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.exchange import Exchange, Offer, Outcome, RoundSkipped

from .strategy import Strategy

Result = TypeVar("Result")
LARGE = 1 << 20  # values from which encoding and decoding go to a thread, so that the event loop stays free


class LiveParameters(Protocol):
    """The peer's own copy, which inner steps change; `parameters.ModelParameters` for a torch model."""

    def read(self, start: int = 0, stop: int | None = None) -> Values: ...

    def gradients(self, start: int = 0, stop: int | None = None) -> Values: ...

    def write(self, start: int, values: Values) -> None: ...


@dataclass(frozen=True, slots=True)
class RoundApplied:
    """waited_s: how long training stood still for it; bytes: of payloads, without the transport's own."""

    round: int
    fragment: int
    contributors: tuple[tuple[PeerId, int], ...]
    sent_bytes: int
    received_bytes: int
    waited_s: float
    state: bytes  # hash after it


@dataclass(frozen=True, slots=True)
class RoundLost:
    """in_a_row: rounds lost since the last one that succeeded; stalled: no inner step is taken before one does."""

    round: int
    fragment: int
    reason: str
    in_a_row: int
    stalled: bool
    waited_s: float


class OuterLoop:
    """tasks: where exchanges run that overlap with inner steps
    patience: rounds lost in a row after which this peer stops stepping and only tries again
    retry_s: pause between two such tries
    """

    def __init__(
        self,
        strategy: Strategy,
        exchange: Exchange,
        parameters: LiveParameters,
        tasks: anyio.abc.TaskGroup,
        report: Callable[[RoundApplied | RoundLost], None] = lambda _: None,
        patience: int = 2,
        retry_s: float = 1.0,
    ) -> None:
        self.strategy = strategy
        self.exchange = exchange
        self.parameters = parameters
        self.tasks = tasks
        self.report = report
        self.patience = patience
        self.retry_s = retry_s
        self._answered = anyio.Event()
        self._failure: Exception | None = None

    def resume(self) -> None:
        """After `Strategy.restore`: a round that was under way is offered again, with the same bytes."""
        pending = self.strategy.pending
        if pending is not None:
            self._start(pending.offer, answered=pending.outcome is not None)

    async def after_step(self, tokens: int) -> None:
        """Call it after each inner step, or after each backward pass when `strategy.gradients`.

        raises: OutOfStep (see `catch_up`), MalformedPayload
        """
        strategy = self.strategy
        strategy.advance(tokens)
        if strategy.must_settle:
            await self._settle()
        if strategy.must_offer:
            await self._offer()
        if strategy.must_settle:
            await self._settle()
        while strategy.skips >= self.patience:
            if strategy.pending is None:
                await anyio.sleep(self.retry_s)
                strategy.hurry()
                await self._offer()
            await self._settle()

    async def arrive(self) -> None:
        """One round without an inner step before it: a peer that has no share of the data yet makes itself known.

        raises: OutOfStep, MalformedPayload
        """
        strategy = self.strategy
        if strategy.pending is not None:
            await self._settle()
        while True:
            strategy.hurry()
            await self._offer()
            await self._settle()
            if not strategy.skips:
                return
            await anyio.sleep(self.retry_s)

    def catch_up(self, missed: Iterable[tuple[Outcome, bool]], round_: int) -> None:
        """After OutOfStep: apply what was missed, then go on with this round.

        When only the answer to the own offer was missed, this peer goes on as if it had come. Otherwise its work since
        its last round is lost, and it goes on from the outer parameters.
        missed: outcomes in order, each with whether it holds this peer's own offer
        raises: MalformedPayload, ValueError
        """
        self._answered, self._failure = anyio.Event(), None
        strategy, in_step = self.strategy, False
        for outcome, contributed in missed:
            pending = strategy.pending
            in_step = pending is not None and contributed and pending.offer.round == outcome.round
            if pending is None or not in_step:
                strategy.replay(outcome, contributed)
                continue
            strategy.receive(outcome)
            start, stop = strategy.outer.bounds[outcome.fragment]
            self.parameters.write(start, strategy.settle(self.parameters.read(start, stop)))
            self._report_applied(pending.offer, outcome, 0.0)
        if not in_step or strategy.round != round_:
            strategy.rejoin(round_)
            self.parameters.write(0, strategy.beginning())

    async def _offer(self) -> None:
        start, stop = self.strategy.outer.bounds[self.strategy.fragment]
        work = (self.parameters.gradients if self.strategy.gradients else self.parameters.read)(start, stop)
        offer = await _computed(len(work), lambda: self.strategy.offer(work))
        self._start(offer)

    def _start(self, offer: Offer, answered: bool = False) -> None:
        self._answered, self._failure = anyio.Event(), None
        if answered:
            self._answered.set()
        else:
            self.tasks.start_soon(self._run, offer, self._answered)

    async def _run(self, offer: Offer, answered: anyio.Event) -> None:
        outcome, failure = None, None
        try:
            outcome = await self.exchange.exchange(offer)
        except Exception as error:  # noqa: BLE001  raised again by whoever waits for the answer
            failure = error
        if answered is self._answered:  # else given up meanwhile
            if outcome is not None:
                self.strategy.receive(outcome)
            self._failure = failure
            answered.set()

    async def _settle(self) -> None:
        """Wait for the pending round's answer and apply it. raises: OutOfStep, MalformedPayload"""
        strategy, pending = self.strategy, self.strategy.pending
        assert pending is not None
        began = anyio.current_time()
        await self._answered.wait()
        waited = anyio.current_time() - began
        offer = pending.offer
        if isinstance(self._failure, RoundSkipped):
            strategy.skip()
            stalled = strategy.skips >= self.patience
            self.report(RoundLost(offer.round, offer.fragment, str(self._failure), strategy.skips, stalled, waited))
            return
        if self._failure is not None:
            raise self._failure
        outcome = pending.outcome
        assert outcome is not None
        start, stop = strategy.outer.bounds[offer.fragment]
        local = self.parameters.read(start, stop)
        self.parameters.write(start, await _computed(len(local), lambda: strategy.settle(local)))
        self._report_applied(offer, outcome, waited)

    def _report_applied(self, offer: Offer, outcome: Outcome, waited_s: float) -> None:
        sent, received = (sum(map(len, payloads)) for payloads in (offer.payloads, outcome.aggregates))
        state = self.strategy.outer.hash()
        self.report(RoundApplied(offer.round, offer.fragment, outcome.contributors, sent, received, waited_s, state))


async def _computed(count: int, compute: Callable[[], Result]) -> Result:
    return await to_thread.run_sync(compute) if count >= LARGE else compute()
