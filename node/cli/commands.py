"""Every command under its name. Importing this must stay cheap: a command imports what it needs when it runs."""

import os
from typing import Annotated, Any

import typer

from . import chat, doctor, down, generate, invite, join, key, kv, ledger, models, peers, status, train, up, version
from .failures import DEBUG

HELP = "Serve and use language models together, on the machines of volunteers."
EPILOG = "Start with `shoal up`, then `shoal generate 'It was a dark and'`. Every command has its own --help."


def command_line() -> Any:  # noqa: ANN401  typer exports no name for it
    """The click command behind `shoal`."""
    app = typer.Typer(
        name="shoal",
        help=HELP,
        epilog=EPILOG,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )

    @app.callback(invoke_without_command=True)
    def whole(
        context: typer.Context,
        show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; as SHOAL_DEBUG=1.")] = False,
    ) -> None:
        if debug:
            os.environ[DEBUG] = "1"
        if show_version:
            version.version()
            raise typer.Exit
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    for module in (
        up,
        join,
        generate,
        chat,
        train,
        models,
        peers,
        status,
        invite,
        key,
        ledger,
        kv,
        doctor,
        down,
        version,
    ):
        module.register(app)
    return typer.main.get_command(app)
