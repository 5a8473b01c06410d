"""Real processes and daemons: kill -9 of a hop with a standby, and nodes that leave; the text does not change."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import pytest

from shoal.node.local_swarm import LocalNode, create_invite, environment, local_swarm
from shoal.swarm.home import Home
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.generation import Exactness, Failover, Route, TokenRequest
from shoal.swarm.thin_client import thin_driver

pytestmark = [pytest.mark.network, pytest.mark.timeout(900)]
PROMPT = tuple(range(100, 300))
NEW = 1000  # so that a command has time to start meanwhile
FRONT, BACK = "embed+0:4", "4:8+head"
Act = Callable[[tuple[PeerId, ...]], None]
LAYOUT = {
    "front1": ["--layers", FRONT],
    "front2": ["--layers", FRONT],
    "back1": ["--layers", BACK],
    "back2": ["--layers", BACK],
    "back3": ["--layers", BACK],
}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[dict[str, LocalNode]]:
    with local_swarm(tmp_path, LAYOUT) as nodes:
        yield nodes


def status(node: LocalNode) -> dict[str, object]:
    answer = httpx.get(f"{node.api}/shoal/v1/status", headers={"authorization": f"Bearer {node.key}"}, timeout=30)
    return dict(answer.json())


def leave(node: LocalNode, *flags: str) -> list[dict[str, object]]:
    """`shoal down`, and the events that it told."""
    command = [sys.executable, "-P", "-m", "shoal", "down", "--home", str(node.home.root), "--json", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


async def tokens_of(
    driver: Driver,
    model: ModelId,
    exactness: Exactness,
    at: int = 0,
    act: Act | None = None,
    *,
    keep_snapshots: bool = False,
) -> tuple[list[int], Route]:
    """act: called on a thread with the chain after `at` tokens, while the session goes on"""
    got: list[int] = []
    request = TokenRequest(model, PROMPT, NEW, exactness=exactness, keep_snapshots=keep_snapshots)
    async with anyio.create_task_group() as tasks:
        async with driver.generate(request) as stream:
            async for choice in stream:
                got.append(choice.id)
                if act is not None and len(got) == at:
                    tasks.start_soon(anyio.to_thread.run_sync, act, stream.chain)
        return got, stream.route


@pytest.mark.anyio
async def test_killed_hops_come_back_from_snapshots_and_leaving_ones_hand_over(
    swarm: dict[str, LocalNode], tmp_path: Path
) -> None:
    by_peer = {PeerId(str(status(node)["peer"])): node for node in swarm.values()}
    invite = create_invite(swarm["front1"])
    told: list[dict[str, object]] = []
    gone: list[PeerId] = []

    def kill(place: int) -> Act:
        def act(chain: tuple[PeerId, ...]) -> None:
            gone.append(chain[place])
            by_peer[chain[place]].kill()

        return act

    def drain_last(chain: tuple[PeerId, ...]) -> None:
        gone.append(chain[-1])
        told.extend(leave(by_peer[chain[-1]], "--drain", "--drain-limit", "30"))

    def repair(route: Route) -> Failover | None:
        """That of the last to go; a client that has not heard of earlier ones yet may have tried them first."""
        return next((failover for failover in route.failovers if failover.peer == gone[-1]), None)

    async with anyio.create_task_group() as tasks, thin_driver(Home(tmp_path / "client"), tasks, invite) as driver:
        model = (await driver.models())[0].id
        expected, _ = await tokens_of(driver, model, "replay")

        for place, keep_snapshots in ((-1, False), (0, True)):  # a client keeps them itself and listens nowhere
            got, route = await tokens_of(driver, model, "exact", 400, kill(place), keep_snapshots=keep_snapshots)
            assert got == expected
            failover = repair(route)
            assert failover is not None
            assert not failover.planned
            assert failover.loaded >= 192, failover

        got, route = await tokens_of(driver, model, "exact", 10, drain_last)
        assert got == expected
        move = repair(route)
        assert move is not None
        assert move.planned, move
        assert move.loaded > len(PROMPT)
        assert [event["moved"] for event in told if event["event"] == "draining"][-1] == 1
        assert told[-1]["event"] == "stopped"

        # Two of the three that held these layers are gone: the last one has no successor, and says so.
        got, route = await tokens_of(driver, model, "replay", 10, drain_last)
        assert got == expected
        assert repair(route) is None
        stranded = [str(event["stranded"]) for event in told if event["event"] == "draining"]
        assert any("4:8" in reason for reason in stranded), told
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_signal_moves_the_sessions_too(swarm: dict[str, LocalNode], tmp_path: Path) -> None:
    by_peer = {PeerId(str(status(node)["peer"])): node for node in swarm.values()}
    invite = create_invite(swarm["front1"])

    def terminate_both(chain: tuple[PeerId, ...]) -> None:
        for peer in chain:
            if by_peer[peer].name != "front1":  # it owns the swarm
                by_peer[peer].process.terminate()

    async with anyio.create_task_group() as tasks, thin_driver(Home(tmp_path / "client"), tasks, invite) as driver:
        model = (await driver.models())[0].id
        expected, _ = await tokens_of(driver, model, "replay")
        got, route = await tokens_of(driver, model, "replay", 10, terminate_both)
        assert got == expected
        assert route.failovers
        assert all(move.planned for move in route.failovers), route.failovers
        tasks.cancel_scope.cancel()
