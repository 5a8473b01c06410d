"""`Exchange` over a real transport: the shell around the machine of the outer round.

It carries messages, runs the heavy jobs on a thread, asks the directory who is there, and tells the machine the time.
"""

import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Self, assert_never

import anyio
import anyio.abc
from anyio import to_thread

from shoal.swarm.errors import DaemonDied, ShoalError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.handshake import Gate
from shoal.swarm.records import ANNOUNCE_PERIOD_S
from shoal.swarm.transport import Transport

from .events import (
    Event,
    Fact,
    Finish,
    Job,
    JobResult,
    Listed,
    Offered,
    Ran,
    Report,
    RoundOptions,
    Run,
    Send,
    Ticked,
    Withdrawn,
)
from .exchange import Offer, Outcome, RunSpec
from .machine import RoundMachine
from .meeting import Meeting
from .round_links import RoundLinks, Throttle
from .round_traffic import RoundTraffic
from .run_identity import checked_spec, largest_payload_bytes

LOOK_PERIOD_S = 5.0
EAGER_LOOK_PERIOD_S = 1.0  # while there are fewer peers than a round needs

RunJob = Callable[[Job], Awaitable[JobResult]]


async def on_a_thread(job: Job) -> JobResult:
    return await to_thread.run_sync(job.run)


async def unlimited(payload_bytes: int) -> None:
    del payload_bytes


class _Waiter:
    def __init__(self) -> None:
        self.done = anyio.Event()
        self.result: Outcome | ShoalError | None = None

    def set(self, result: Outcome | ShoalError) -> None:
        self.result = result
        self.done.set()


class RoundExchange:
    """`async with RoundExchange(...) as exchange: outcome = await exchange.exchange(offer)`.

    gate: membership, checked on every stream, both ways
    first_round: the one that will be offered first, after a checkpoint that of the checkpoint
    on_fact: told what goes on (`events.Status` for the waiting line, `LiarNamed`, ...); must not block
    throttle: awaited with the size of each frame before it is sent
    raises on entering: ValueError for a spec that cannot be
    """

    def __init__(
        self,
        transport: Transport,
        gate: Gate,
        meeting: Meeting,
        spec: RunSpec,
        *,
        first_round: int = 0,
        options: RoundOptions | None = None,
        on_fact: Callable[[Fact], None] = lambda _: None,
        throttle: Throttle = unlimited,
        run_job: RunJob = on_a_thread,
        generator: random.Random | None = None,
    ) -> None:
        self.spec = checked_spec(spec)
        self.traffic = RoundTraffic()
        self._transport = transport
        self._gate = gate
        self._meeting = meeting
        self._first_round = first_round
        self._options = options or RoundOptions()
        self._on_fact = on_fact
        self._throttle = throttle
        self._run_job = run_job
        self._generator = generator or random.SystemRandom()
        self._stack = AsyncExitStack()
        self._waiter: _Waiter | None = None
        self._dead: ShoalError | None = None
        self._job_slot = anyio.Semaphore(1)  # one at a time: training wants the other cores
        self._tasks: anyio.abc.TaskGroup
        self._links: RoundLinks
        self._machine: RoundMachine

    async def __aenter__(self) -> Self:
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        self._machine = RoundMachine(
            self._transport.me,
            self.spec,
            self._first_round,
            self._options,
            self._generator,
            anyio.current_time(),
        )
        self._links = RoundLinks(
            self._transport, self._gate, self.spec, self._tasks, self._post, self.traffic, self._throttle
        )
        await self._links.serve()
        self._tasks.start_soon(self._announce_often)
        self._tasks.start_soon(self._look_often)
        self._tasks.start_soon(self._tick_often)
        self._tasks.start_soon(self._watch_transport)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._links.closed = True
        self._tasks.cancel_scope.cancel()
        if isinstance(error, Exception):  # comes out as it is, not in a group
            return await self._stack.__aexit__(None, None, None)
        return await self._stack.__aexit__(kind, error, trace)

    async def exchange(self, offer: Offer) -> Outcome:
        """Waits for a quorum as long as it takes; once there is a group, for the run's deadline and a little.

        raises: RoundSkipped, OutOfStep; ValueError for an offer that does not fit the run; VersionMismatch when all
        others train another run of this name; Refused when this peer was found lying; DaemonDied
        """
        check_offer(self.spec, offer)
        if self._waiter is not None:
            raise ValueError("one round at a time: the offer before has not been answered")
        if self._dead is not None:
            raise self._dead
        waiter = self._waiter = _Waiter()
        try:
            self._post(Offered(offer))
            await waiter.done.wait()
        finally:
            if self._waiter is waiter:
                self._waiter = None
                if not waiter.done.is_set():
                    self._post(Withdrawn())
        assert waiter.result is not None
        if isinstance(waiter.result, Outcome):
            return waiter.result
        raise waiter.result

    def committed(self, round_: int) -> dict[PeerId, bytes]:
        """The roots that the peers of a decided round committed to; {} for one that is not known (any more)."""
        roster = self._machine.state.roster_of(round_)
        return {} if roster is None else {member.peer: member.root for member in roster.members}

    def _post(self, event: Event) -> None:
        if self._links.closed:
            return
        for effect in self._machine.handle(event, anyio.current_time()):
            match effect:
                case Send(to, message):
                    self._links.send(to, message)
                case Run(job):
                    self._tasks.start_soon(self._carry_out, job)
                case Finish(_, result):
                    if self._waiter is not None:
                        self._waiter.set(result)
                case Report(fact):
                    self._on_fact(fact)
                case _:
                    assert_never(effect)

    async def _carry_out(self, job: Job) -> None:
        async with self._job_slot:
            result = await self._run_job(job)
        self._post(Ran(result))

    async def _tick_often(self) -> None:
        while True:
            self._post(Ticked())
            await anyio.sleep(self._options.beat_s)

    async def _announce_often(self) -> None:
        while True:
            with suppress(ShoalError):  # the next one may get through; meanwhile others know us by what we say
                await self._meeting.announce()
            await anyio.sleep(ANNOUNCE_PERIOD_S)

    async def _look_often(self) -> None:
        while True:
            present = 0
            try:
                attendees = await self._meeting.peers()
            except ShoalError:
                attendees = ()
            else:
                others = [attendee for attendee in attendees if attendee.peer != self._transport.me]
                present = len(others) + 1
                self._links.addresses.update((attendee.peer, attendee.addresses) for attendee in others)
                self._post(Listed([attendee.peer for attendee in others]))
            await anyio.sleep(EAGER_LOOK_PERIOD_S if present < self.spec.quorum else LOOK_PERIOD_S)

    async def _watch_transport(self) -> None:
        await self._transport.died()
        self._dead = DaemonDied("our own p2pd is gone")
        if self._waiter is not None:
            self._waiter.set(self._dead)


def check_offer(spec: RunSpec, offer: Offer) -> None:
    """raises: ValueError for an offer that does not fit the run"""
    if offer.round < 0 or not 0 <= offer.fragment < len(spec.fragments):
        raise ValueError(f"round {offer.round}, fragment {offer.fragment} of {len(spec.fragments)}")
    bounds = spec.sharding(offer.fragment).bounds()
    if len(offer.payloads) != len(bounds):
        raise ValueError(f"{len(offer.payloads)} payloads for {len(bounds)} shards")
    if not 1 <= offer.tokens < 1 << 53 or len(offer.state) != 32:
        raise ValueError(f"an offer of {offer.tokens} tokens at a state hash of {len(offer.state)} bytes")
    for payload, (start, stop) in zip(offer.payloads, bounds, strict=True):
        if len(payload) > largest_payload_bytes(stop - start):
            raise ValueError(f"a payload of {len(payload)} bytes for {stop - start} values")
