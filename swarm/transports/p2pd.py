"""One p2pd child: started in a folder of its own, watched, and gone when we are gone, kill -9 included.

The child runs under a small shell that holds the other end of a pipe to us. When we die, however we die, the pipe
closes; the shell then kills p2pd and removes the folder with its sockets. hivemind's own launcher does neither.
"""

import asyncio
import contextlib
import errno
import ipaddress
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from shoal.swarm import private_file
from shoal.swarm.errors import DaemonDied, UsageError

from .hivemind_imports import p2pd_path

MAX_SOCKET_PATH = 107  # bytes of a unix socket's path
_LONGEST_SOCKET = "/shoal-12345678/p2pclient-12345678901.sock"  # below the temporary folder; hivemind names it so
_SHORT_FOLDER = Path("/tmp")  # noqa: S108  the folder made there is ours alone
CORES_FOR_ONE_THREAD = 4  # Go's idle threads look for work before they sleep, on cores that compute layers
_GUARD = """
exec 3<&0
"$@" </dev/null 3<&- &
daemon=$!
( read -r _ <&3; kill -9 $daemon; rm -rf "$SHOAL_RUNTIME" ) 2>/dev/null >/dev/null &
guard=$!
exec 3<&-
trap 'kill -9 $daemon' TERM
wait $daemon
code=$?
kill $guard 2>/dev/null
rm -rf "$SHOAL_RUNTIME"
exit $code
"""


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """How the daemon listens and finds its way through NATs."""

    host: str = "0.0.0.0"  # noqa: S104  a volunteer's node is there to be reached
    port: int = 0  # 0: any free one
    announce: tuple[str, ...] = ()  # multiaddrs to announce instead of those found
    bootstrap: tuple[str, ...] = ()  # multiaddrs with /p2p/
    relays: tuple[str, ...] = ()  # trusted relays, multiaddrs with /p2p/
    nat: bool = True  # AutoNAT, port mapping, relays
    listen: bool = True  # False: a client that nobody dials

    @property
    def loopback(self) -> bool:
        return self.host.startswith("127.") or self.host == "localhost"


def daemon_arguments(options: NetworkOptions, control: str, key_file: Path) -> list[str]:
    nat = int(options.nat and not options.loopback)
    arguments = [
        f"-listen={control}",
        f"-id={key_file}",
        "-tls=1",
        "-connManager=1",
        "-pubsub=1",
        "-idleTimeout=60s",
        f"-natPortMap={nat}",
        f"-autonat={nat}",
        f"-relay={nat}",
        f"-autoRelay={nat}",
        f"-relayService={nat}",
        f"-{'dhtServer' if options.listen else 'dhtClient'}=1",
        f"-b={int(bool(options.bootstrap))}",
    ]
    if options.listen:
        host = "127.0.0.1" if options.host == "localhost" else options.host
        arguments.append(f"-hostAddrs=/ip4/{host}/tcp/{options.port}")
    else:
        arguments.append("-noListenAddrs=1")
    for name, addresses in (
        ("bootstrapPeers", options.bootstrap),
        ("announceAddrs", options.announce),
        ("trustedRelays", options.relays if nat else ()),
    ):
        if addresses:
            arguments.append(f"-{name}={','.join(addresses)}")
    return arguments


def refuse_port_in_use(host: str, port: int) -> None:
    """p2pd listens with SO_REUSEPORT: two daemons on one port would share its connections at random.

    port: 0 asks only whether one can listen at this address
    raises: UsageError
    """
    if host != "localhost" and not _is_ipv4(host):
        raise UsageError(f"--host takes an IPv4 address of this machine such as 127.0.0.1, not {host!r}")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UsageError(
                    f"port {port} is in use; choose another with --port, or stop the other program"
                ) from error
            where, flags = (f"{host}:{port}", "--host and --port") if port else (host, "--host")
            raise UsageError(f"cannot listen on {where}: {error.strerror}; check {flags}") from error


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _runtime_folder() -> Path:
    """A new folder for the key and the sockets. raises: UsageError"""
    try:
        place = Path(tempfile.gettempdir())
        if len(os.fsencode(place)) + len(_LONGEST_SOCKET) > MAX_SOCKET_PATH:
            place = _SHORT_FOLDER
        return Path(tempfile.mkdtemp(prefix="shoal-", dir=place))
    except OSError as error:
        raise UsageError(f"cannot make a temporary folder: {error.strerror}; TMPDIR chooses where") from error


async def _spawn(options: NetworkOptions, folder: Path, key_file: Path) -> asyncio.subprocess.Process:
    """raises: DaemonDied when no process can be made"""
    try:
        return await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            _GUARD,
            "shoal-p2pd",
            str(p2pd_path()),
            *daemon_arguments(options, f"/unix{folder}/p2pd.sock", key_file),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={
                "SHOAL_RUNTIME": str(folder),
                "PATH": "/usr/bin:/bin",
                "GOLOG_LOG_LEVEL": "error",
                "HOME": str(folder),
                "GOMAXPROCS": str(max(1, (os.cpu_count() or 1) // CORES_FOR_ONE_THREAD)),
            },
            start_new_session=True,  # Ctrl-C reaches us alone; we stop the daemon in order
        )
    except OSError as error:
        raise DaemonDied(f"p2pd did not start: {error.strerror}") from error


class Daemon:
    """A running p2pd. `control` is its control multiaddr; `died` is set when it is gone, wanted or not."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.folder = folder
        self.control = f"/unix{folder}/p2pd.sock"
        self.died = asyncio.Event()
        self.last_line = ""
        self._process = process
        self._ready = asyncio.Event()
        self._reader = asyncio.create_task(self._read_output())

    @property
    def guard_pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, key: bytes, options: NetworkOptions, timeout_s: float = 20.0) -> "Daemon":
        """Start p2pd with a libp2p private key (protobuf bytes) and wait until it listens.

        raises: DaemonDied when it does not come up; UsageError when the port is taken; OutOfMemory (disk full)
        """
        if options.listen:
            refuse_port_in_use(options.host, options.port)
        folder = _runtime_folder()
        key_file = folder / "identity"
        try:
            private_file.write(key_file, key)
            daemon = cls(await _spawn(options, folder, key_file), folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # the key is in it
            raise
        try:
            async with asyncio.timeout(timeout_s):
                await daemon._ready.wait()
        except TimeoutError:
            await daemon.stop()
            raise DaemonDied(f"p2pd did not come up within {timeout_s:.0f} s") from None
        except BaseException:
            await asyncio.shield(daemon.stop())
            raise
        if daemon.died.is_set():
            await daemon.stop()
            if "address already in use" in daemon.last_line:
                raise UsageError(
                    f"port {options.port} is in use; choose another with --port, or stop the other program"
                )
            raise DaemonDied(f"p2pd did not start: {daemon.last_line or 'no message'}")
        key_file.unlink(missing_ok=True)  # read once at start; the node's own copy stays in its home
        return daemon

    async def _read_output(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            text = line.decode(errors="replace").strip()
            if text:
                self.last_line = text
            if text.startswith("Peer ID:"):
                self._ready.set()
        self.died.set()
        self._ready.set()

    async def stop(self) -> None:
        """End the daemon and wait for it; the guard removes the folder."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        await self._process.wait()
        await self._reader
        shutil.rmtree(self.folder, ignore_errors=True)
