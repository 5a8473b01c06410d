"""A driver without a node: own p2pd, no DHT, no torch. It asks members for records and sends and receives token ids."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import anyio
from anyio.abc import TaskGroup

from .beacon_calls import AskedRoot
from .errors import SwarmUnreachable
from .home import Home
from .identity import Identity
from .members import joining, membership_file
from .members.handshake import Gate
from .members.invite import read_invite
from .members.member_calls import MemberCalls
from .members.stamp import StampMaker
from .members.swarm_entry import enter, join
from .node_lock import CLIENT_NAME, NodeLock
from .record_calls import RemoteDirectory
from .records import NodeRecord, RecordReader
from .routing.chain_planner import DirectoryPlanner
from .routing.latency import LatencyBook
from .routing.pings import Pinger
from .sessions.driver import Driver
from .sessions.metering import Paying
from .sessions.work_records import SessionAudits
from .transport import Transport
from .transports.p2pd import NetworkOptions

Auditors = Callable[[Transport, Gate, Callable[[], Sequence[NodeRecord]]], SessionAudits]


def _now() -> float:
    return time.time()  # noqa: TID251  the shell's clock


@asynccontextmanager
async def thin_driver(
    home: Home,
    tasks: TaskGroup,
    invite_line: str | None = None,
    paying: Paying | None = None,
    auditors: Auditors | None = None,
) -> AsyncIterator[Driver]:
    """A driver for the swarm of this home, or for the one that the invite names (which this home then belongs to).

    paying, auditors: for a client that keeps a ledger; it runs its auditor itself, and ends it before it leaves
    raises: SwarmUnreachable when the home belongs to no swarm or nobody answers; Refused; UsageError
    """
    from .transports.libp2p import Libp2pTransport

    invite = read_invite(invite_line, _now()) if invite_line else None
    home.prepare()
    known = None if invite else membership_file.load(home.swarm)
    if invite is None and known is None:
        raise SwarmUnreachable("no node runs here and this home belongs to no swarm; run `shoal up`, or give an invite")
    identity = Identity.load_or_create(home.identity)
    async with AsyncExitStack() as stack:
        stack.enter_context(NodeLock(home.lock, CLIENT_NAME))
        transport = await Libp2pTransport.start(identity.libp2p_key(), NetworkOptions(listen=False, nat=False))
        stack.push_async_callback(transport.stop)
        membership = await join(home, transport, invite, CLIENT_NAME, _now()) if invite else known
        assert membership is not None
        entered = enter(membership, transport, _now)
        reached = await joining.connect_any(transport, membership.bootstrap)
        calls = MemberCalls(transport, entered.gate)
        directory = RemoteDirectory(calls, RecordReader(entered.swarm, entered.revocations), reached, _now)
        pinger = Pinger(transport, calls, LatencyBook(), anyio.current_time)
        planner = DirectoryPlanner(directory, calls, pinger, anyio.current_time, _now)
        stamping = None
        if entered.swarm.public:
            make = partial(StampMaker, entered.swarm.id, identity.public_key, _now)
            stamping = AskedRoot(calls, lambda: reached, make, _now)
        audits = auditors(transport, entered.gate, lambda: directory.book.live(_now())) if auditors else None
        yield Driver(transport, entered.gate, planner, tasks, paying=paying, stamping=stamping, audits=audits)
