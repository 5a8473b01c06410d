"""Which files a training run reads, what kind each is, and the hash of its content.

Hashes are kept until a file's size or time of change is another, so that a start does not read everything again.
"""

import glob
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from shoal.swarm.errors import UsageError

Kind = Literal["text", "jsonl", "parquet"]
TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".rst", ".py"})  # what is taken from a folder; a file may be named
JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
_READ_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class DataFile:
    path: Path
    kind: Kind
    sha256: str


class _Seen(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    size: int
    changed_ns: int
    sha256: str


_kept = msgspec.msgpack.Decoder(dict[str, _Seen])


def kind_of(path: Path) -> Kind:
    suffix = path.suffix.lower()
    return "jsonl" if suffix in JSONL_SUFFIXES else "parquet" if suffix in PARQUET_SUFFIXES else "text"


def find_files(names: tuple[str, ...], base: Path, key: str) -> list[Path]:
    """Files, folders (searched with their sub-folders) and patterns such as `books/*.txt`, relative to `base`.

    key: what the config calls them, for the message
    raises: UsageError for a name that gives no file
    """
    found: dict[Path, None] = {}
    for name in names:
        place = base / Path(name).expanduser()
        matches = _matches(place) if _is_pattern(name) else [place]
        files = [file for match in sorted(matches) for file in _files_at(match, key)]
        if not files:
            raise UsageError(f"{key}: no text, JSONL or Parquet file in {name}")
        found.update(dict.fromkeys(file.resolve() for file in files))
    return list(found)


def _matches(pattern: Path) -> list[Path]:
    return [Path(match) for match in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207  the pattern may be absolute


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _files_at(place: Path, key: str) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UsageError(f"{key}: there is no file or folder {place}")
    known = TEXT_SUFFIXES | JSONL_SUFFIXES | PARQUET_SUFFIXES
    inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in known and path.is_file())
    if not inside:
        raise UsageError(f"{key}: the folder {place} holds no text, JSONL or Parquet file")
    return inside


def hashed(paths: list[Path], kept_in: Path) -> list[DataFile]:
    """In the order of their content's hash, the same wherever the files lie; a file that is there twice counts once.

    raises: UsageError for a file that cannot be read
    """
    record = kept_in / "files.msgpack"
    seen = _read_record(record)
    files: dict[str, DataFile] = {}
    for path in paths:
        try:
            status = path.stat()
            known = seen.get(str(path))
            if known is None or (known.size, known.changed_ns) != (status.st_size, status.st_mtime_ns):
                known = _Seen(status.st_size, status.st_mtime_ns, _sha256(path))
                seen[str(path)] = known
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
        files[known.sha256] = DataFile(path, kind_of(path), known.sha256)
    _write_record(record, seen)
    return [files[digest] for digest in sorted(files)]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _read_record(record: Path) -> dict[str, _Seen]:
    try:
        return _kept.decode(record.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return {}  # absent or of another version: hash again


def _write_record(record: Path, seen: dict[str, _Seen]) -> None:
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        part = record.with_suffix(".part")
        part.write_bytes(msgspec.msgpack.encode(seen))
        part.replace(record)
    except OSError:
        return  # only a convenience: the next start hashes again
