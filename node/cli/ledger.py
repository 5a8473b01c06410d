"""`shoal ledger`: what was contributed, and what it is worth."""

import typer

from .ledger_shapley import shapley


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Contributions and what they are worth.", no_args_is_help=True)
    group.command(epilog="Example: shoal ledger shapley novels.toml --with /mnt/bob/novels")(shapley)
    app.add_typer(group, name="ledger")
