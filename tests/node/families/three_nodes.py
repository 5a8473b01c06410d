"""Real nodes of one private swarm in one event loop: each with its own home, identity, p2pd, DHT node, engine and API.

They are started by `run_node`, as `shoal up` and `shoal join` start them; only the process is shared.
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from shoal.node.node import Node, run_node
from shoal.node.node_events import NodeEvent
from shoal.node.options import NodeOptions
from shoal.swarm.home import Home
from shoal.swarm.sessions.generation import Route, TokenRequest
from shoal.swarm.transports.p2pd import NetworkOptions

START_S = 60.0
STOP_S = 30.0
SPLIT = ("embed+0:1", "1:3", "3:4+head")


class RunningNodes:
    """The first node founds the swarm and invites the others."""

    def __init__(self, folder: Path, tasks: TaskGroup) -> None:
        self.nodes: list[Node] = []  # in the order in which they became ready
        self._folder = folder
        self._tasks = tasks
        self._started = 0
        self._gone: list[anyio.Event] = []

    async def start(
        self, model: Path | None, layers: str | None = None, max_memory: str | None = None, *, ledger: bool = False
    ) -> Node:
        """Returns when the node is ready."""
        name = f"node{self._started}"
        self._started += 1
        options = NodeOptions(
            home=Home(self._folder / name),
            name=name,
            model=None if model is None else str(model),
            layers=layers,
            dtype="float32",
            device="cpu",
            max_memory=max_memory,
            threads=1,
            network=NetworkOptions(host="127.0.0.1", nat=False),
            api_port=0,
            invite=self._invite() if self.nodes else None,
            ledger=ledger,
        )
        running, gone = anyio.Event(), anyio.Event()
        started: list[Node] = []

        def is_ready(node: Node) -> None:
            started.append(node)
            self.nodes.append(node)
            running.set()

        async def serve() -> None:
            try:
                await run_node(options, _ignore, is_ready)
            finally:
                gone.set()

        self._tasks.start_soon(serve)
        self._gone.append(gone)
        with anyio.fail_after(START_S):
            await running.wait()
        return started[0]

    def _invite(self) -> str:
        owner = self.nodes[0]
        assert owner.invites is not None
        return owner.invites.create(owner.full_addresses, time.time())  # noqa: TID251  invites expire by the real clock

    async def stop(self) -> None:
        for node in self.nodes:
            node.ask_to_stop("the test is over")
        with anyio.fail_after(STOP_S):
            for gone in self._gone:
                await gone.wait()


def _ignore(_: NodeEvent) -> None:
    return


@asynccontextmanager
async def running_nodes(folder: Path) -> AsyncIterator[RunningNodes]:
    async with anyio.create_task_group() as tasks:
        nodes = RunningNodes(folder, tasks)
        yield nodes
        await nodes.stop()


@asynccontextmanager
async def three_nodes(folder: Path, model: Path, split: Sequence[str] = SPLIT) -> AsyncIterator[list[Node]]:
    """Nodes that hold the parts of a model folder that `split` names, the last two started at once."""
    async with running_nodes(folder) as running:
        await running.start(model, split[0])
        async with anyio.create_task_group() as starting:
            for layers in split[1:]:
                starting.start_soon(running.start, model, layers)
        yield running.nodes


async def generate(node: Node, request: TokenRequest) -> tuple[list[int], Route]:
    """What a node's own driver gives for a request."""
    async with node.driver.generate(request) as stream:
        tokens = [choice.id async for choice in stream]
    return tokens, stream.route
