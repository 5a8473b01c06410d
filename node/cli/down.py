"""`shoal down`: stop the node of this home and wait until it is gone."""

import os
import signal
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .flags import HomeFlag, JsonFlag
from .output import Output

if TYPE_CHECKING:
    from .node_api import NodeApi

LOOK_S = 0.05
ASK_S = 5.0


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: shoal down --timeout 60")(down)


def down(
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait until it is gone.")] = 30.0,
    drain: Annotated[
        bool, typer.Option("--drain", help="Wait until its sessions have gone on elsewhere, or have ended.")
    ] = False,
    drain_limit: Annotated[float, typer.Option("--drain-limit", min=0.1, help="Seconds that --drain may take.")] = 60.0,
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Stop the node that runs here; it tells its peers and moves its sessions to others that can go on with them.

    It asks over HTTP and, where that has no answer, with SIGTERM. Sessions that nobody can go on with end, unless
    --drain waits for them.
    """
    from shoal.swarm.errors import LocalFault, ShoalError, SwarmUnreachable, UsageError
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
    body = {"drain_s": drain_limit} if drain else None
    try:
        api = NodeApi(place, ASK_S)
        api.ask("POST", "/shutdown", body)
    except ShoalError as error:
        if drain and isinstance(error, UsageError):
            raise
        asked_by = "SIGTERM"
        _terminate(pid)
    output.note(f"stopping node {name} (pid {pid}) ...")
    if drain and asked_by == "HTTP":
        timeout += drain_limit
        _follow(api, output, name, began_s + timeout)
    while _is_alive(pid) or running(place.lock) == live:
        if time.perf_counter() - began_s > timeout:
            raise LocalFault(f"node {name} did not stop within {timeout:.0f} s; end it with: kill -9 {pid}")
        time.sleep(LOOK_S)
    seconds = time.perf_counter() - began_s
    output.event("stopped", name=name, pid=pid, asked_by=asked_by, seconds=seconds)
    output.line(f"node {name} stopped after {seconds:.1f} s")


def _follow(api: "NodeApi", output: Output, name: str, until_s: float) -> None:
    """Tell how far the node is with its sessions, until it no longer answers."""
    from shoal.swarm.errors import ShoalError

    told = None
    while time.perf_counter() < until_s:
        try:
            leaving = api.get("/status").get("leaving")
        except ShoalError:
            break
        if leaving is not None and leaving != told:
            told = leaving
            output.event("draining", name=name, **leaving)
            output.note(_in_words(leaving))
        time.sleep(LOOK_S)
    if told is None:
        output.note("no session ran here")
    elif told["waiting"]:
        output.note(f"the time is up; {told['waiting']} sessions were still here")


def _in_words(leaving: dict[str, Any]) -> str:
    line = f"{leaving['moved']} of {leaving['sessions']} sessions moved, {leaving['ended']} ended"
    if leaving["waiting"]:
        line += f", {leaving['waiting']} still here"
    if leaving["stranded"]:
        line += f" (no successor: {leaving['stranded']})"
    return line


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
