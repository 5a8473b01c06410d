"""What this machine holds of a model's weights: which files, which chunks of them, and the hashes of the chunks."""

import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shoal.swarm import manifest as manifests
from shoal.swarm.identifiers import ModelId
from shoal.swarm.manifest import CHUNK_BYTES, Manifest
from shoal.swarm.transfer.blobs import MANIFEST
from shoal.swarm.transfer.block_transfer_donor import Bundle, FilePart
from shoal.swarm.transfer.weight_holdings import HeldFile, Holdings, bits_of, table_digest

from .model_source import LocalModel
from .peer_folder import PeerFolder

_TABLES = "chunks.msgpack"


class _Hashed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size_bytes: int
    changed_ns: int
    table: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HeldWeights:
    """manifest: with the chunk hashes of `files`, None there for a whole one"""

    local: LocalModel
    manifest: Manifest
    files: dict[str, frozenset[int] | None]

    @property
    def model(self) -> ModelId:
        return self.local.model_id

    @property
    def total_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.manifest.weights)

    @property
    def held_bytes(self) -> int:
        sizes = {entry.name: entry.size_bytes for entry in self.manifest.weights}
        return sum(_bytes_of(sizes[name], chunks) for name, chunks in self.files.items())

    def holdings(self) -> Holdings:
        tables = self.manifest.chunks
        return Holdings(
            tuple(
                HeldFile(name, table_digest(tables[name]), bits_of(chunks, len(tables[name])))
                for name, chunks in sorted(self.files.items())
            )
        )

    def bundle(self) -> Bundle:
        sizes = {entry.name: entry.size_bytes for entry in self.manifest.weights}
        parts = {name: FilePart(self.local.folder / name, sizes[name]) for name in self.files}
        held = {name: _ranges(sorted(chunks), sizes[name]) for name, chunks in self.files.items() if chunks is not None}
        return Bundle(b"", parts, held)

    def blobs(self) -> dict[str, bytes]:
        """raises: UsageError when a small file is gone"""
        texts = {entry.name: self.local.text_file(entry.name) for entry in self.manifest.texts}
        return {MANIFEST: manifests.encode(self.manifest), **texts}


def held_weights(local: LocalModel) -> HeldWeights:
    """Reads the disk; files from a hub are hashed the first time."""
    manifest = local.manifest
    files: dict[str, frozenset[int] | None] = {}
    tables: dict[str, tuple[str, ...]] = {}
    if local.origin == "peers":
        kept = PeerFolder(local.folder)
        tables = dict(kept.tables())
        for entry in manifest.weights:
            chunks = kept.chunks(entry.name, tables.get(entry.name, ()))
            if chunks:
                files[entry.name] = None if len(chunks) == len(tables[entry.name]) else chunks
    else:
        present = [entry.name for entry in manifest.weights if (local.folder / entry.name).is_file()]
        files = dict.fromkeys(present)
        known = {name: table for name, table in manifest.chunks.items() if name in files}
        tables = known | _hashed(local.folder, [name for name in present if name not in known])
    tables = {name: tables[name] for name in files}
    return HeldWeights(local, msgspec.structs.replace(manifest, chunks=tables), files)


def _hashed(folder: Path, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The chunk hashes of whole files, kept beside them until they change."""
    record = folder / _TABLES
    try:
        kept = msgspec.msgpack.decode(record.read_bytes(), type=dict[str, _Hashed])
    except (OSError, msgspec.MsgspecError):
        kept = {}
    found: dict[str, _Hashed] = {}
    for name in names:
        state = (folder / name).stat()
        held = kept.get(name)
        if held is None or (held.size_bytes, held.changed_ns) != (state.st_size, state.st_mtime_ns):
            held = _Hashed(state.st_size, state.st_mtime_ns, _table(folder / name))
        found[name] = held
    if found != {name: kept.get(name) for name in found}:
        with contextlib.suppress(OSError):  # a full disk: hashed again at the next start
            record.write_bytes(msgspec.msgpack.encode(kept | found))
    return {name: held.table for name, held in found.items()}


def _table(path: Path) -> tuple[str, ...]:
    with path.open("rb") as file:
        return tuple(hashlib.sha256(chunk).hexdigest() for chunk in iter(lambda: file.read(CHUNK_BYTES), b""))


def _bytes_of(size_bytes: int, chunks: frozenset[int] | None) -> int:
    return size_bytes if chunks is None else sum(stop - start for start, stop in _ranges(sorted(chunks), size_bytes))


def _ranges(chunks: Iterable[int], size_bytes: int) -> list[tuple[int, int]]:
    """Ascending chunks as [start, stop) in bytes, neighbours together."""
    ranges: list[tuple[int, int]] = []
    for chunk in chunks:
        start, stop = chunk * CHUNK_BYTES, min((chunk + 1) * CHUNK_BYTES, size_bytes)
        if ranges and ranges[-1][1] == start:
            start = ranges.pop()[0]
        ranges.append((start, stop))
    return ranges
