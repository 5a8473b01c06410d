"""The command line as a user runs it: in a process of its own, or in this one where that is as good."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shoal.node.cli.main import main
from shoal.swarm.node_lock import running

PATIENCE_S = 60.0
STOP_S = 60.0  # a busy machine takes long to start, too
HERE = ["--host", "127.0.0.1", "--threads", "1", "--api-port", "0"]


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def complaint(self) -> str:
        """The one line of an error, and nothing else on stderr."""
        lines = [line for line in self.err.splitlines() if line.startswith("shoal: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("shoal: ")


def environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_ENDPOINT": "http://127.0.0.1:9", **extra}


def spawn(arguments: Sequence[str], **extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "shoal", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**extra),
    )


def run(*arguments: str, stdin: str = "", timeout_s: float = PATIENCE_S) -> Ran:
    """In a process of its own."""
    command = [sys.executable, "-m", "shoal", *arguments]
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, env=environment(), timeout=timeout_s, check=False
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def begun(home: Path, stage: str, arguments: Sequence[str] = (), **extra: str) -> subprocess.Popen[str]:
    """A `shoal up` that has just said this event."""
    process = spawn(["up", "--json", "--home", str(home), "--name", "ana", *HERE, *arguments], **extra)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == stage:
            return process
    raise AssertionError(f"it ended before {stage}: {process.communicate()[1]}")


def ended(process: subprocess.Popen[str]) -> Ran:
    out, err = process.communicate(timeout=STOP_S)
    return Ran(process.returncode, out, err)


def assert_free(home: Path) -> None:
    """The lock is given back and no facts of a running node are left. Processes and sockets: `nothing_left_behind`."""
    assert running(home / "node.lock") is None
    assert not (home / "node.json").exists()


class Here:
    """Commands in this process, with a home of their own."""

    def __init__(self, home: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self._capture = capture

    def __call__(self, *arguments: str) -> Ran:
        self._capture.readouterr()
        code = main(arguments)
        captured = self._capture.readouterr()
        return Ran(code, captured.out, captured.err)
