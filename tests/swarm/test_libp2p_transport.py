"""The real transport keeps the contract, with real p2pd processes; and what only a real daemon can do wrong."""

import asyncio  # noqa: TID251  the adapter under test lives in it
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from swarm.transport_contract import Peers, PeersFactory, TransportContract

from shoal.swarm.errors import DaemonDied, UsageError
from shoal.swarm.transport import Transport
from shoal.swarm.transports.libp2p import Libp2pTransport
from shoal.swarm.transports.p2pd import NetworkOptions

pytestmark = pytest.mark.network
LOOPBACK = NetworkOptions(host="127.0.0.1")


def fresh_key() -> bytes:
    key = Ed25519PrivateKey.generate()
    return bytes.fromhex("08011240") + key.private_bytes_raw() + key.public_key().public_bytes_raw()


def p2pd_of(transport: Libp2pTransport) -> psutil.Process:
    return next(p for p in psutil.Process(transport.daemon_pid).children() if p.name() == "p2pd")


class RealPeers:
    def __init__(self) -> None:
        self.started: list[Libp2pTransport] = []

    async def start(self) -> Transport:
        transport = await Libp2pTransport.start(fresh_key(), LOOPBACK)
        for other in self.started:
            if not other.hivemind_p2p.is_alive or psutil.Process(other.daemon_pid).status() == psutil.STATUS_ZOMBIE:
                continue
            await transport.connect(other.me, other.addresses)
        self.started.append(transport)
        return transport

    async def kill(self, transport: Transport) -> None:
        assert isinstance(transport, Libp2pTransport)
        p2pd_of(transport).kill()


@asynccontextmanager
async def over_p2pd() -> AsyncIterator[Peers]:
    peers = RealPeers()
    try:
        yield peers
    finally:
        for transport in peers.started:
            await transport.stop()


class TestOverP2pd(TransportContract):
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def peers(self) -> PeersFactory:
        return over_p2pd


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_the_death_of_our_own_daemon_is_noticed_at_once() -> None:
    transport = await Libp2pTransport.start(fresh_key(), LOOPBACK)
    try:
        p2pd_of(transport).kill()
        with anyio.fail_after(15):
            await transport.died()
        with anyio.fail_after(15), pytest.raises(DaemonDied):
            await transport.call(
                transport.me.__class__("12D3KooWJTFPHkxW2HLyH6ckBn99jPEbPYJERpSYjtALoCPDTg41"), "x", b""
            )
    finally:
        await transport.stop()


@pytest.mark.anyio
async def test_in_the_moment_of_our_own_daemons_death_no_peer_is_called_unreachable() -> None:
    transport = await Libp2pTransport.start(fresh_key(), LOOPBACK)
    other = await Libp2pTransport.start(fresh_key(), LOOPBACK)
    try:
        await transport.connect(other.me, other.addresses)
        p2pd_of(transport).kill()
        with pytest.raises(DaemonDied):  # not seen yet: no turn of the event loop since
            await transport.open(other.me, "anything")
        with pytest.raises(DaemonDied):
            await transport.connect(other.me, other.addresses)
    finally:
        await other.stop()
        await transport.stop()


@pytest.mark.anyio
async def test_a_port_in_use_is_named_in_one_line() -> None:
    first = await Libp2pTransport.start(fresh_key(), LOOPBACK)
    try:
        port = int(first.addresses[0].rpartition("/")[2])
        with pytest.raises(UsageError, match=f"port {port} is in use"):
            await Libp2pTransport.start(fresh_key(), NetworkOptions(host="127.0.0.1", port=port))
    finally:
        await first.stop()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("host", "words"),
    [("300.1.1.1", "IPv4"), ("::1", "IPv4"), ("example", "IPv4"), ("", "IPv4"), ("192.0.2.1", "cannot listen on")],
)
async def test_an_address_that_is_not_of_this_machine_is_refused_in_our_words(host: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        await Libp2pTransport.start(fresh_key(), NetworkOptions(host=host))
    assert "/ip4/" not in str(caught.value)


@pytest.mark.anyio
async def test_sockets_fit_however_long_the_temporary_folders_path_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for length in (66, 120):
        deep = Path(tempfile.gettempdir(), "d" * 100)
        deep = deep.with_name("d" * (length - len(str(deep.parent)) - 1))
        deep.mkdir()
        with monkeypatch.context() as changed:
            changed.setattr(tempfile, "tempdir", str(deep))
            transport = await Libp2pTransport.start(fresh_key(), LOOPBACK)
            try:
                assert transport.addresses
                assert not list(deep.iterdir())
            finally:
                await transport.stop()


def left() -> list[Path]:
    return list(Path(tempfile.gettempdir()).iterdir())


@pytest.mark.anyio
@pytest.mark.parametrize("error", [OSError(11, "too many processes"), asyncio.CancelledError()])
async def test_a_daemon_that_cannot_be_started_leaves_no_key(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(asyncio, "create_subprocess_exec", fail)
    with pytest.raises((DaemonDied, asyncio.CancelledError)):
        await Libp2pTransport.start(fresh_key(), LOOPBACK)
    assert left() == []


@pytest.mark.anyio
async def test_a_node_can_open_streams_to_itself() -> None:
    transport = await Libp2pTransport.start(fresh_key(), LOOPBACK)
    try:

        async def echo(stream: object) -> None:
            while (frame := await stream.receive()) is not None:  # type: ignore[attr-defined]
                await stream.send(frame)  # type: ignore[attr-defined]
            await stream.close()  # type: ignore[attr-defined]

        await transport.serve("test/echo", echo)
        stream = await transport.open(transport.me, "test/echo")
        await stream.send(b"to myself")
        assert await stream.receive() == b"to myself"
        await stream.close()
    finally:
        await transport.stop()


_KILLED = """
import os, signal, sys
import anyio
from shoal.swarm.transports.libp2p import Libp2pTransport
from shoal.swarm.transports.p2pd import NetworkOptions

async def main():
    transport = await Libp2pTransport.start(bytes.fromhex(sys.argv[1]), NetworkOptions(host="127.0.0.1"))
    print(transport.daemon_pid, transport._daemon.folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main)
"""


def test_a_node_killed_with_9_takes_its_daemon_and_its_sockets_along() -> None:
    process = subprocess.run(
        [sys.executable, "-c", _KILLED, fresh_key().hex()],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "TMPDIR": tempfile.gettempdir()},
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    pid, folder = process.stdout.split()
    until = time.perf_counter() + 10
    while _alive(int(pid)) or Path(folder).exists():
        assert time.perf_counter() < until, "the daemon or its folder outlived the node"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
