"""`shoal down`: stop the node of this home and wait until it is gone."""

import os
import signal
import time
from typing import Annotated

import typer

from .flags import HomeFlag, JsonFlag
from .output import Output

LOOK_S = 0.05
ASK_S = 5.0


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: shoal down --timeout 60")(down)


def down(
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait until it is gone.")] = 30.0,
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Stop the node that runs here; it tells its peers and ends its sessions.

    It asks over HTTP and, where that has no answer, with SIGTERM.
    """
    from shoal.swarm.errors import LocalFault, ShoalError, SwarmUnreachable
    from shoal.swarm.home import Home
    from shoal.swarm.node_lock import running

    from .node_api import NodeApi

    output = Output(json)
    place = Home.find(home)
    live = running(place.lock)
    if live is None:
        raise SwarmUnreachable("no node is running here")
    pid, name = live
    began_s = time.perf_counter()
    asked_by = "HTTP"
    try:
        NodeApi(place, ASK_S).ask("POST", "/shutdown")
    except ShoalError:
        asked_by = "SIGTERM"
        _terminate(pid)
    output.note(f"stopping node {name} (pid {pid}) ...")
    while _is_alive(pid) or running(place.lock) == live:
        if time.perf_counter() - began_s > timeout:
            raise LocalFault(f"node {name} did not stop within {timeout:.0f} s; end it with: kill -9 {pid}")
        time.sleep(LOOK_S)
    seconds = time.perf_counter() - began_s
    output.event("stopped", name=name, pid=pid, asked_by=asked_by, seconds=seconds)
    output.line(f"node {name} stopped after {seconds:.1f} s")


def _terminate(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return  # it went by itself meanwhile
    except PermissionError as error:
        from shoal.swarm.errors import Refused

        raise Refused(f"process {pid} belongs to another user; stop it as that user") from error


def _is_alive(pid: int) -> bool:
    """A zombie is gone: only its parent has not looked yet."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
