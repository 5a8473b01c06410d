"""`shoal train` as a user runs it: processes of one private swarm on loopback, and what they say."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shoal.node.local_swarm import LocalNode, create_invite, environment
from shoal.swarm.home import Home

PATIENCE_S = 150.0


def start_trainer(config: Path, folder: Path, name: str, *more: str, invite: str | None = None) -> LocalNode:
    """Returns at once. folder: its home is below it; when a node runs there, that one trains."""
    home = Home(folder / name)
    command = [sys.executable, "-m", "shoal", "train", str(config), "--home", str(home.root), "--name", name, *more]
    command += ["--host", "127.0.0.1", "--api-port", "0", "--json", *(["--invite", invite] if invite else [])]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment({"PYTHONPATH": os.pathsep.join(sys.path)}),
    )
    node = LocalNode(name, home, process)
    node.read_output()
    return node


class Trainers:
    """The first one founds the swarm."""

    def __init__(self, config: Path, folder: Path) -> None:
        self._config, self._folder = config, folder
        self.all: dict[str, LocalNode] = {}

    def start(self, name: str, *more: str) -> LocalNode:
        invite = create_invite(next(iter(self.all.values()))) if self.all and name not in self.all else None
        self.all[name] = start_trainer(self._config, self._folder, name, *more, invite=invite)
        return self.all[name]

    def stop(self) -> None:
        for node in self.all.values():
            node.stop()


@contextlib.contextmanager
def trainers(config: Path, folder: Path) -> Iterator[Trainers]:
    found = Trainers(config, folder)
    try:
        yield found
    finally:
        found.stop()


def said(node: LocalNode, name: str) -> list[dict[str, Any]]:
    return [event for event in node.events if event["event"] == name]


def wait_until(reached: Callable[[], bool], *nodes: LocalNode, timeout_s: float = PATIENCE_S) -> None:
    """raises: AssertionError with what the trainers said last"""
    deadline = time.perf_counter() + timeout_s
    while not reached():
        ended = [node for node in nodes if node.process.poll() is not None]
        if ended or time.perf_counter() > deadline:
            told = "\n".join(f"{n.name} {n.process.poll()} {n.events[-3:]} {n.errors[-5:]}" for n in nodes)
            raise AssertionError(f"{[node.name for node in ended]} ended, or time was up:\n{told}")
        time.sleep(0.05)
