"""`shoal models`: what the swarm can serve, or which layers it lacks; and the commands below it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import models_export, models_merge, models_publish, models_weights
from .flags import HomeFlag, JsonFlag
from .output import Output
from .table import show_table

HEADS = ["model", "layers", "context", "dtypes", "holders", "servable", "id"]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="List the swarm's models; fetch, merge or publish one.", invoke_without_command=True)

    @group.callback(epilog="Example: shoal models --json")
    def models(
        context: typer.Context,
        invite: Annotated[
            str | None, typer.Option("--invite", help="Ask the swarm of this invite, with no node running here.")
        ] = None,
        home: HomeFlag = None,
        json: JsonFlag = False,
    ) -> None:
        """List the swarm's models: servable or not, the missing layers, and who holds them.

        Without a node here it asks the swarm itself, and then knows the number of holders only.
        """
        if context.invoked_subcommand is None:
            show(home, invite, json)

    for module in (models_export, models_merge, models_publish, models_weights):
        module.register(group)
    app.add_typer(group, name="models")


def show(home: Path | None, invite: str | None, json: bool) -> None:
    output = Output(json)
    found, names = _found(home, invite)
    for model in found:
        output.event("model", **model, holder_names=names.get(model["id"]))
    if not found:
        output.note("no peer serves a model now; `shoal up MODEL` does")
        return
    show_table(output, HEADS, [_row(model, names) for model in found])


def _row(model: dict[str, Any], names: dict[str, list[str]]) -> list[object]:
    holders = ", ".join(names.get(model["id"], [])) or model["holders"]
    servable = f"no, missing {model['missing']}" if model["missing"] else "yes"
    dtypes = ", ".join(model["dtypes"])
    return [model["name"], model["layers"], model["max_context"], dtypes, holders, servable, model["id"][:12]]


def _found(folder: Path | None, invite: str | None) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The models, and the names of their holders by id where they are known."""
    from shoal.swarm.home import Home

    from .node_api import running_api

    node = None if invite else running_api(Home.find(folder))
    if node is not None:
        names: dict[str, list[str]] = {}
        for peer in node.get("/peers")["peers"]:
            for item in peer["hosted"]:
                names.setdefault(item["model"], []).append(peer["name"])
        return node.get("/models")["models"], names
    import msgspec

    from .client_opening import open_client

    with open_client(folder, invite, None, None) as client:
        return [msgspec.to_builtins(model) for model in client.models()], {}
