"""One live node per identity: a kernel lock on this machine, and a look at the swarm's records for other machines."""

import fcntl
import os
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from . import private_file
from .errors import Refused, UsageError
from .records import NodeRecord

CLIENT_NAME = "client"  # in the lock of a command that asks the peers itself, without a node


class NodeLock:
    """Held while a node runs. The kernel drops it when the process ends in any way, kill -9 included.

    raises on entering: Refused when another live node holds it; OutOfMemory (disk full), UsageError
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._handle = -1

    def __enter__(self) -> Self:
        private_file.make_folder(self._path.parent)
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(f"cannot open {self._path}: {error.strerror}") from error
        try:
            self._take(handle)
            self._sign(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return self

    def _take(self, handle: int) -> None:
        for last in (False, False, False, False, True):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid, name = holder(self._path) or (0, "?")
                if last or _is_alive(pid):
                    raise Refused(
                        f"node {name} (pid {pid}) already runs with this identity; "
                        "stop it with `shoal down` or use another --home"
                    ) from None
                time.sleep(0.02)  # a command that asks `running` holds it for a moment
            except OSError as error:
                raise UsageError(f"cannot lock {self._path}: {error.strerror}") from error
            else:
                return

    def _sign(self, handle: int) -> None:
        """raises: OutOfMemory when the disk is full"""
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} {self._name}\n".encode(), 0)
        except OSError as error:
            raise private_file.cannot_write(self._path, error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.ftruncate(self._handle, 0)
        os.close(self._handle)
        self._handle = -1


def holder(path: Path) -> tuple[int, str] | None:
    """The pid and name written in a lock file; says nothing about whether that node is alive."""
    try:
        pid, _, name = path.read_text(errors="replace").strip().partition(" ")
        return int(pid), name
    except (OSError, ValueError):
        return None


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def running(path: Path) -> tuple[int, str] | None:
    """The pid and name of the live node that holds the lock, or None."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder(path)
    except OSError:
        return None
    else:
        return None
    finally:
        os.close(handle)


def clash(
    own: NodeRecord, seen: Iterable[NodeRecord], now: float, earlier_starts: frozenset[float] = frozenset()
) -> NodeRecord | None:
    """A live record with our PeerID that another machine or home wrote: somebody copied the identity.

    earlier_starts: `started_at` of earlier runs from this home, whose last record may outlive them
    """
    for record in seen:
        if record.peer != own.peer or record.withdrawn or record.expires_at <= now:
            continue
        if record.started_at == own.started_at or record.started_at in earlier_starts:
            continue
        if record.addresses == own.addresses:  # our own last run on the same port
            continue
        return record
    return None


def refuse_clash(other: NodeRecord) -> Refused:
    """The error for what `clash` found."""
    where = other.addresses[0] if other.addresses else "an unknown address"
    return Refused(
        f"a node named {other.name} at {where} already runs with this identity; "
        "stop it, or use another --home here to get a new identity"
    )
