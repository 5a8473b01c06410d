"""The checkpoints of a run in one folder: written whole or not at all, checked before use, kept by policy.

    00000120-4f2a...e1/     the round of its last outcome, and what the manifest's content decides
        manifest.json       sizes and block hashes of the files, numbers, position in the data
        model.safetensors   the outer parameters by name
        outer.safetensors   the outer optimiser
        strategy.safetensors, inner.safetensors   this peer's own; absent in a checkpoint that came from others

A folder appears under its name by one rename, after all in it is on the disk; so a power cut at any instant leaves the
checkpoints of before.
"""

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import structlog

from shoal.swarm.errors import OutOfMemory, UsageError
from shoal.swarm.transfer.block_transfer_donor import Bundle, FilePart
from shoal.swarm.transfer.block_transfer_listing import (
    BundleId,
    Listing,
    block_bytes_for,
    encode_listing,
    read_listing,
)

from .checkpoint_manifest import (
    FORMAT,
    INNER,
    KIND,
    MANIFEST,
    MODEL,
    OUTER,
    OWN,
    OWN_KIND,
    SHARED_ABOUT,
    CheckpointManifest,
    OwnAbout,
    SharedAbout,
    encode_manifest,
    encode_own_about,
    read_manifest,
    read_shared_about,
    shared_bundle,
)
from .reader import SavedCheckpoint, folder_name, is_damaged, saved_checkpoints
from .retention import Retention
from .snapshot import SHARED, Snapshot, arrays_of, numbers_of
from .tensor_file import Array, write_arrays

log = structlog.get_logger(__name__)
SPARE_BYTES = 16 << 20  # disk that a checkpoint leaves free
PARTIAL = ".partial-"


class CheckpointStore:
    """One writer for each folder. It is also a shelf: the shared part of every checkpoint is a bundle to give away."""

    def __init__(self, folder: Path, retention: Retention | None = None) -> None:
        """raises: OutOfMemory when the folder cannot be made"""
        self.folder = folder
        self._retention = retention or Retention()
        self._bundles: dict[BundleId, tuple[SavedCheckpoint, Bundle]] = {}
        self._asked: set[BundleId] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(PARTIAL + "*"):
                shutil.rmtree(left)
        except OSError as error:
            raise OutOfMemory(f"cannot keep checkpoints in {folder}: {error.strerror or error}") from error
        for checkpoint in saved_checkpoints(folder):
            self._put_on_shelf(checkpoint)

    def save(self, snapshot: Snapshot) -> SavedCheckpoint:
        """Write a checkpoint, then drop those that the policy does not keep.

        raises: OutOfMemory when the disk is full (no part of it is left, the old ones stay); ValueError
        """
        shared = {name: value for name, value in snapshot.strategy.items() if name.startswith(SHARED)}
        own = {name: value for name, value in snapshot.strategy.items() if not name.startswith(SHARED)}
        optimizer = {name.removeprefix(SHARED): array for name, array in arrays_of(shared).items()}
        about = SharedAbout(snapshot.run, snapshot.round, snapshot.state, numbers_of(shared))
        own_about = OwnAbout(numbers_of(own), numbers_of(snapshot.inner), dict(snapshot.position))
        tensors: dict[str, dict[str, Array]] = {MODEL: dict(snapshot.parameters), OUTER: optimizer}
        tensors |= {OWN: arrays_of(own), INNER: arrays_of(snapshot.inner)}

        # of the shared part alone: a peer's own must not change the bytes of what all share
        size = block_bytes_for(sum(array.nbytes for name in (MODEL, OUTER) for array in tensors[name].values()))

        def write(folder: Path) -> CheckpointManifest:
            files = {name: write_arrays(folder / name, arrays, size) for name, arrays in tensors.items()}
            listing = Listing(KIND, SHARED_ABOUT.encode(about), size, (files[MODEL], files[OUTER]))
            mine = Listing(OWN_KIND, encode_own_about(own_about), size, (files[OWN], files[INNER]))
            return CheckpointManifest(FORMAT, listing, mine)

        need = sum(array.nbytes for arrays in tensors.values() for array in arrays.values())
        return self._written(snapshot.round, need, write)

    def incoming(self, bundle: BundleId) -> Path:
        """Where a checkpoint on its way from others lies until it is whole; kept over restarts."""
        return self.folder / f"incoming-{bundle[:32]}"

    def adopt(self, folder: Path, listing: Listing) -> SavedCheckpoint:
        """Take over the files of a verified transfer, and drop what other transfers left behind.

        raises: OutOfMemory, MalformedMessage
        """
        about = read_shared_about(listing)

        def move(into: Path) -> CheckpointManifest:
            for file in listing.files:
                (folder / file.name).rename(into / file.name)
            return CheckpointManifest(FORMAT, listing, None)

        saved = self._written(about.round, 0, move)
        for left in self.folder.glob("incoming-*"):
            shutil.rmtree(left, ignore_errors=True)
        return saved

    def find(self, bundle: BundleId) -> Bundle | None:
        """`block_transfer_donor.Shelf`: the shared part of a checkpoint."""
        found = self._bundles.get(bundle)
        if found is None:
            return None
        self._asked.add(bundle)
        return found[1]

    def offers(self) -> list[tuple[BundleId, SharedAbout, int]]:
        """What can be given: bundle, header, bytes; newest first."""
        found = []
        for bundle, (_, held) in self._bundles.items():
            listing = read_listing(held.listing)
            found.append((bundle, read_shared_about(listing), listing.total_bytes))
        return sorted(found, key=lambda offer: -offer[1].round)

    def _written(self, round_: int, need: int, write: Callable[[Path], CheckpointManifest]) -> SavedCheckpoint:
        part = self.folder / f"{PARTIAL}{secrets.token_hex(6)}"
        try:
            free = shutil.disk_usage(self.folder).free
            if need + SPARE_BYTES > free:
                raise OutOfMemory(
                    f"a checkpoint of {need / 1e6:.1f} MB does not fit: {self.folder} has {free / 1e6:.1f} MB free, "
                    f"of which {SPARE_BYTES / 1e6:.0f} MB are left to others; the one before stays"
                )
            part.mkdir()
            data = encode_manifest(write(part))
            with (part / MANIFEST).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _sync(part)
            target = self.folder / folder_name(round_, data)
            if is_damaged(target):
                shutil.rmtree(target)
            if not target.exists():  # else the very same checkpoint is here already
                part.rename(target)
                _sync(self.folder)
        except OSError as error:
            raise OutOfMemory(f"cannot write a checkpoint to {self.folder}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        saved = SavedCheckpoint(target, round_)
        self._put_on_shelf(saved)
        self._drop_superfluous()
        return saved

    def _drop_superfluous(self) -> None:
        """A checkpoint that somebody has asked for since the last time is spared once more."""
        saved = saved_checkpoints(self.folder)
        wanted = {self._bundles[bundle][0].name for bundle in self._asked if bundle in self._bundles}
        self._asked.clear()
        gone = set(self._retention.superfluous([checkpoint.round for checkpoint in saved]))
        for checkpoint in saved:
            if checkpoint.round in gone and checkpoint.name not in wanted:
                self._bundles = {b: held for b, held in self._bundles.items() if held[0].name != checkpoint.name}
                shutil.rmtree(checkpoint.folder, ignore_errors=True)

    def _put_on_shelf(self, checkpoint: SavedCheckpoint) -> None:
        try:
            manifest = read_manifest(checkpoint.folder)
        except UsageError as error:
            log.warning("checkpoint_refused", checkpoint=checkpoint.name, reason=str(error))
            return
        files = {f.name: FilePart(checkpoint.folder / f.name, f.size_bytes) for f in manifest.shared.files}
        self._bundles[shared_bundle(manifest)] = checkpoint, Bundle(encode_listing(manifest.shared), files)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
