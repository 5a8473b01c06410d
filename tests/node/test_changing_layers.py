"""Real nodes, daemons and engines: a node takes other layers while sessions pass through it, and after a kill -9."""

import gc
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import torch
from node.families.three_nodes import RunningNodes, generate, running_nodes

from shoal.node.local_swarm import LocalNode, local_swarm
from shoal.node.model_source import LocalModel, embedded_folder
from shoal.node.node import Node
from shoal.node.shard import LayerDone, Shard
from shoal.swarm.errors import OutOfMemory, Refused
from shoal.swarm.identifiers import ModelId
from shoal.swarm.routing.placement import Placement
from shoal.swarm.sessions.generation import Route, TokenRequest
from shoal.swarm.units import Span

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]
FRONT, BACK = Span(0, 5), Span(5, 10)
PROMPT = tuple(range(100, 260))
NEW = 400
IN_PLACE = "88MB"  # holds half of the model with its KV cache, and not both halves
PATIENCE_S = 30.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


def model_of(node: Node) -> ModelId:
    return next(iter(node.hosted)).model


@asynccontextmanager
async def one_front_two_backs(folder: Path, max_memory: str | None) -> AsyncIterator[RunningNodes]:
    async with running_nodes(folder) as running:
        await running.start(embedded_folder(), "embed+0:4", max_memory)
        await running.start(embedded_folder(), "4:8+head", max_memory)
        await running.start(embedded_folder(), "4:8+head", max_memory)
        with anyio.fail_after(PATIENCE_S):
            while any(len(node.known()) < 3 for node in running.nodes):  # noqa: ASYNC110  no hook to wait for
                await anyio.sleep(0.1)
        yield running


@pytest.mark.anyio
@pytest.mark.parametrize("max_memory", [None, IN_PLACE], ids=["beside", "in place"])
async def test_sessions_go_on_at_successors_while_a_node_takes_other_layers(
    tmp_path: Path, max_memory: str | None
) -> None:
    async with one_front_two_backs(tmp_path, max_memory) as running:
        front, *backs = running.nodes
        request = TokenRequest(model_of(front), PROMPT, NEW, exactness="exact")
        expected, _ = await generate(front, request)
        moved: list[Node] = []
        layers: list[weakref.ref[Shard]] = []
        seen: list[list[dict[str, Any] | None]] = []

        async def move(last: str) -> None:
            (mover,) = [node for node in backs if node.transport.me == last]
            layers.append(weakref.ref(next(iter(mover.hosted)).engine.shard))
            async with anyio.create_task_group() as tasks:
                told: list[dict[str, Any] | None] = []
                seen.append(told)

                async def watch() -> None:
                    while True:
                        told.append(mover.hosting.told_move())
                        await anyio.sleep(0.02)

                tasks.start_soon(watch)
                await mover.hosting.move_to(Placement(FRONT, "the test says so"))
                tasks.cancel_scope.cancel()
            moved.append(mover)

        async def one(tokens: list[int], *, moves: bool) -> Route:
            async with front.driver.generate(request) as stream:
                async for choice in stream:
                    tokens.append(choice.id)
                    if moves and len(tokens) == 20:
                        tasks.start_soon(move, stream.chain[-1])
            return stream.route

        got: list[list[int]] = [[], []]
        routes: list[Route] = []
        async with anyio.create_task_group() as tasks:

            async def run(index: int) -> None:
                routes.append(await one(got[index], moves=index == 0))

            for index in range(len(got)):
                tasks.start_soon(run, index)
        assert got == [expected, expected]
        (mover,) = moved
        gone = [failover for route in routes for failover in route.failovers if failover.peer == mover.transport.me]
        assert gone
        assert all(failover.planned and failover.loaded > 0 for failover in gone), gone

        stages = {move["stage"] for move in seen[0] if move is not None}
        assert "loading" in stages
        assert mover.hosting.told_move() is None
        assert [hosted.span for hosted in mover.hosted] == [FRONT]
        assert [(h.span, r.coming) for r in front.known() if r.peer == mover.transport.me for h in r.hosted] == [
            (FRONT, ())
        ]
        gc.collect()
        assert layers[0]() is None, "the old layers are still in memory"
        with pytest.raises(Refused, match="only embed"):
            mover.hosted.find(request.model, "float32", BACK)

        through_mover = TokenRequest(request.model, PROMPT, 20, exclude=frozenset({front.transport.me}))
        again, route = await generate(mover, through_mover)
        assert again == expected[:20]
        assert mover.transport.me in {hop.peer for hop in route.hops}


@pytest.mark.anyio
async def test_layers_that_cannot_be_loaded_leave_a_node_with_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its old layers are gone already by then, and are loaded again."""
    async with one_front_two_backs(tmp_path, IN_PLACE) as running:
        front, mover, other = running.nodes
        real = Shard.load

        def fails(model: LocalModel, span: Span, dtype: str, device: torch.device, done: LayerDone) -> Shard:
            if span == FRONT:
                raise OutOfMemory("no memory left while loading unit 3")
            return real(model, span, dtype, device, done)

        monkeypatch.setattr(Shard, "load", fails)
        with pytest.raises(OutOfMemory):
            await mover.hosting.move_to(Placement(FRONT, "the test says so"))
        await mover.loops.announce()
        assert [hosted.span for hosted in mover.hosted] == [BACK]
        assert mover.record().coming == ()
        request = TokenRequest(model_of(front), PROMPT, 20, exclude=frozenset({other.transport.me}))
        tokens, route = await generate(front, request)
        assert len(tokens) == 20
        assert route.hops[-1].peer == mover.transport.me

        given = mover.options
        for options, wanted in (
            (given, False),  # its layers were named
            (replace(given, layers=None), True),
            (replace(given, layers=None, rebalance=False), False),
            (replace(given, layers=None, follow="a run"), False),
        ):
            mover.options = options
            assert mover.rebalancing.is_wanted == wanted


def status(node: LocalNode) -> dict[str, Any]:
    answer = httpx.get(f"{node.api}/shoal/v1/status", headers={"authorization": f"Bearer {node.key}"}, timeout=30)
    return dict(answer.json())


def spans(node: LocalNode) -> dict[str, tuple[int, int]]:
    """What a node knows of who holds what, by name."""
    return {peer["name"]: (h["start"], h["stop"]) for peer in status(node)["peers"] for h in peer["hosted"]}


def uncovered(held: dict[str, tuple[int, int]]) -> set[int]:
    return set(range(10)) - {unit for start, stop in held.values() for unit in range(start, stop)}


def answer_of(node: LocalNode) -> str:
    asked = {"prompt": "It was a cold morning, and", "max_tokens": 24, "temperature": 0}
    key = {"authorization": f"Bearer {node.key}"}
    answer = httpx.post(f"{node.api}/v1/completions", json=asked, headers=key, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def until(what: str, holds: Callable[[], bool], patience_s: float) -> None:
    deadline = time.monotonic() + patience_s  # noqa: TID251  real nodes, the real clock
    while not holds():
        assert time.monotonic() < deadline, what  # noqa: TID251
        time.sleep(0.5)


def test_after_a_kill_the_others_cover_the_model_again_by_themselves(tmp_path: Path) -> None:
    """Each holds half of the layers, chosen by itself; the only holder of one half is killed."""
    half = ["--max-memory", IN_PLACE, "--api-port", "0"]
    with local_swarm(tmp_path, {"ana": half, "ben": half, "cleo": half}) as nodes:
        until("all know each other", lambda: all(len(spans(node)) == 3 for node in nodes.values()), PATIENCE_S)
        held = spans(nodes["ana"])
        assert not uncovered(held)
        (victim,) = [name for name in held if uncovered({n: s for n, s in held.items() if n != name})]
        alive = [node for name, node in nodes.items() if name != victim]
        before = answer_of(alive[0])
        nodes[victim].kill()
        until("the dead node is out of the listing", lambda: victim not in spans(alive[0]), 60.0)
        assert uncovered(spans(alive[0]))
        until("covered again", lambda: all(not uncovered(spans(node)) for node in alive), 120.0)
        assert [answer_of(node) for node in alive] == [before, before]
        told = [event for node in alive for event in node.events if event["event"].startswith("layers_mov")]
        assert [event["event"] for event in told] == ["layers_moving", "layers_moved"], told
        assert "nobody holds" in told[0]["reason"]
        moves = {node.name: status(node)["moves"] for node in alive}
        assert sorted(moves.values()) == [0, 1]
        for node in alive:
            metrics = httpx.get(f"{node.api}/metrics", headers={"authorization": f"Bearer {node.key}"}, timeout=30).text
            assert ('shoal_layer_moves_total{model="novels-6m"} 1.0' in metrics) == (moves[node.name] == 1)
