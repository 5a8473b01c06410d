"""`--detach`: the same command again as a process of its own, watched until it is ready."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from shoal.node.node_events import Ready
from shoal.swarm.errors import ShoalError
from shoal.swarm.home import Home

from .output import Output
from .start_screen import StartScreen, read_event

FILE = "detached.log"
LOOK_S = 0.1
STOP_S = 30.0


class StartFailed(ShoalError):
    """What the process in the background said before it ended."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def start_detached(home: Home, invite: str | None, output: Output) -> None:
    """Returns when the node is ready.

    raises: StartFailed; KeyboardInterrupt when told to stop, and then the node is stopped too
    """
    home.prepare()
    path = home.logs / FILE
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with path.open("ab") as sink, path.open("rb") as source:
        process = _spawn(sink, invite)
        try:
            _follow(process, source, StartScreen(output, home, _words(home, process.pid)))
        except BaseException:
            _stop(process)
            raise
    output.event("detached", pid=process.pid, log=str(home.logs / "node.log"))


def _spawn(sink: IO[bytes], invite: str | None) -> subprocess.Popen[bytes]:
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--detach", "-d", "--json")]
    from_stdin = "-" in arguments
    process = subprocess.Popen(  # noqa: S603  our own command line
        [sys.executable, "-m", "shoal", *arguments, "--json"],
        stdin=subprocess.PIPE if from_stdin else subprocess.DEVNULL,
        stdout=sink,
        stderr=sink,
        start_new_session=True,  # it outlives this terminal
    )
    if from_stdin and process.stdin is not None:
        process.stdin.write((invite or "").encode())
        process.stdin.close()
    return process


def _follow(process: subprocess.Popen[bytes], source: IO[bytes], screen: StartScreen) -> None:
    """Show what the node says until it is ready."""
    rest = b""
    while True:
        ended = _ended(process)
        rest += source.read()
        *lines, rest = rest.split(b"\n")
        for facts in _facts(lines):
            name = facts.pop("event")
            if name == "error":
                process.wait(STOP_S)
                raise StartFailed(str(facts["message"]), int(facts["exit_code"]))
            event = read_event(name, facts)
            if event is not None:
                screen.show(event)
            if isinstance(event, Ready):
                return
        if ended:
            last = [line for line in lines if line.strip()]
            words = last[-1].decode(errors="replace") if last else f"see {source.name}"
            raise StartFailed(f"the node ended before it was ready: {words}", process.returncode or 1)


def _facts(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    """The events among the lines; others belong to the log."""
    for line in lines:
        try:
            facts = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            continue
        if facts.pop("schema", None) is not None and "event" in facts:
            yield facts


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(LOOK_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _words(home: Home, pid: int) -> str:
    where = "" if home == Home.find() else f" --home {home.root}"
    return f"It runs in the background as process {pid}; its log: {_log(home)}. `shoal down{where}` stops it."


def _log(home: Home) -> Path:
    return home.logs / "node.log"
