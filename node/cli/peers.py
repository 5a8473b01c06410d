"""`shoal peers`: who is in the swarm; `shoal peers revoke` throws one out."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from .flags import HomeFlag, JsonFlag
from .output import Output
from .table import show_table

HEADS = ["name", "peer", "model", "layers", "dtype", "rtt ms", "standing", "step ms", "sessions", "version"]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="List the peers of the swarm, or revoke one.", invoke_without_command=True)

    @group.callback(epilog="Example: shoal peers --json")
    def peers(context: typer.Context, home: HomeFlag = None, json: JsonFlag = False) -> None:
        if context.invoked_subcommand is None:
            show(home, json)

    group.command(epilog="Example: shoal peers revoke ana")(revoke)
    app.add_typer(group, name="peers")


def show(home: HomeFlag, json: bool) -> None:
    from .node_api import NodeApi

    output = Output(json)
    rows: list[list[object]] = []
    for peer in NodeApi.of(home).get("/peers")["peers"]:
        output.event("peer", **peer)
        rows.extend(_row(peer, item) for item in parts_of(peer))
    show_table(output, HEADS, rows)


def parts_of(peer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What it holds of each model, and what it is about to hold."""
    parts: list[dict[str, Any]] = [dict(item) for item in peer["hosted"]]
    for item in peer.get("coming", ()):
        held = next((part for part in parts if part["model"] == item["model"]), None)
        if held is None:
            parts.append({**item, "layers": f"(moves to {item['layers']})"})
        else:
            held["layers"] += f" (moves to {item['layers']})" if item["settled"] else ""
    return parts if parts else [{}]


def _row(peer: Mapping[str, Any], item: Mapping[str, Any]) -> list[object]:
    """item: one of the peer's hosted spans, empty when it has none"""
    name = f"{peer['name']} (this node)" if peer["me"] else peer["name"]
    what = [item.get(key, "-") for key in ("name", "layers", "dtype")]
    load = [item.get(key) for key in ("step_ms", "sessions")]
    standing = peer.get("standing")
    shown = "-" if standing is None or peer["me"] else f"{standing:.2f}"
    if peer.get("remark") and not peer["me"]:
        shown = f"{shown} ({peer['remark']})"
    return [name, peer["peer"], *what, peer["rtt_ms"], shown, *load, peer["version"]]


def revoke(
    peer: Annotated[str, typer.Argument(help="A PeerID, the end of one, or a name, as `shoal peers` shows them.")],
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Throw a peer out of the swarm that this node owns; its sessions here end at once."""
    from .node_api import NodeApi, segment

    node = NodeApi.of(home)
    found = resolve(peer, node.get("/peers")["peers"])
    node.ask("POST", f"/peers/{segment(found)}/revoke", {})
    output = Output(json)
    output.event("revoked", peer=found)
    output.line(f"peer {found} is revoked: no member talks to it any more")


def resolve(text: str, peers: Sequence[Mapping[str, Any]]) -> str:
    """The PeerID that a user means; one that is not online now is given whole.

    raises: UsageError when it is none, or several
    """
    from shoal.swarm.errors import UsageError
    from shoal.swarm.peer_id import is_peer_id

    if is_peer_id(text):
        return text
    found = {peer["peer"] for peer in peers if peer["name"] == text or (len(text) > 3 and peer["peer"].endswith(text))}
    if len(found) > 1:
        raise UsageError(f"{len(found)} peers are called {text!r}; give the PeerID, as `shoal peers` shows it")
    if not found:
        raise UsageError(f"no peer {text!r} is online; `shoal peers` lists them, an absent one needs its whole PeerID")
    return str(found.pop())
