"""The disk tier: one file a chunk, which says itself what it is, with a checksum over all of it.

Files appear whole by a rename. At a start the folder says what is kept: a file that is foreign, half written or of
another length than it claims is removed then, one whose checksum is wrong when it is read.

Layout, little endian: magic, header length u16, header (msgpack of `FileHead`), payload, CRC-32 of everything before.
"""

import secrets
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from shoal.compression.kv_levels import KvLevel
from shoal.swarm import private_file
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.prefixes.prefix_chain import LINK_BYTES, Address

from .chunk_index import Kept, Label

MAGIC = b"shoalkv1"
SUFFIX = ".kv"
_LENGTH = struct.Struct("<H")
_SUM = struct.Struct("<I")
MAX_HEAD_BYTES = 1024


class FileHead(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    address: bytes
    model: ModelId
    quality: KvLevel
    maker: PeerId
    shared: bool
    root: bytes
    number: int
    payload_bytes: int


_heads = msgspec.msgpack.Decoder(FileHead)


class ChunkFiles:
    """folder: of this tier alone; everything in it that is not a chunk is removed by `found`"""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def found(self) -> Iterator[tuple[Address, Kept]]:
        """Those that are there, the least recently written first. raises: OSError, UsageError"""
        private_file.make_folder(self.folder)
        entries = [(path.stat().st_mtime, path) for path in self.folder.iterdir() if path.is_file()]
        for _, path in sorted(entries):
            head = self._head(path)
            if head is None:
                path.unlink(missing_ok=True)
                continue
            yield Address(head.address), Kept(_label(head), path.stat().st_size)

    def write(self, address: Address, label: Label, payload: bytes) -> int:
        """returns: the file's bytes. raises: OSError"""
        head = FileHead(
            address, label.model, label.quality, label.maker, label.shared, label.root, label.number, len(payload)
        )
        packed = msgspec.msgpack.encode(head)
        content = b"".join((MAGIC, _LENGTH.pack(len(packed)), packed, payload))
        content += _SUM.pack(zlib.crc32(content))
        partial = self.folder / f".{address.hex()}.{secrets.token_hex(4)}"
        try:
            partial.touch(mode=0o600)
            partial.write_bytes(content)
            partial.replace(self._path(address))
        finally:
            partial.unlink(missing_ok=True)
        return len(content)

    def read(self, address: Address) -> bytes | None:
        """The payload; None, and the file is gone, when it is not what was written."""
        path = self._path(address)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        head = _parsed_head(content)
        whole = len(content) > _SUM.size and _SUM.pack(zlib.crc32(content[: -_SUM.size])) == content[-_SUM.size :]
        if head is None or not whole or head.address != address:
            self.remove(address)
            return None
        return content[-_SUM.size - head.payload_bytes : -_SUM.size]

    def remove(self, address: Address) -> None:
        try:
            self._path(address).unlink(missing_ok=True)
        except OSError:
            return  # a folder that may not be written to: the file stays, the index forgets it

    def _path(self, address: Address) -> Path:
        return self.folder / f"{address.hex()}{SUFFIX}"

    def _head(self, path: Path) -> FileHead | None:
        try:
            with path.open("rb") as file:
                start = file.read(len(MAGIC) + _LENGTH.size + MAX_HEAD_BYTES)
            size = path.stat().st_size
        except OSError:
            return None
        head = _parsed_head(start)
        if head is None or path.name != f"{head.address.hex()}{SUFFIX}":
            return None
        (length,) = _LENGTH.unpack_from(start, len(MAGIC))
        return head if size == len(MAGIC) + _LENGTH.size + length + head.payload_bytes + _SUM.size else None


def _parsed_head(content: bytes) -> FileHead | None:
    start = len(MAGIC) + _LENGTH.size
    if not content.startswith(MAGIC) or len(content) < start:
        return None
    (length,) = _LENGTH.unpack_from(content, len(MAGIC))
    if length > MAX_HEAD_BYTES:
        return None
    try:
        head = _heads.decode(content[start : start + length])
    except (msgspec.MsgspecError, ValueError):
        return None
    return head if len(head.address) == LINK_BYTES and head.payload_bytes >= 0 else None


def _label(head: FileHead) -> Label:
    return Label(head.model, head.quality, head.maker, head.shared, Address(head.root), head.number)
