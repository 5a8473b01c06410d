"""A model that came from peers, on this disk: manifest, small files, and sparse weight files with what was needed.

`chunks.msgpack` says which chunks are here, so that a start need not hash them again; it counts only for a file that
has not changed since. Without it (kill -9 in the middle) what is here is found by hashing.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from shoal.swarm import manifest as manifests
from shoal.swarm.errors import MalformedMessage, OutOfMemory
from shoal.swarm.identifiers import ModelId
from shoal.swarm.manifest import Manifest
from shoal.swarm.transfer.weight_holdings import bits_of, chunks_of, table_digest

PEERS = "peers"  # below the home's cache
_MANIFEST = "manifest.msgpack"
_CHUNKS = "chunks.msgpack"


class _Held(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    changed_ns: int
    table: bytes  # digest of the chunk hashes by which they were verified
    bits: bytes  # empty: all


class PeerFolder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, cache: Path, model: ModelId) -> "PeerFolder":
        return cls(cache / PEERS / model)

    @classmethod
    def every(cls, cache: Path) -> list["PeerFolder"]:
        """The one that was changed last first."""
        folders = [folder for folder in (cache / PEERS).glob("*") if (folder / _MANIFEST).is_file()]
        return [cls(f) for f in sorted(folders, key=lambda f: (f / _MANIFEST).stat().st_mtime_ns, reverse=True)]

    def manifest(self) -> Manifest | None:
        """With the chunk hashes that were found good. None: nothing is kept here, or it cannot be read"""
        try:
            manifest = manifests.decode((self.folder / _MANIFEST).read_bytes())
        except (OSError, MalformedMessage):
            return None
        return manifest if manifests.model_id(manifest) == self.folder.name else None

    def tables(self) -> Mapping[str, tuple[str, ...]]:
        manifest = self.manifest()
        return {} if manifest is None else manifest.chunks

    def keep(self, manifest: Manifest, texts: Mapping[str, bytes] | None = None) -> None:
        """raises: OutOfMemory"""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, content in (texts or {}).items():
                _replace(self.folder / name, content)
            _replace(self.folder / _MANIFEST, manifests.encode(manifest))
        except OSError as error:
            raise OutOfMemory(f"cannot write {self.folder}: {error.strerror or error}") from error

    def has_texts(self, manifest: Manifest) -> bool:
        return all((self.folder / entry.name).is_file() for entry in manifest.texts)

    def chunks(self, file: str, table: Sequence[str]) -> frozenset[int]:
        """Chunks of a weight file that were verified by these hashes, if the file has not changed since."""
        held = self._record().get(file)
        try:
            changed_ns = (self.folder / file).stat().st_mtime_ns
        except OSError:
            return frozenset()
        if held is None or held.changed_ns != changed_ns or held.table != table_digest(table):
            return frozenset()
        chunks = chunks_of(held.bits, len(table))
        return frozenset(range(len(table))) if chunks is None else chunks

    def note(self, file: str, chunks: frozenset[int], table: Sequence[str]) -> None:
        """The chunks of a weight file that are here and fit these hashes, as it is now. raises: OutOfMemory"""
        record = self._record()
        try:
            changed_ns = (self.folder / file).stat().st_mtime_ns
            record[file] = _Held(changed_ns, table_digest(table), bits_of(chunks, len(table)))
            _replace(self.folder / _CHUNKS, msgspec.msgpack.encode(record))
        except OSError as error:
            raise OutOfMemory(f"cannot write {self.folder}: {error.strerror or error}") from error

    def forget(self, file: str) -> None:
        """A weight file that was not what it should be."""
        (self.folder / file).unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _record(self) -> dict[str, _Held]:
        try:
            return msgspec.msgpack.decode((self.folder / _CHUNKS).read_bytes(), type=dict[str, _Held])
        except (OSError, msgspec.MsgspecError):
            return {}


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)
