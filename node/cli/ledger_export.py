"""`shoal ledger export`: all entries, for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from .flags import HomeFlag, JsonFlag
from .output import Output


def register(group: typer.Typer) -> None:
    group.command(epilog="Example: shoal ledger export ledger.jsonl")(export)


def export(
    file: Annotated[Path, typer.Argument(help="Where the entries go; - is stdout.", allow_dash=True)],
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Write all entries as JSON, one a line: fields in hex, and `raw`, the bytes whose hash and signature count."""
    import sys

    from shoal.swarm.errors import UsageError

    from .ledger_file import opened_ledger

    output = Output(json)
    with opened_ledger(home) as (store, _):
        lines = (_line(stored) for stored in store.all())
        if str(file) == "-":
            count = sum(1 for line in lines if sys.stdout.write(line))
        else:
            try:
                with file.open("w") as to:
                    count = sum(1 for line in lines if to.write(line))
            except OSError as error:
                raise UsageError(f"cannot write {file}: {error.strerror}") from error
    if str(file) != "-":
        output.event("exported", file=str(file), entries=count)
        output.line(f"{count} entries in {file}")


def _line(stored: object) -> str:
    import msgspec

    from shoal.incentives import entry as entries
    from shoal.incentives.explanation import kind_of
    from shoal.incentives.store import Stored

    assert isinstance(stored, Stored)
    entry = stored.entry
    body = {name: _plain(getattr(entry.body, name)) for name in entry.body.__struct_fields__}
    whole = {
        "author": entries.peer_of(entry.author),
        "seq": entry.seq,
        "prev": entry.prev.hex(),
        "time": entry.time,
        "received": stored.received,
        "kind": kind_of(entry.body),
        "body": body,
        "signature": entry.signature.hex(),
        "hash": entries.hash_of(entry).hex(),
        "raw": entries.encode(entry).hex(),
    }
    return msgspec.json.encode(whole).decode() + "\n"


def _plain(value: object) -> object:
    match value:
        case bytes():
            return value.hex()
        case tuple():
            return [{"key": witness.key.hex(), "signature": witness.signature.hex()} for witness in value]
        case _:
            return value
