"""`shoal ledger history`: the entries that touch an account."""

from collections import deque

import typer

from .flags import HomeFlag, JsonFlag
from .ledger_flags import LastFlag, PeerFlag
from .output import Output


def register(group: typer.Typer) -> None:
    group.command(epilog="Example: shoal ledger history --last 20")(history)


def history(peer: PeerFlag = None, last: LastFlag = None, home: HomeFlag = None, json: JsonFlag = False) -> None:
    """List the entries that this node wrote or that changed its balance, oldest first."""
    from shoal.incentives.entry import hash_of, peer_of
    from shoal.incentives.explanation import kind_of, short, steps

    from .ledger_file import moment, now_s, opened_ledger
    from .table import show_table

    output = Output(json)
    rows: list[list[object]] = []
    with opened_ledger(home, peer) as (store, key):
        for step in deque((s for s in steps(store, key, now_s()) if s.stored is not None), maxlen=last):
            assert step.stored is not None
            entry = step.stored.entry
            change = sum(m.amount for m in step.movements if m.what != "burned")
            output.event(
                "entry",
                author=peer_of(entry.author),
                seq=entry.seq,
                time=entry.time,
                received=step.stored.received,
                kind=kind_of(entry.body),
                prefix_chunks=step.is_of_chunks,
                hash=hash_of(entry).hex(),
                change=change,
                spendable=step.spendable,
                reserved=step.reserved,
                waiting=step.waiting,
            )
            author = "this node" if entry.author == key else short(entry.author)
            kind = f"{kind_of(entry.body)}, chunks" if step.is_of_chunks else kind_of(entry.body)
            rows.append([moment(entry.time), author, entry.seq, kind, change, step.spendable])
    if not rows:
        output.note("nothing has been earned or spent yet")
        return
    show_table(output, ["time", "written by", "seq", "kind", "change", "can be spent"], rows)
