"""The tokens of a run's data on disk: written once, then mapped into memory, so that start and memory stay small.

A store is named by what it was made from (tokenizer, files' content, field), and is written whole or not at all.
"""

import hashlib
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.swarm.errors import OutOfMemory, UsageError

from .data_files import DataFile
from .documents import PIECE_BYTES, Piece, read_documents

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Progress = Callable[[str, int, int], None]  # what is read, files done, files in all
FORMAT = 1


class TextEncoder(Protocol):
    """vocabulary: ids are below this; end: the id that closes a document; identity: hash of all that decides on ids"""

    @property
    def vocabulary(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def identity(self) -> str: ...
    def encode_all(self, texts: list[str]) -> list[list[int]]: ...


class StoreFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    count: int  # tokens
    documents: int
    dtype: str
    digest: str  # of the content: tokenizer, files, field


@dataclass(frozen=True, slots=True, eq=False)
class TokenStore:
    tokens: Tokens  # (N,), mapped read-only
    facts: StoreFacts


def content_digest(files: Iterable[DataFile], encoder: TextEncoder, field: str) -> str:
    """What the tokens depend on, the same on every machine that has the same data."""
    parts = [str(FORMAT), encoder.identity, field, *sorted(f"{file.kind} {file.sha256}" for file in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def open_store(
    files: list[DataFile], encoder: TextEncoder, field: str, cache: Path, progress: Progress | None = None
) -> TokenStore:
    """Tokenise the files, or use what an earlier run has left.

    raises: UsageError (files that cannot be read or hold no text), OutOfMemory (disk full)
    """
    digest = content_digest(files, encoder, field)
    folder = cache / digest[:32]
    store = _open(folder, digest)
    if store is None:
        try:
            _write(folder, digest, files, encoder, field, progress)
        except OSError as error:
            raise OutOfMemory(f"cannot keep the tokens in {folder}: {error.strerror or error}") from error
        store = _open(folder, digest)
    if store is None:
        raise OutOfMemory(f"the tokens in {folder} cannot be read back")
    return store


def _open(folder: Path, digest: str) -> TokenStore | None:
    """None when there is no whole store."""
    try:
        facts = msgspec.json.decode((folder / "facts.json").read_bytes(), type=StoreFacts)
        dtype = np.dtype(facts.dtype)
        if facts.digest != digest or (folder / "tokens.bin").stat().st_size != facts.count * dtype.itemsize:
            return None
    except (OSError, msgspec.MsgspecError, TypeError):
        return None
    return TokenStore(np.memmap(folder / "tokens.bin", dtype, mode="r", shape=(facts.count,)), facts)


def _write(
    folder: Path,
    digest: str,
    files: list[DataFile],
    encoder: TextEncoder,
    field: str,
    progress: Progress | None,
) -> None:
    dtype = np.dtype(np.uint16 if encoder.vocabulary <= 1 << 16 else np.uint32)
    part = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.part")
    part.mkdir(parents=True)
    try:
        count = documents = 0
        with (part / "tokens.bin").open("wb") as out:
            for done, file in enumerate(files):
                if progress is not None:
                    progress(file.path.name, done, len(files))
                for pieces in _batches(read_documents(file, field)):
                    for piece, ids in zip(pieces, encoder.encode_all([p.text for p in pieces]), strict=True):
                        row = np.array([*ids, encoder.end] if piece.ends else ids, dtype)
                        out.write(row.tobytes())
                        count += len(row)
                        documents += piece.ends
        if not count:
            raise UsageError(f"data.files: there is no text in {', '.join(str(file.path) for file in files[:3])}")
        facts = StoreFacts(count, documents, dtype.name, digest)
        (part / "facts.json").write_bytes(msgspec.json.encode(facts))
        shutil.rmtree(folder, ignore_errors=True)  # one that was not whole
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Enough text at a time for the tokenizer's threads."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= PIECE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
