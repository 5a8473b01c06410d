"""`--detach`: the same command again as a process of its own, watched until it is ready.

Its events come through a pipe, which a full disk does not hinder; what it says on stderr stands in logs/detached.log.
"""

import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import msgspec

from shoal.node.node_events import Ready
from shoal.swarm.errors import ShoalError, UsageError
from shoal.swarm.home import Home

from .failures import ERROR
from .output import Output
from .start_screen import StartScreen, read_event

FILE = "detached.log"
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _log_file(path) as sink:
        process = _spawn(sink, invite)
    assert process.stdout is not None
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        with process.stdout as events:  # closed in the end: the node says nothing more to anybody
            _follow(process, events, path, StartScreen(output, home, _words(home, process.pid)))
    except BaseException:
        _stop(process)
        raise
    output.event("detached", pid=process.pid, log=str(home.logs / "node.log"))


def _log_file(path: Path) -> IO[bytes]:
    """raises: UsageError"""
    try:
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        return path.open("ab")
    except OSError as error:
        raise UsageError(f"cannot write the log {path}: {error.strerror}") from error


def _spawn(sink: IO[bytes], invite: str | None) -> subprocess.Popen[bytes]:
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--detach", "-d", "--json")]
    from_stdin = "-" in arguments
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # until the caller knows the process
    process = subprocess.Popen(  # noqa: S603  our own command line
        [sys.executable, "-P", "-m", "shoal", *arguments, "--json"],  # -P: what lies in this folder is no module
        stdin=subprocess.PIPE if from_stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=sink,
        start_new_session=True,  # it outlives this terminal
    )
    if from_stdin and process.stdin is not None:
        process.stdin.write((invite or "").encode())
        process.stdin.close()
    return process


def _follow(process: subprocess.Popen[bytes], events: IO[bytes], log: Path, screen: StartScreen) -> None:
    """Show what the node says until it is ready."""
    for line in events:
        facts = _facts(line)
        name = facts.pop("event", "")
        if name == "error":
            process.wait(STOP_S)
            raise StartFailed(str(facts["message"]), int(facts["exit_code"]))
        event = read_event(name, facts)
        if event is not None:
            screen.show(event)
        if isinstance(event, Ready):
            return
    code = process.wait()
    raise StartFailed(f"the node ended before it was ready: {_last_words(code, log)}", code if code > 0 else ERROR)


def _facts(line: bytes) -> dict[str, Any]:
    """An event; empty for any other line."""
    try:
        facts = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}
    return facts if facts.pop("schema", None) is not None else {}


def _last_words(code: int, log: Path) -> str:
    """Why a process ended that told no error. code: as subprocess gives it, below 0 for a signal"""
    lines = log.read_text(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"{how}: {said[-1]}" if said else how


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
