"""Real processes, real daemons, kill -9 in mid-generation: the text does not change, and the pause is short."""

import random
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest

from shoal.node.local_swarm import LocalNode, create_invite, local_swarm, start_node
from shoal.swarm.errors import ModelNotServable
from shoal.swarm.home import Home
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.thin_client import thin_driver

pytestmark = [pytest.mark.network, pytest.mark.timeout(900)]
PROMPT = tuple(range(100, 140))
NEW = 64
RUNS = 20
PAUSE_S = 2.0
FRONT, BACK = "embed+0:4", "4:8+head"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


def peer_of(node: LocalNode) -> PeerId:
    answer = httpx.get(f"{node.api}/shoal/v1/status", headers={"authorization": f"Bearer {node.key}"}, timeout=30)
    return PeerId(answer.json()["peer"])


class Holders:
    """The nodes of a swarm by PeerID; the killed come back under their own identity."""

    def __init__(self, folder: Path, nodes: dict[str, LocalNode]) -> None:
        self._folder = folder
        self._by_peer = {peer_of(node): node for node in nodes.values()}

    def kill(self, peer: PeerId) -> None:
        self._by_peer[peer].kill()

    def restart(self, peer: PeerId, layers: str) -> None:
        old = self._by_peer[peer]
        old.stop()
        fresh = start_node(self._folder, old.name, ["--layers", layers])
        self._by_peer[peer] = fresh
        fresh.wait_for("ready")

    def stop(self) -> None:
        for node in self._by_peer.values():
            node.stop()


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[tuple[Holders, str]]:
    layout = {
        "front1": ["--layers", FRONT],
        "front2": ["--layers", FRONT],
        "back1": ["--layers", BACK],
        "back2": ["--layers", BACK],
    }
    with local_swarm(tmp_path, layout) as nodes:
        holders = Holders(tmp_path, nodes)
        try:
            yield holders, create_invite(nodes["front1"])
        finally:
            holders.stop()


async def only_model(driver: Driver) -> ModelId:
    return (await driver.models())[0].id


async def tokens_of(driver: Driver, model: ModelId) -> list[int]:
    async with driver.generate(TokenRequest(model, PROMPT, NEW)) as stream:
        return [choice.id async for choice in stream]


@pytest.mark.anyio
async def test_a_hop_killed_at_a_random_token_changes_nothing_in_20_of_20_runs(
    swarm: tuple[Holders, str], tmp_path: Path
) -> None:
    holders, invite = swarm
    generator = random.Random(20)
    async with anyio.create_task_group() as tasks, thin_driver(Home(tmp_path / "client"), tasks, invite) as driver:
        model = await only_model(driver)
        expected = await tokens_of(driver, model)
        for run in range(RUNS):
            at, place = generator.randrange(1, NEW - 1), generator.randrange(2)
            got: list[int] = []
            async with driver.generate(TokenRequest(model, PROMPT, NEW)) as stream:
                async for choice in stream:
                    got.append(choice.id)
                    if len(got) == at:
                        victim = stream.chain[place]
                        holders.kill(victim)
            assert got == expected, f"run {run}, hop {place} killed at token {at}"
            assert [failover.peer for failover in stream.route.failovers] == [victim], stream.route.failovers
            assert stream.route.failovers[0].pause_s <= PAUSE_S
            await anyio.to_thread.run_sync(holders.restart, victim, (FRONT, BACK)[place])
        tasks.cancel_scope.cancel()


async def kill_every_last_hop(driver: Driver, model: ModelId, holders: Holders) -> None:
    async with driver.generate(TokenRequest(model, PROMPT, 512)) as stream:
        async for _ in stream:
            if len(stream.route.failovers) < 2 and stream.chain:
                holders.kill(stream.chain[-1])


@pytest.mark.anyio
async def test_when_the_last_holder_dies_the_error_names_the_missing_layers(
    swarm: tuple[Holders, str], tmp_path: Path
) -> None:
    holders, invite = swarm
    async with anyio.create_task_group() as tasks, thin_driver(Home(tmp_path / "client"), tasks, invite) as driver:
        model = await only_model(driver)
        with anyio.fail_after(120), pytest.raises(ModelNotServable, match="4:8"):
            await kill_every_last_hop(driver, model, holders)
        tasks.cancel_scope.cancel()
