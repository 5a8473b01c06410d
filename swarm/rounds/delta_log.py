"""The aggregates of a run's rounds on disk: what a late joiner replays, an inference node follows, an auditor checks.

One file for each outcome, written aside, brought to the disk and renamed: an entry is there whole or not at all,
whenever the machine dies. Each starts from the state that the one before leads to, so a log is one chain.
"""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shoal.swarm.errors import MalformedMessage, OutOfMemory
from shoal.swarm.transfer.block_transfer_donor import Bundle
from shoal.swarm.transfer.block_transfer_listing import BundleId, bundle_id, encode_listing

from .delta_entry import DeltaEntry, bundle_of, file_name, head_of, listing_of, read_about, read_head, read_outcome
from .exchange import Outcome

_NAME = re.compile(r"^\d{10}\.delta$")
_PARTIAL = ".partial-"


@dataclass(frozen=True, slots=True)
class LogLimits:
    """What the oldest entries give way to."""

    entries: int = 4096
    total_bytes: int = 8 << 30


class DeltaLog:
    """The log of one run in a folder of its own, one writer. It is also a shelf of bundles to give away.

    A log is one chain: `append` takes only what starts where the last entry ends. refused: files that were damaged and
    dropped when the log was opened
    """

    def __init__(self, folder: Path, run: str, limits: LogLimits | None = None) -> None:
        """raises: OutOfMemory when the folder cannot be used"""
        self.folder, self.run = folder, run
        self.refused: tuple[str, ...] = ()
        self._limits = limits or LogLimits()
        self._entries: list[DeltaEntry] = []
        self._by_bundle: dict[BundleId, tuple[Path, bytes]] = {}
        self._total_bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(_PARTIAL + "*"):
                left.unlink()
            self._read_folder()
        except OSError as error:
            raise _disk(folder, error) from error

    @property
    def entries(self) -> Sequence[DeltaEntry]:
        """Oldest first."""
        return tuple(self._entries)

    @property
    def last(self) -> DeltaEntry | None:
        return self._entries[-1] if self._entries else None

    @property
    def total_bytes(self) -> int:
        return self._total_bytes

    def append(self, outcome: Outcome, before: bytes, after: bytes) -> DeltaEntry:
        """Keep an outcome that was applied; on return it is on the disk. Once more does no harm.

        before, after: hash of the outer state
        raises: ValueError when it does not continue the log; OutOfMemory (disk full; the log stays as it was)
        """
        listing = listing_of(self.run, outcome, before, after)
        about = read_about(listing)
        data = encode_listing(listing)
        if bundle_id(data) in self._by_bundle:
            return next(entry for entry in self._entries if entry.bundle == bundle_id(data))
        last = self.last
        if last is not None and (last.about.after != before or last.round >= outcome.round):
            raise ValueError(f"round {outcome.round} does not follow round {last.round}, the last one of the log")
        path = self.folder / file_name(outcome.round)
        part = self.folder / f"{_PARTIAL}{secrets.token_hex(6)}"
        try:
            with part.open("xb") as file:
                for piece in (head_of(data), *outcome.aggregates):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            part.rename(path)
            _sync(self.folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise _disk(self.folder, error) from error
        entry = DeltaEntry(bundle_id(data), about, listing.total_bytes)
        self._take(entry, path, data)
        self._drop_oldest()
        return entry

    def read(self, entry: DeltaEntry) -> Outcome:
        """An outcome, its payloads checked against their hashes.

        raises: MalformedMessage when the file was damaged since; KeyError when it has been dropped
        """
        return read_outcome(*self._by_bundle[entry.bundle])

    def since(self, state: bytes) -> Iterator[DeltaEntry]:
        """The entries that lead on from a state; none when the log does not hold it."""
        start = next((i for i, entry in enumerate(self._entries) if entry.about.before == state), len(self._entries))
        yield from self._entries[start:]

    def history(self, state: bytes) -> tuple[bytes, ...]:
        """The states that lead to this one, as far as the log goes back; none when the log does not lead there."""
        states: list[bytes] = []
        for entry in reversed(self._entries):
            if states or entry.about.after == state:
                states.append(entry.about.before)
        return tuple(states)

    def restart(self) -> None:
        """Forget everything: the chain goes on somewhere else. raises: OutOfMemory"""
        for entry in tuple(self._entries):
            self._drop(entry)

    def find(self, bundle: BundleId) -> Bundle | None:
        """`block_transfer_donor.Shelf`"""
        held = self._by_bundle.get(bundle)
        if held is None:
            return None
        return bundle_of(*held)

    def _take(self, entry: DeltaEntry, path: Path, data: bytes) -> None:
        self._entries.append(entry)
        self._by_bundle[entry.bundle] = path, data
        self._total_bytes += entry.total_bytes

    def _drop_oldest(self) -> None:
        while len(self._entries) > 1 and (
            len(self._entries) > self._limits.entries or self._total_bytes > self._limits.total_bytes
        ):
            self._drop(self._entries[0])

    def _drop(self, entry: DeltaEntry) -> None:
        path, _ = self._by_bundle.pop(entry.bundle)
        self._entries.remove(entry)
        self._total_bytes -= entry.total_bytes
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _disk(self.folder, error) from error

    def _read_folder(self) -> None:
        """The newest unbroken chain; a damaged file and all before it are of no use to anybody."""
        refused = []
        chain: list[tuple[DeltaEntry, Path, bytes]] = []
        for path in sorted((p for p in self.folder.iterdir() if _NAME.match(p.name)), reverse=True):
            try:
                entry, data = read_head(path, self.run)
            except MalformedMessage as error:
                refused.append(str(error))
                if chain:
                    break
                continue  # the newest: what it held can be fetched again
            if chain and chain[-1][0].about.before != entry.about.after:
                refused.append(f"{path.name} does not lead to the entry after it")
                break
            chain.append((entry, path, data))
        kept = {path for _, path, _ in chain}
        for path in self.folder.iterdir():
            if _NAME.match(path.name) and path not in kept:
                path.unlink()
        for entry, path, data in reversed(chain):
            self._take(entry, path, data)
        self.refused = tuple(refused)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _disk(folder: Path, error: OSError) -> OutOfMemory:
    return OutOfMemory(f"cannot write the log of rounds to {folder}: {error.strerror or error}")
