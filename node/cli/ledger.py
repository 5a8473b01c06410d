"""`shoal ledger`: what this node has earned and spent, and why."""

import typer

from . import ledger_balance, ledger_explain, ledger_export, ledger_history, ledger_shapley, ledger_verify


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        help="Show, explain and check what this node has earned and spent, or what a training's peers were worth.",
        no_args_is_help=True,
    )
    for module in (ledger_balance, ledger_history, ledger_explain, ledger_verify, ledger_export, ledger_shapley):
        module.register(group)
    app.add_typer(group, name="ledger")
