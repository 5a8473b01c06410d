"""Finding and reading checkpoints: every byte is checked before use, and what is damaged is passed over with a line."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from shoal.swarm.errors import MalformedMessage, UsageError
from shoal.swarm.transfer.block_transfer_listing import Listing, blocked_file

from .checkpoint_manifest import INNER, MODEL, OUTER, OWN, digest_of, read_manifest, read_own_about, read_shared_about
from .snapshot import SHARED, Snapshot, Value
from .tensor_file import read_arrays

FOLDER = "checkpoints"  # of a run's folder
log = structlog.get_logger(__name__)
_NAME = re.compile(r"^(?P<round>\d{8,}|initial)-[0-9a-f]{16}$")


def folder_name(round_: int, manifest: bytes) -> str:
    return f"{'initial' if round_ < 0 else f'{round_:08d}'}-{digest_of(manifest)}"


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """One folder that looks like a checkpoint; what it holds has not been read."""

    folder: Path
    round: int

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass(frozen=True, slots=True, eq=False)
class Latest:
    """refused: one line for each newer checkpoint that could not be used"""

    snapshot: Snapshot
    checkpoint: SavedCheckpoint
    refused: tuple[str, ...] = ()


def saved_checkpoints(folder: Path) -> list[SavedCheckpoint]:
    """Newest first; [] where there is no such folder."""
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        match = _NAME.match(path.name)
        if match and path.is_dir():
            found.append(SavedCheckpoint(path, -1 if match["round"] == "initial" else int(match["round"])))
    return sorted(found, key=lambda saved: (-saved.round, saved.name))


def load(checkpoint: SavedCheckpoint) -> Snapshot:
    """Read a checkpoint and check every byte of it. raises: UsageError, one line that names it"""
    folder = checkpoint.folder
    manifest = read_manifest(folder)
    for listing in (manifest.shared, manifest.own):
        if listing is not None:
            check_files(folder, listing)
    try:
        shared = read_shared(folder, manifest.shared)
        own = None if manifest.own is None else read_own_about(manifest.own)
    except MalformedMessage as error:
        raise UsageError(f"checkpoint {folder.name} is damaged: {error}") from error
    if own is None:
        return shared
    strategy = {**shared.strategy, **read_arrays(folder / OWN), **own.strategy}
    inner = {**read_arrays(folder / INNER), **own.inner}
    return replace(shared, strategy=strategy, inner=inner, position=own.position)


def read_shared(folder: Path, listing: Listing) -> Snapshot:
    """The part that all replicas share, from files whose blocks have been checked.

    raises: MalformedMessage
    """
    about = read_shared_about(listing)
    try:
        optimizer, parameters = read_arrays(folder / OUTER), read_arrays(folder / MODEL)
    except UsageError as error:
        raise MalformedMessage(str(error)) from error
    arrays: dict[str, Value] = {SHARED + name: array for name, array in optimizer.items()}
    return Snapshot(about.run, about.round, about.state, parameters, {**arrays, **about.numbers})


def latest(folder: Path) -> Latest | None:
    """The newest checkpoint that is whole; None where there is none at all.

    raises: UsageError when there are some and none can be used
    """
    refused: list[str] = []
    for checkpoint in saved_checkpoints(folder):
        try:
            return Latest(load(checkpoint), checkpoint, tuple(refused))
        except UsageError as error:
            log.warning("checkpoint_refused", checkpoint=checkpoint.name, reason=str(error))
            refused.append(str(error))
    if refused:
        raise UsageError(f"no checkpoint in {folder} can be used: {refused[0]}")
    return None


def checkpoint_at(path: Path) -> Latest | None:
    """What a user means by a path: one checkpoint, a folder of them, or a run's folder; None where there is none.

    raises: UsageError when it is damaged
    """
    match = _NAME.match(path.resolve().name)
    if match and path.is_dir():
        folder = path.resolve()
        saved = SavedCheckpoint(folder, -1 if match["round"] == "initial" else int(match["round"]))
        return Latest(load(saved), saved)
    return latest(path / FOLDER if (path / FOLDER).is_dir() else path)


def is_damaged(folder: Path) -> bool:
    """Whether there is such a checkpoint and its bytes are not those that were written."""
    if not folder.exists():
        return False
    try:
        manifest = read_manifest(folder)
        for listing in (manifest.shared, manifest.own):
            if listing is not None:
                check_files(folder, listing)
    except UsageError:
        return True
    return False


def check_files(folder: Path, listing: Listing) -> None:
    for expected in listing.files:
        path = folder / expected.name
        try:
            size_bytes = path.stat().st_size
            if size_bytes != expected.size_bytes:
                raise UsageError(
                    f"checkpoint {folder.name} is damaged: {expected.name} has {size_bytes} bytes, "
                    f"{expected.size_bytes} were written"
                )
            if blocked_file(path, listing.block_bytes) != expected:
                raise UsageError(f"checkpoint {folder.name} is damaged: {expected.name} is not as it was written")
        except OSError as error:
            raise UsageError(
                f"checkpoint {folder.name} is damaged: {expected.name}: {error.strerror or error}"
            ) from error
