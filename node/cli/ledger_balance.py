"""`shoal ledger balance`: what can be spent, what waits, what is set aside."""

import typer

from .flags import HomeFlag, JsonFlag
from .ledger_flags import PeerFlag
from .output import Output


def register(group: typer.Typer) -> None:
    group.command(epilog="Example: shoal ledger balance --json")(balance)


def balance(peer: PeerFlag = None, home: HomeFlag = None, json: JsonFlag = False) -> None:
    """Show what can be spent now, what may be spent later, what is set aside, and what was ever earned.

    One credit is one position through one million parameters. What is not spent halves every 30 days.
    """
    from shoal.incentives.entry import peer_of

    from .ledger_file import now_s, opened_ledger
    from .table import show_table

    output = Output(json)
    with opened_ledger(home, peer) as (store, key):
        list(store.balances.advance(key, now_s()))
        account, written = store.balances.account(key), store.chain(key).length
        output.event(
            "balance",
            peer=peer_of(key),
            spendable=account.spendable,
            waiting=account.waiting,
            reserved=account.reserved,
            contributed=account.contributed,
            standing="lost" if account.forked else "good",
            entries=written,
        )
        rows = [
            ["can be spent", account.spendable],
            ["earned, can be spent within a day", account.waiting],
            ["set aside for open sessions", account.reserved],
            ["earned in all", account.contributed],
            ["entries written", written],
        ]
        show_table(output, ["", "credits"], rows)
        if account.forked:
            output.note("this peer has shown two versions of its chain; nobody takes its entries any more")
