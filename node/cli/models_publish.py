"""`shoal models publish`: give a model to the swarm, from a folder of this machine."""

from pathlib import Path
from typing import Annotated

import typer

from shoal.swarm.errors import UsageError

from .flags import HomeFlag, JsonFlag
from .output import Output

HASHING_S = 3600.0  # a large model is read once


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: shoal models publish ./model")(publish)


def publish(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face folder, as `shoal models export` writes it.")],
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Give it away no longer.")] = False,
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Give a model to the swarm: `shoal up ID` at any member fetches it from its publishers and serves it.

    The running node gives it away, and does so again after a restart; the folder has to stay as it is.
    """
    from .node_api import NodeApi, segment

    output = Output(json)
    node = NodeApi.of(home, HASHING_S)
    path = folder.expanduser().resolve()
    if not withdraw:
        if not path.is_dir():
            raise UsageError(f"there is no folder {folder}")
        made = node.ask("POST", "/publications", {"folder": str(path)})
        output.event("published", **made)
        output.line(made["model"])
        output.note(f"{made['name']} is published; `shoal up {made['model'][:12]}` at a member fetches and serves it")
        return
    found = [item for item in node.get("/publications")["publications"] if item["folder"] == str(path)]
    if not found:
        raise UsageError(f"{folder} is not published by this node")
    for item in found:
        node.ask("DELETE", f"/publications/{segment(item['model'])}")
        output.event("withdrawn", model=item["model"])
        output.line(f"{item['name']} is published no longer")
