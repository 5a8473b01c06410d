"""Several ledgers that gossip, over real daemons or in memory, in one process."""

import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from swarm.people import person, public_swarm

from shoal.incentives.bodies import AnyBody
from shoal.incentives.entry import Entry
from shoal.incentives.gossip_events import Fact, GossipOptions
from shoal.incentives.ledger import Ledger
from shoal.incentives.ledger_topic import LedgerParts, LedgerTopic
from shoal.incentives.store import Store
from shoal.incentives.witness_duty import SignedHeads
from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.members.membership import MembershipGuard
from shoal.swarm.members.membership_gate import MembershipGate
from shoal.swarm.members.revocation import Revocations
from shoal.swarm.transports.libp2p import Libp2pTransport
from shoal.swarm.transports.p2pd import NetworkOptions
from shoal.swarm.transports.p2pd_topics import P2pdTopics

SWARM = public_swarm()
PATIENCE_S = 60.0
QUICK = GossipOptions(beat_s=0.2, sync_s=2.0)


@dataclass(slots=True)
class Member:
    identity: Identity
    store: Store
    topic: LedgerTopic
    ledger: Ledger
    addresses: tuple[str, ...]
    facts: list[Fact] = field(default_factory=list)

    @property
    def peer(self) -> PeerId:
        return self.identity.peer_id

    async def append(self, bodies: Sequence[AnyBody]) -> list[Entry]:
        return [await self.ledger.append(body) for body in bodies]

    def length(self, other: "Member") -> int:
        return self.store.chain(other.identity.public_key).length


def clock() -> float:
    return time.time()  # noqa: TID251  real nodes, real time


@asynccontextmanager
async def running_members(folder: Path, numbers: range) -> AsyncIterator[list[Member]]:
    """Real p2pd daemons, all connected; stores in `folder`, kept from an earlier run."""
    async with AsyncExitStack() as stack:
        transports: list[Libp2pTransport] = []
        for number in numbers:
            transport = await Libp2pTransport.start(person(number).libp2p_key(), NetworkOptions(host="127.0.0.1"))
            stack.push_async_callback(transport.stop)
            for other in transports:
                await transport.connect(other.me, other.addresses)
            transports.append(transport)
        peers = [transport.me for transport in transports]
        all_parts: list[LedgerParts] = []
        all_facts: list[list[Fact]] = []
        for number, transport in zip(numbers, transports, strict=True):
            store, signed = Store(folder / f"{number}.sqlite"), SignedHeads(folder / f"{number}-witness.sqlite")
            stack.callback(store.close)
            stack.callback(signed.close)
            topics = P2pdTopics(transport.daemon_control)
            stack.push_async_callback(topics.stop)
            guard = MembershipGuard(SWARM, Revocations(SWARM.id, SWARM.owner))
            calls = MemberCalls(transport, MembershipGate(guard, b"", clock))
            facts: list[Fact] = []
            all_parts.append(
                LedgerParts(
                    ledger=Ledger(store, person(number), clock, may_sign=False),
                    swarm=SWARM.id,
                    signed=signed,
                    topics=topics,
                    calls=calls,
                    members=lambda: peers,
                    clock=clock,
                    report=facts.append,
                    options=QUICK,
                    generator=random.Random(number),
                )
            )
            all_facts.append(facts)
        async with anyio.create_task_group() as tasks:
            yield [
                Member(
                    parts.identity,
                    parts.store,
                    await LedgerTopic.start(parts, tasks),
                    parts.ledger,
                    transport.addresses,
                    facts,
                )
                for parts, transport, facts in zip(all_parts, transports, all_facts, strict=True)
            ]
            tasks.cancel_scope.cancel()


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        with anyio.fail_after(PATIENCE_S):
            while not condition():  # noqa: ASYNC110  it may become true in several ways
                await anyio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {PATIENCE_S:.0f} s: {what}") from None
