"""`shoal invite`: let machines into the swarm that this node owns."""

from typing import Annotated

import typer

from .flags import HomeFlag, JsonFlag
from .moments import moment, seconds
from .output import Output
from .table import show_table

DEFAULT_TTL = "7d"
TtlFlag = Annotated[str, typer.Option("--ttl", help="How long it is good: 90s, 30m, 24h or 7d; at most 90d.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Let machines into your swarm; alone it makes an invite.", invoke_without_command=True)

    @group.callback(epilog="Example: shoal invite | ssh friend 'shoal join -'")
    def plain(
        context: typer.Context, ttl: TtlFlag = DEFAULT_TTL, home: HomeFlag = None, json: JsonFlag = False
    ) -> None:
        if context.invoked_subcommand is None:
            create(ttl, home, json)

    group.command(epilog="Example: shoal invite create --ttl 24h")(create)
    group.command("list", epilog="Example: shoal invite list --json")(list_invites)
    group.command(epilog="Example: shoal invite revoke 5e0c1f3a9b7d2460")(revoke)
    app.add_typer(group, name="invite")


def create(ttl: TtlFlag = DEFAULT_TTL, home: HomeFlag = None, json: JsonFlag = False) -> None:
    """Print a new invite, one line that lets in one machine."""
    from .node_api import NodeApi

    output = Output(json)
    ttl_s = seconds("--ttl", ttl)
    made = NodeApi.of(home).ask("POST", "/invites", {"ttl_s": ttl_s})
    output.event("invite", **made)
    output.line(made["invite"])
    good_for = "one machine" if made["single_use"] else "any number of machines"
    output.note(f"Good for {good_for} until {moment(made['expires_at'])}; there: shoal join LINE")


def list_invites(home: HomeFlag = None, json: JsonFlag = False) -> None:
    """List the invites of this swarm: open, used, expired or revoked."""
    from .node_api import NodeApi

    output = Output(json)
    invites = NodeApi.of(home).get("/invites")["invites"]
    for each in invites:
        output.event("invite", **each)
    if not invites:
        output.note("no invites yet; `shoal invite` makes one")
        return
    rows = [[i["id"], i["state"], moment(i["expires_at"]), i["used_by"] or ""] for i in invites]
    show_table(output, ["invite", "state", "expires", "used by"], rows)


def revoke(
    invite: Annotated[str, typer.Argument(help="Its id, as `shoal invite list` shows it.")],
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Revoke an invite that nobody has used yet."""
    from .node_api import NodeApi, segment

    NodeApi.of(home).ask("DELETE", f"/invites/{segment(invite)}")
    output = Output(json)
    output.event("revoked", invite=invite)
    output.line(f"the invite {invite} is revoked")
