"""Checks of the daemon, the ports, the running node and the model hub."""

import http.client
import os
import socket
import statistics
import time
from urllib.parse import urlsplit

import anyio

from shoal.node.api_server import DEFAULT_PORT
from shoal.swarm.errors import ShoalError
from shoal.swarm.home import Home
from shoal.swarm.node_lock import running
from shoal.swarm.records import ANNOUNCE_PERIOD_S, CLOCK_SLACK_S, RECORD_TTL_S
from shoal.swarm.transport import Stream

from .check import Finding
from .node_api import NodeApi
from .status_view import counted

ECHOES = 50
ECHO_PROTOCOL = "/shoal/doctor-echo/1"
LOOPBACK_S = 30.0
HUB = "https://huggingface.co"
HUB_S = 5.0
SLOW_ECHO_MS = 20.0


def daemon() -> Finding:
    """Two temporary p2pd on loopback that send each other 1 KB."""
    try:
        started_s, echo_ms = anyio.run(_echo_over_loopback, backend="asyncio", backend_options={"use_uvloop": True})
    except (ShoalError, OSError, TimeoutError) as error:
        advice = "a firewall on loopback, a full process table or a missing binary can be the cause"
        return Finding("p2pd", "fail", str(error) or type(error).__name__, advice)
    detail = f"two daemons started in {started_s:.1f} s, 1 KB there and back in {echo_ms:.2f} ms"
    if echo_ms > SLOW_ECHO_MS:
        return Finding("p2pd", "warn", detail, "this machine is very busy; a token takes one such trip per hop")
    return Finding("p2pd", "ok", detail)


async def _echo_over_loopback() -> tuple[float, float]:
    """returns: seconds until both ran, median milliseconds of a round trip"""
    from shoal.swarm.identity import Identity
    from shoal.swarm.transports.libp2p import Libp2pTransport
    from shoal.swarm.transports.p2pd import NetworkOptions

    options = NetworkOptions(host="127.0.0.1", nat=False)
    began_s = time.perf_counter()
    with anyio.fail_after(LOOPBACK_S):
        here = await Libp2pTransport.start(Identity.generate().libp2p_key(), options)
        try:
            there = await Libp2pTransport.start(Identity.generate().libp2p_key(), options)
            try:
                started_s = time.perf_counter() - began_s
                await there.serve(ECHO_PROTOCOL, _echo)
                await here.connect(there.me, there.addresses)
                return started_s, await _round_trip_ms(await here.open(there.me, ECHO_PROTOCOL))
            finally:
                await there.stop()
        finally:
            await here.stop()


async def _echo(stream: Stream) -> None:
    while (frame := await stream.receive()) is not None:
        await stream.send(frame)
    await stream.close()


async def _round_trip_ms(stream: Stream) -> float:
    times = []
    for _ in range(ECHOES):
        began_s = time.perf_counter()
        await stream.send(bytes(1024))
        await stream.receive()
        times.append(time.perf_counter() - began_s)
    await stream.close()
    return statistics.median(times) * 1000


def ports(home: Home) -> Finding:
    if running(home.lock):
        return Finding("ports", "ok", "a node runs here and has its own")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", DEFAULT_PORT))
        except OSError as error:
            detail = f"127.0.0.1:{DEFAULT_PORT} for the HTTP API: {error.strerror}"
            return Finding("ports", "warn", detail, "a node will take any free port, or the one that --api-port names")
    return Finding("ports", "ok", f"127.0.0.1:{DEFAULT_PORT} is free for the HTTP API")


def node(home: Home) -> Finding:
    """The node of this home, and its clock against those of its peers."""
    live = running(home.lock)
    if live is None:
        return Finding("node", "ok", "none runs here")
    try:
        peers = NodeApi(home).get("/peers")["peers"]
    except ShoalError as error:
        return Finding("node", "fail", str(error), f"look into {home.logs}/node.log, or stop it with `shoal down`")
    others = [peer for peer in peers if not peer["me"]]
    detail = f"{live[1]} (pid {live[0]}), {counted(len(others), 'other peer')}"
    ahead = [p["name"] for p in others if p["expires_in_s"] > RECORD_TTL_S + CLOCK_SLACK_S / 2]
    behind = [p["name"] for p in others if p["expires_in_s"] < RECORD_TTL_S - ANNOUNCE_PERIOD_S - 2 * CLOCK_SLACK_S]
    if ahead or behind:
        advice = "set the clocks by network time, here and there; records live for seconds"
        return Finding("node", "warn", f"{detail}; clock differs from {', '.join(ahead + behind)}", advice)
    return Finding("node", "ok", detail)


def hub() -> Finding:
    address = os.environ.get("HF_ENDPOINT") or HUB
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return Finding("hub", "ok", "HF_HUB_OFFLINE is set: only models that are here already")
    place = urlsplit(address)
    kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(place.hostname or "", place.port, timeout=HUB_S)
        connection.request("HEAD", place.path or "/")
        status = connection.getresponse().status
        connection.close()
    except (OSError, http.client.HTTPException) as error:
        advice = "the embedded model, folders and models from peers work without a hub"
        return Finding("hub", "warn", f"{address} does not answer ({error})", advice)
    return Finding("hub", "ok", f"{address} answers ({status})")
