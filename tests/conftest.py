"""Fixtures for every test: virtual time, and the check that a test with real nodes leaves nothing behind."""

import contextlib
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

# a machine that stands still for a fifth of a second is no fault of what is tested
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

CLEAN_UP_S = 10.0  # a node that was told to stop may take this long


def pytest_configure() -> None:
    """Signals that were ignored where the tests were started (`nohup`, a script's `&`) would be by every node too."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, object]]:
    """An anyio backend whose clock jumps over waiting, and whose scheduling repeats.

    In a test file: `@pytest.fixture` `def anyio_backend(virtual_time): return virtual_time`.
    """
    import trio.testing  # noqa: TID251
    from trio._core import _run  # noqa: TID251

    monkeypatch.setattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)  # as pytest-trio and hypothesis do
    monkeypatch.setattr(_run, "_r", random.Random(0))
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After a test marked `network`: no process, no shoal folder and no shoal thread of its own is left.

    The test gets a temporary folder of its own, by which its processes are known, orphans included. Nodes
    that a fixture of wider scope started before it are not touched.
    """
    if request.node.get_closest_marker("network") is None:
        yield
        return
    tmp_path_factory.getbasetemp()  # pytest's own folders stay outside of ours
    threads = set(threading.enumerate())
    root = Path(tempfile.mkdtemp(prefix="st-"))  # short: unix sockets go below it
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("TMPDIR", str(root))
    monkeypatch.setattr(tempfile, "tempdir", None)
    try:
        yield
    finally:
        monkeypatch.undo()
        leftovers = _await_nothing(root, threads)
        for process in _processes(root):
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(root, ignore_errors=True)
    assert not leftovers, f"left behind: {', '.join(leftovers)}"


def _await_nothing(root: Path, threads: set[threading.Thread]) -> list[str]:
    deadline = time.monotonic() + CLEAN_UP_S  # noqa: TID251  the real clock of real processes
    while True:
        leftovers = [
            *(f"process {p.pid} ({_command(p)})" for p in _processes(root)),
            *(f"folder {f.name}" for f in root.glob("shoal-*")),
            *(f"thread {t.name}" for t in set(threading.enumerate()) - threads if t.name.startswith("shoal")),
        ]
        if not leftovers or time.monotonic() > deadline:  # noqa: TID251
            return leftovers
        time.sleep(0.05)


def _processes(root: Path) -> list[psutil.Process]:
    """Living processes that were started with this temporary folder, by environment or command line."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            mine = process.environ().get("TMPDIR") == str(root)
            if mine or any(str(root) in argument for argument in process.cmdline()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:200]
    except (psutil.Error, OSError):
        return "gone meanwhile"
