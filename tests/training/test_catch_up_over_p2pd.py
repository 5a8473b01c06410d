"""A late joiner over real daemons: one donor's daemon is killed on the way, one lies, and the joiner is in step."""

from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from swarm.bundles import member
from training.training_group import Group, Peer

from shoal.swarm.identifiers import PeerId
from shoal.swarm.transfer.block_transfer_donor import BlockDonor, on_thread
from shoal.swarm.transfer.block_transfer_fetch import Threads
from shoal.swarm.transfer.block_transfer_messages import ANSWERS, REQUESTS, BlockAnswer
from shoal.swarm.transports.libp2p import Libp2pTransport
from shoal.swarm.transports.p2pd import NetworkOptions

pytestmark = pytest.mark.network
RATE_BYTE_S = 300_000.0  # the transfer takes about a second from two donors


def fresh_key() -> bytes:
    key = Ed25519PrivateKey.generate()
    return bytes.fromhex("08011240") + key.private_bytes_raw() + key.public_key().public_bytes_raw()


class Liar(BlockDonor):
    """Has the right listings, and zeros for blocks."""

    async def answer(self, caller: PeerId, body: bytes) -> bytes:
        request = REQUESTS.decode(body)
        if not request.file:
            return await super().answer(caller, body)
        return ANSWERS.encode(BlockAnswer(1 << 20, bytes(request.length), 0.0))


def test_a_late_joiner_is_in_step_though_one_donor_is_killed_and_one_lies(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:

            async def start() -> Libp2pTransport:
                transport = await Libp2pTransport.start(fresh_key(), NetworkOptions(host="127.0.0.1", nat=False))
                stack.push_async_callback(transport.stop)
                return transport

            honest, mortal, liar, joiner = [await start() for _ in range(4)]
            group = Group(tmp_path, every=3)
            for transport in (honest, mortal, liar):
                folder = tmp_path / transport.me[-8:]
                peer = Peer(folder, member(transport), rate_byte_s=RATE_BYTE_S, thread=on_thread)
                if transport is liar:
                    peer.donor = Liar((peer.store, peer.log), RATE_BYTE_S)
                await peer.serve()
                group.peers[transport.me] = peer
                await joiner.connect(transport.me, transport.addresses)
            group.advance(11)

            late = Peer(tmp_path / "late", member(joiner))
            killed = anyio.Event()

            async def kill() -> None:
                while group.peers[mortal.me].donor.served_bytes < 100_000:  # noqa: ASYNC110  tells nobody
                    await anyio.sleep(0.01)
                guard = psutil.Process(mortal.daemon_pid)
                next(child for child in guard.children() if child.name() == "p2pd").kill()
                killed.set()

            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(kill)
                    report = await late.catch_up(Threads()).run(group.names)
            assert killed.is_set()
            assert late.replica.state == group.peers[honest.me].replica.state
            assert report.fetched.faulty == {liar.me}
            assert report.checkpoint is not None
            alone_s = report.fetched.fetched_bytes / RATE_BYTE_S
            assert report.seconds < alone_s + 2.0, "even if one donor had brought everything from the start"

    anyio.run(scenario)
