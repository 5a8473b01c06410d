"""`shoal models fetch`, `held` and `drop`: weights that lie on this machine."""

import threading
from typing import Annotated, Any

import typer

from shoal.swarm.errors import UsageError
from shoal.swarm.home import Home

from .flags import HomeFlag, JsonFlag
from .output import Output
from .table import show_table

FETCH_S = 7 * 24 * 3600.0  # a large model over a slow line
LOOK_S = 0.5
HEADS = ["model", "id", "from", "MB here", "MB in all", "use", "folder"]


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: shoal models fetch novels-6m --layers embed+0:4")(fetch)
    app.command(epilog="Example: shoal models held --json")(held)
    app.command(epilog="Example: shoal models drop 3f9a0c1b2d4e")(drop)


def fetch(
    model: Annotated[str, typer.Argument(help="Name or id in the swarm, or a hub id.")],
    layers: Annotated[str, typer.Option("--layers", help="all, 0:4, embed+0:4 or 4:8+head.")] = "all",
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Bring a model's weights here through the running node, from all members that have them, and serve nothing.

    The node gives on what it has. What was cut goes on where it stopped.
    """
    from .node_api import NodeApi

    output = Output(json)
    node = NodeApi.of(home, FETCH_S)
    with _Bar(NodeApi.of(home), output):
        made = node.ask("POST", "/weights", {"model": model, "layers": layers})
    output.event("fetched", **made)
    output.line(made["model"])
    givers = len(made["givers"])
    came = f"{made['fetched_bytes'] / 1e6:.1f} MB from {givers} peers" if givers else "nothing had to be fetched"
    output.note(f"{made['name']}: {came}; {_amount(made)} MB are in {made['folder']}")


def held(home: HomeFlag = None, json: JsonFlag = False) -> None:
    """List the weights on this machine: of which model, from where, how much; and what this node gave to others."""
    from .node_api import running_api

    output = Output(json)
    node = running_api(Home.find(home))
    state: dict[str, Any] = {"models": []} if node is None else node.get("/weights")
    found = {item["model"]: item for item in state["models"]}
    for item in _on_disk(Home.find(home)):
        found.setdefault(item["model"], item)
    for item in found.values():
        output.event("held", **item)
    if node is not None:
        facts = {key: state[key] for key in ("given_bytes", "upload_byte_s")}
        output.event("given", **facts)
    if not found:
        output.note("no weights are here yet; `shoal models fetch MODEL` brings some")
        return
    show_table(output, HEADS, [_row(item) for item in found.values()])
    if node is not None:
        limit = f"at most {state['upload_byte_s'] / 1e6:.1f} MB/s" if state["upload_byte_s"] else "nothing is given"
        output.note(f"given to others since the start: {state['given_bytes'] / 1e6:.1f} MB ({limit})")


def drop(
    model: Annotated[str, typer.Argument(help="Name or id of a model that came from peers.")],
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Delete weights that came from peers. Those of a folder or a hub are left alone."""
    from shoal.node.peer_folder import PeerFolder

    from .node_api import running_api, segment

    output = Output(json)
    folder = Home.find(home)
    there = [item for item in _on_disk(folder) if item["origin"] == "peers"]
    found = [item for item in there if item["name"] == model or item["model"].startswith(model)]
    if len(found) != 1:
        what = "several models" if found else "no weights from peers"
        raise UsageError(f"there are {what} called {model} here; `shoal models held` lists them")
    node = running_api(folder)
    if node is not None:
        node.ask("DELETE", f"/weights/{segment(found[0]['model'])}")
    else:
        PeerFolder.of(folder.cache, found[0]["model"]).remove()
    output.event("dropped", model=found[0]["model"])
    output.line(f"{found[0]['name']} is gone from this machine: {found[0]['held_bytes'] / 1e6:.1f} MB")


def _on_disk(home: Home) -> list[dict[str, Any]]:
    """What came from peers or a hub, whether a node runs or not."""
    from shoal.node.weights_on_disk import held_on_disk

    return [
        {
            "model": held.model,
            "name": held.manifest.name,
            "origin": held.local.origin,
            "held_bytes": held.held_bytes,
            "total_bytes": held.total_bytes,
            "folder": str(held.local.folder),
            "serving": False,
            "published": False,
        }
        for held in held_on_disk(home.cache)
    ]


def _row(item: dict[str, Any]) -> list[object]:
    use = ", ".join(word for word in ("serving", "published") if item[word])
    here, total = item["held_bytes"] / 1e6, item["total_bytes"] / 1e6
    return [item["name"], item["model"][:12], item["origin"], here, total, use or None, item["folder"]]


def _amount(item: dict[str, Any]) -> str:
    return f"{item['held_bytes'] / 1e6:.1f} of {item['total_bytes'] / 1e6:.1f}"


class _Bar:
    """Shows on a terminal how far the node is, while another request waits for the end."""

    def __init__(self, node: Any, output: Output) -> None:  # noqa: ANN401  NodeApi, which is imported late
        from .start_screen import StartScreen

        self._node, self._screen = node, StartScreen(output, node.home)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._shows = not output.json

    def __enter__(self) -> None:
        if self._shows:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._shows:
            self._thread.join(LOOK_S * 4)
        self._screen.close()

    def _watch(self) -> None:
        from shoal.node.node_events import LoadProgress
        from shoal.swarm.errors import ShoalError

        while not self._ended.wait(LOOK_S):
            try:
                running = self._node.get("/weights")["fetching"]
            except ShoalError:
                return
            for each in running:
                self._screen.show(LoadProgress(each["what"], each["done"], each["total"]))
