"""The text in the files of a run, in pieces of bounded size: a file of any length needs little memory."""

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shoal.swarm.errors import UsageError

from .data_files import DataFile

PIECE_BYTES = 1 << 20
_MAX_LINE_BYTES = 64 << 20
_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """text: a part of one document; ends: whether the document is over after it."""

    text: str
    ends: bool


def read_documents(file: DataFile, field: str) -> Iterator[Piece]:
    """A text file is one document; every line of JSONL and every row of Parquet is one, its text stands in `field`.

    raises: UsageError that names the file and the place: not UTF-8, a broken line, a truncated file, no such field
    """
    try:
        match file.kind:
            case "text":
                yield from _text(file.path)
            case "jsonl":
                yield from _jsonl(file.path, field)
            case "parquet":
                yield from _parquet(file.path, field)
    except OSError as error:
        raise UsageError(f"cannot read {file.path}: {error.strerror or error}") from error


def _text(path: Path) -> Iterator[Piece]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest, read, begun = "", 0, False
    with path.open("rb") as stream:
        while True:
            data = stream.read(PIECE_BYTES)
            try:
                text = rest + decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                what = "is cut off in the middle of a character" if not data else "is not UTF-8 text"
                raise UsageError(f"{path} {what} (near byte {read + error.start})") from error
            read += len(data)
            if not data:
                if begun or text.strip():
                    yield Piece(text, ends=True)
                return
            cut = text.rfind("\n") + 1 or len(text)  # the tokenizer sees whole lines
            rest = text[cut:]
            if begun or text[:cut].strip():
                begun = True
                yield Piece(text[:cut], ends=False)


def _jsonl(path: Path, field: str) -> Iterator[Piece]:
    decode: Callable[[bytes], Any] = msgspec.json.Decoder().decode
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(_MAX_LINE_BYTES):
            number += 1
            if not line.strip():
                continue
            try:
                row = decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                hint = "; the file seems to be cut off there" if not line.endswith(b"\n") else ""
                raise UsageError(f"line {number} of {path} is not JSON ({error}){hint}") from error
            text = row.get(field) if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise UsageError(f"line {number} of {path} has no text in {field!r}; set data.field")
            if text.strip():
                yield Piece(text, ends=True)


def _parquet(path: Path, field: str) -> Iterator[Piece]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(f"{path.name} is a Parquet file; to read it, install pyarrow: pip install pyarrow") from error
    try:
        with parquet.ParquetFile(path) as table:
            if field not in table.schema_arrow.names:
                names = ", ".join(table.schema_arrow.names[:8])
                raise UsageError(f"{path} has no column {field!r}; there are {names}; set data.field")
            for batch in table.iter_batches(_ROWS, columns=[field]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str | None):
                        raise UsageError(f"the column {field!r} of {path} holds no text; set data.field")
                    if text and text.strip():
                        yield Piece(text, ends=True)
    except (pyarrow.ArrowException, OSError) as error:
        what = " ".join(str(error).split())[:160]
        raise UsageError(f"{path} is damaged or cut off: no whole Parquet file ({what})") from error
