"""`shoal key`: the key of this home's HTTP API."""

import secrets

import typer

from .flags import HomeFlag, JsonFlag
from .output import Output


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Show the key of the HTTP API, or renew it.", invoke_without_command=True)

    @group.callback(epilog="Example: shoal key")
    def plain(context: typer.Context, home: HomeFlag = None, json: JsonFlag = False) -> None:
        if context.invoked_subcommand is None:
            show(home, json)

    group.command(epilog="Example: export OPENAI_API_KEY=$(shoal key show)")(show)
    group.command(epilog="Example: shoal down; shoal key new; shoal up")(new)
    app.add_typer(group, name="key")


def show(home: HomeFlag = None, json: JsonFlag = False) -> None:
    """Print the key that the HTTP API wants, as `Authorization: Bearer KEY`."""
    from shoal.swarm.home import Home

    key = Home.find(home).api_key()
    output = Output(json)
    output.event("key", key=key)
    output.line(key)


def new(home: HomeFlag = None, json: JsonFlag = False) -> None:
    """Replace the key by a new one; whoever has the old one is locked out."""
    from shoal.swarm import private_file
    from shoal.swarm.errors import UsageError
    from shoal.swarm.home import Home
    from shoal.swarm.node_lock import running

    place = Home.find(home)
    live = running(place.lock)
    if live is not None:
        raise UsageError(f"node {live[1]} (pid {live[0]}) runs with the old key; stop it first with `shoal down`")
    private_file.write(place.api_key_file, f"{secrets.token_urlsafe(32)}\n".encode())
    key = place.api_key()
    output = Output(json)
    output.event("key", key=key)
    output.line(key)
