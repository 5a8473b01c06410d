"""The ledger of a running node, with its two sides of a session."""

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from shoal.incentives.entry import Entry
from shoal.incentives.lane_accounts import LedgerAccounts, LedgerStamping
from shoal.incentives.ledger import Ledger
from shoal.incentives.ledger_topic import LedgerParts, LedgerTopic
from shoal.incentives.prefix_accounts import PrefixAccounts
from shoal.incentives.session_meter import LedgerMetering, Manifests
from shoal.incentives.session_payment import LedgerPaying
from shoal.incentives.standing import Standings
from shoal.incentives.standing_view import view_of
from shoal.incentives.store import Store
from shoal.incentives.witness_duty import SignedHeads
from shoal.swarm import peer_id
from shoal.swarm.errors import OutOfMemory
from shoal.swarm.home import Home
from shoal.swarm.identifiers import PeerId, SwarmId
from shoal.swarm.identity import Identity
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.members.membership import Swarm
from shoal.swarm.members.stamp import StampGate, StampMaker
from shoal.swarm.transports.libp2p import Libp2pTransport

from .node_events import Warned


def _now() -> float:
    return time.time()  # noqa: TID251  the shell's clock, passed on to the cores


@dataclass(slots=True)
class Books:
    """In a public swarm newcomers have to show a stamp; in a private one they were invited.

    topic: the gossip, once the network is up; until it has asked others for this node's own entries, nothing is signed
    """

    ledger: Ledger
    topic: LedgerTopic | None = None

    def paying(self) -> LedgerPaying:
        return LedgerPaying(self.ledger)

    def metering(self, manifests: Manifests) -> LedgerMetering:
        return LedgerMetering(self.ledger, manifests, anyio.current_time, catch_up=self.catch_up)

    def chunks(self, calls: MemberCalls, manifests: Manifests, metering: LedgerMetering) -> PrefixAccounts:
        return PrefixAccounts(self.ledger, calls, manifests, metering.paid, self.catch_up, anyio.current_time)

    async def catch_up(self, peer: PeerId, author: bytes, start: int, stop: int) -> list[Entry]:
        """`session_meter.CatchUp`. raises: ShoalError"""
        if self.topic is None:
            return []
        return await self.topic.fetch(peer, author, start, stop)

    def accounts(self, metering: LedgerMetering, swarm: Swarm) -> LedgerAccounts:
        gate = StampGate(swarm.id) if swarm.public else None
        return LedgerAccounts(self.ledger, metering.paid, gate, _now, self.roots)

    def roots(self) -> tuple[bytes, ...]:
        """`stamp.Roots`"""
        return self.ledger.store.roots(_now())

    def stamping(self, swarm: Swarm) -> LedgerStamping | None:
        if not swarm.public:
            return None
        return LedgerStamping(self.ledger, StampMaker(swarm.id, self.ledger.key, _now, self.roots))

    async def standings(self, avoided: Mapping[bytes, str] | None = None) -> Standings:
        """What this node thinks of others now; reads all entries.

        avoided: keys against which own audits speak, without a verdict, and why
        raises: ShoalError
        """
        key, now = self.ledger.key, self.ledger.now()
        return await self.ledger.use(lambda store: view_of(key, store, now, avoided))


def judges_of(owner: PeerId) -> frozenset[bytes]:
    return frozenset({peer_id.public_key_of(owner)})


async def open_books(home: Home, identity: Identity, owner: PeerId) -> tuple[Books | None, Warned | None]:
    """Replays all entries. None: the disk is full, and the node serves without books.

    owner: of the swarm; its verdicts create credit for training and take away what is earned by false work

    raises: UsageError, LocalFault when the file is there and is not a sound ledger
    """
    try:
        store = await anyio.to_thread.run_sync(lambda: Store(home.ledger, judges=judges_of(owner)))
    except OutOfMemory as error:
        return None, Warned(f"{error}; this node keeps no ledger until it is started again")
    warning = (
        Warned("the balances in the ledger did not fit its entries; they were made anew") if store.drifted else None
    )
    return Books(Ledger(store, identity, _now, may_sign=False)), warning


async def start_gossip(
    books: Books,
    home: Home,
    swarm: SwarmId,
    transport: Libp2pTransport,
    calls: MemberCalls,
    members: Callable[[], Collection[PeerId]],
    tasks: TaskGroup,
    stack: AsyncExitStack,
) -> None:
    """Entries travel from here on; ended with the stack, before the ledger is closed. raises: UsageError, DaemonDied"""
    from shoal.swarm.transports.p2pd_topics import P2pdTopics

    signed = SignedHeads(home.witness)
    stack.callback(signed.close)
    topics = P2pdTopics(transport.daemon_control)
    stack.push_async_callback(topics.stop)
    books.topic = await LedgerTopic.start(LedgerParts(books.ledger, swarm, signed, topics, calls, members, _now), tasks)
    stack.push_async_callback(books.topic.stop)
