"""The outer round over real daemons: several rounds, a peer killed with its p2pd, meeting through the DHT."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import psutil
import pytest
from swarm.people import certificate, person, private_swarm, record
from swarm.rounds.round_peers import QUICK, Trainer, run_spec

from shoal.swarm.errors import DaemonDied, UsageError
from shoal.swarm.members.membership import MembershipGuard
from shoal.swarm.members.membership_gate import MembershipGate
from shoal.swarm.members.revocation import Revocations
from shoal.swarm.records import NodeRecord, RecordReader
from shoal.swarm.rounds.exchange import RunSpec
from shoal.swarm.rounds.meeting import DirectoryMeeting
from shoal.swarm.rounds.round_exchange import RoundExchange
from shoal.swarm.rounds.run_identity import run_key
from shoal.swarm.transports.dht_directory import DhtDirectory
from shoal.swarm.transports.libp2p import Libp2pTransport
from shoal.swarm.transports.p2pd import NetworkOptions

pytestmark = [pytest.mark.network, pytest.mark.anyio]
SWARM = private_swarm()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def now() -> float:
    return time.time()  # noqa: TID251  real daemons live in real time


@asynccontextmanager
async def real_trainer(number: int, spec: RunSpec, bootstrap: tuple[str, ...]) -> AsyncIterator[Trainer]:
    """A daemon, a directory on it, and the exchange: what a node has, without the model."""
    identity = person(number)
    transport = await Libp2pTransport.start(identity.libp2p_key(), NetworkOptions(host="127.0.0.1", nat=False))
    try:
        revocations = Revocations(SWARM.id, SWARM.owner)
        shown = certificate(SWARM, identity, now() - 10)
        gate = MembershipGate(MembershipGuard(SWARM, revocations), shown, now)
        directory = await DhtDirectory.start(
            transport.hivemind_p2p, identity, RecordReader(SWARM, revocations), bootstrap, clock=now
        )
        try:

            def own_record() -> NodeRecord:
                return record(identity, SWARM, certificate=shown, addresses=transport.addresses, started_at=now())

            meeting = DirectoryMeeting(directory, run_key(spec.name), own_record)
            exchange = RoundExchange(transport, gate, meeting, spec, options=QUICK)
            async with exchange:
                yield Trainer(transport, exchange, spec, [], compute_s=0.3)
        finally:
            await directory.stop()
    finally:
        with anyio.CancelScope(shield=True):
            await transport.stop()


def kill_daemon(transport: Libp2pTransport) -> None:
    next(p for p in psutil.Process(transport.daemon_pid).children() if p.name() == "p2pd").kill()


async def test_four_peers_train_over_real_daemons_and_one_is_killed() -> None:
    spec = run_spec(8 * 4096, 8, quorum=3, grace_s=3.0)
    with anyio.fail_after(120):
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(real_trainer(0, spec, ()))
            address = f"{first.transport.addresses[0]}/p2p/{first.transport.me}"
            rest = [await stack.enter_async_context(real_trainer(n, spec, (address,))) for n in (1, 2, 3)]
            victim, survivors = rest[1], [first, rest[0], rest[2]]
            async with anyio.create_task_group() as tasks:
                for one in (*survivors, victim):
                    tasks.start_soon(one.train, 3)
            assert len({one.state for one in (*survivors, victim)}) == 1
            assert isinstance(victim.transport, Libp2pTransport)
            kill_daemon(victim.transport)
            with pytest.raises(DaemonDied):
                await victim.exchange.exchange(victim.offer())
            async with anyio.create_task_group() as tasks:
                for one in survivors:
                    tasks.start_soon(one.train, 6)
            assert len({one.state for one in survivors}) == 1
            assert [outcome.round for outcome in first.outcomes] == list(range(6))
            assert len(first.outcomes[-1].contributors) == 3
            assert first.exchange.traffic.sent_payload_bytes > 0


async def test_a_clock_that_is_wrong_by_an_hour_is_told_before_any_round() -> None:
    spec = run_spec()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(real_trainer(0, spec, ()))
        address = f"{first.transport.addresses[0]}/p2p/{first.transport.me}"
        identity = person(1)
        transport = await Libp2pTransport.start(identity.libp2p_key(), NetworkOptions(host="127.0.0.1", nat=False))
        stack.push_async_callback(transport.stop)
        reader = RecordReader(SWARM, Revocations(SWARM.id, SWARM.owner))
        with pytest.raises(UsageError, match="clock is 3600 s ahead"):
            await DhtDirectory.start(transport.hivemind_p2p, identity, reader, (address,), clock=lambda: now() + 3600.0)
