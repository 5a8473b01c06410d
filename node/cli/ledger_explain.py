"""`shoal ledger explain`: why the balance is what it is, entry by entry."""

from collections import deque

import typer

from .flags import HomeFlag, JsonFlag
from .ledger_flags import LastFlag, PeerFlag
from .output import Output


def register(group: typer.Typer) -> None:
    group.command(epilog="Example: shoal ledger explain --last 10")(explain)


def explain(peer: PeerFlag = None, last: LastFlag = None, home: HomeFlag = None, json: JsonFlag = False) -> None:
    """Say in plain words, entry by entry, why the balance changed."""
    from shoal.incentives.explanation import entry_sentence, movement_sentence, steps

    from .ledger_file import moment, now_s, opened_ledger

    output = Output(json)
    with opened_ledger(home, peer) as (store, key):
        found = deque(steps(store, key, now_s()), maxlen=last)
        if not found:
            output.note("nothing has been earned or spent yet")
        for step in found:
            if step.stored is None:
                when, what = now_s(), "Time passed"
            else:
                entry = step.stored.entry
                when, what = entry.time, entry_sentence(entry.body, entry.author, key, of_chunks=step.is_of_chunks)
            reasons = [movement_sentence(movement) for movement in step.movements]
            output.event("explanation", time=when, what=what, reasons=reasons, spendable=step.spendable)
            output.line(f"{moment(when)}  {what}.")
            for reason in reasons:
                output.line(f"    {reason[0].upper()}{reason[1:]}.")
            output.line(
                f"    Now {step.spendable} can be spent, {step.waiting} within a day, {step.reserved} are set aside."
            )
