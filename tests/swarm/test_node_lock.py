"""One live node per identity."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from swarm.people import NOW, person, public_swarm, record

from shoal.swarm.errors import OutOfMemory, Refused, UsageError
from shoal.swarm.node_lock import NodeLock, clash, holder, refuse_clash, running

HOLD = (
    "import sys; from pathlib import Path; from shoal.swarm.node_lock import NodeLock\n"
    "with NodeLock(Path(sys.argv[1]), 'desk'):\n"
    "    print('held', flush=True); sys.stdin.read()"
)


def start_holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_node_is_refused_by_name_and_pid_until_the_first_stops(tmp_path: Path) -> None:
    path = tmp_path / "home" / "node.lock"
    first = start_holder(path)
    try:
        assert running(path) == (first.pid, "desk")
        with pytest.raises(Refused, match=f"node desk \\(pid {first.pid}\\) already runs.*shoal down") as caught:
            NodeLock(path, "second").__enter__()
        assert caught.value.exit_code == 4
    finally:
        first.communicate("", timeout=30)
    assert running(path) is None
    with NodeLock(path, "second"):
        assert running(path) == (os.getpid(), "second")
    assert holder(path) is None


def test_a_lock_left_by_kill_9_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "node.lock"
    first = start_holder(path)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=30)
    assert holder(path) == (first.pid, "desk")  # still written there
    assert running(path) is None
    with NodeLock(path, "second"):
        assert holder(path) == (os.getpid(), "second")


def test_a_lock_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot open"):
        NodeLock(tmp_path, "node").__enter__()  # a folder


def test_the_same_identity_on_another_machine_is_found() -> None:
    swarm = public_swarm()
    own = record(person(1), swarm, started_at=NOW)
    copy = record(person(1), swarm, started_at=NOW - 50, addresses=("/ip4/10.0.0.9/tcp/4001",), name="laptop")
    found = clash(own, [record(person(2), swarm), copy], NOW)
    assert found == copy
    assert "laptop at /ip4/10.0.0.9/tcp/4001" in str(refuse_clash(copy))


def test_own_records_and_dead_ones_are_no_clash() -> None:
    swarm = public_swarm()
    own = record(person(1), swarm, started_at=NOW)
    elsewhere = ("/ip4/10.0.0.9/tcp/4001",)
    earlier_run = record(person(1), swarm, started_at=NOW - 50, addresses=elsewhere)
    for harmless in (
        own,
        record(person(1), swarm, started_at=NOW - 50),  # the same port of this machine
        record(person(1), swarm, started_at=NOW - 50, addresses=elsewhere, expires_at=NOW),
        record(person(1), swarm, started_at=NOW - 50, addresses=elsewhere, withdrawn=True),
        record(person(2), swarm, started_at=NOW - 50, addresses=elsewhere),
    ):
        assert clash(own, [harmless], NOW) is None
    assert clash(own, [earlier_run], NOW) == earlier_run
    assert clash(own, [earlier_run], NOW, frozenset({NOW - 50})) is None


def test_a_full_disk_is_told_and_the_lock_is_free_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "node.lock"
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", fail)
        with pytest.raises(OutOfMemory, match="disk is full"), NodeLock(path, "ana"):
            pytest.fail("it holds a lock that says nobody's name")
    with NodeLock(path, "ana"):
        assert running(path) == (os.getpid(), "ana")
