"""Several real nodes on this machine's loopback, each a process with a home of its own: for the quickstart, tests and
benchmarks. Synchronous on purpose: its users are scripts.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from shoal.swarm.home import Home

START_S = 120.0
STOP_S = 20.0


class NodeDidNotStart(Exception):
    """The message holds what the node printed."""


@dataclass(slots=True)
class LocalNode:
    """A running `shoal up` or `shoal join`. events: those printed so far, as dictionaries."""

    name: str
    home: Home
    process: subprocess.Popen[str]
    events: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _arrived: "queue.Queue[dict[str, Any] | None]" = field(default_factory=queue.Queue)
    _readers: list[threading.Thread] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def key(self) -> str:
        return self.home.api_key()

    def event(self, name: str) -> dict[str, Any]:
        """The last event of this name. raises: KeyError"""
        for event in reversed(self.events):
            if event["event"] == name:
                return dict(event)
        raise KeyError(f"{self.name} has not said {name}")

    @property
    def api(self) -> str:
        return str(self.event("ready")["api"])

    def read_output(self) -> None:
        for reader in (self._read_events, self._read_errors):
            thread = threading.Thread(target=reader, name=f"local-swarm-{self.name}", daemon=True)
            thread.start()
            self._readers.append(thread)

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(msgspec.DecodeError):
                event = msgspec.json.decode(line, type=dict[str, Any])
                self.events.append(event)
                self._arrived.put(event)
        self._arrived.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(line.rstrip() for line in self.process.stderr)

    def wait_for(self, name: str, timeout_s: float = START_S) -> dict[str, Any]:
        """raises: NodeDidNotStart when the node ends, or says an error, before this event"""
        while True:
            try:
                event = self._arrived.get(timeout=timeout_s)
            except queue.Empty:
                raise NodeDidNotStart(f"{self.name} did not say {name} within {timeout_s:.0f} s") from None
            if event is None or event["event"] == "error":
                self.process.wait(STOP_S)
                raise NodeDidNotStart(f"{self.name} ended with {self.process.returncode}: {self._last_words(event)}")
            if event["event"] == name:
                return dict(event)

    def _last_words(self, event: dict[str, Any] | None) -> str:
        return str(event["message"]) if event and "message" in event else " / ".join(self.errors[-5:])

    def kill(self) -> None:
        """kill -9, as a power cut."""
        self.process.kill()
        self.process.wait(STOP_S)

    def stop(self) -> None:
        """Ask it to stop; insist after a while."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
        for thread in self._readers:
            thread.join(STOP_S)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """One compute thread, no colours, nothing inherited that would change a node."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SHOAL_")}
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1"}
    return {**kept, **one_thread, **(extra or {})}


def start_node(
    folder: Path, name: str, arguments: Sequence[str] = (), *, invite: str | None = None, detach: bool = False
) -> LocalNode:
    """Start a node and return at once; `wait_for("ready")` waits. folder: its home is made below it."""
    home = Home(folder / name)
    command = [sys.executable, "-P", "-m", "shoal", *(["join", invite] if invite else ["up"]), *arguments]
    command += ["--home", str(home.root), "--name", name, "--host", "127.0.0.1", "--threads", "1", "--json"]
    process = subprocess.Popen(  # noqa: S603  our own command
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=detach,
    )
    node = LocalNode(name, home, process)
    node.read_output()
    return node


@contextlib.contextmanager
def local_swarm(folder: Path, nodes: Mapping[str, Sequence[str]]) -> Iterator[dict[str, LocalNode]]:
    """Nodes by name, each with its own arguments to `shoal up`; the first founds the swarm and invites the others.

    raises: NodeDidNotStart
    """
    started: dict[str, LocalNode] = {}
    try:
        for name, arguments in nodes.items():
            invite = None
            if started:
                invite = create_invite(next(iter(started.values())))
            started[name] = start_node(folder, name, arguments, invite=invite)
            if len(started) == 1:
                started[name].wait_for("ready")
        for node in list(started.values())[1:]:
            node.wait_for("ready")
        yield started
    finally:
        for node in reversed(started.values()):
            node.stop()


def create_invite(owner: LocalNode) -> str:
    """A fresh single-use invite of the node that owns the swarm."""
    import httpx

    answer = httpx.post(
        f"{owner.api}/shoal/v1/invites", json={}, headers={"authorization": f"Bearer {owner.key}"}, timeout=30
    )
    answer.raise_for_status()
    return str(answer.json()["invite"])
