"""`shoal status`: how the node of this home is."""

from typing import Annotated

import typer

from .flags import HomeFlag, JsonFlag
from .output import Output


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: shoal status --watch")(status)


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep looking; q or Ctrl-C ends it.")] = False,
    interval: Annotated[float, typer.Option("--interval", min=0.1, max=3600, help="Seconds between looks.")] = 1.0,
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Show the node, its swarm, who holds which layers, sessions and, when watching, tokens per second."""
    from .node_api import NodeApi
    from .status_view import status_lines

    output = Output(json)
    node = NodeApi.of(home)
    if watch:
        from .status_watch import watch_status

        watch_status(node, output, interval)
        return
    facts = node.get("/status")
    output.event("status", **facts)
    output.line("\n".join(status_lines(facts)))
