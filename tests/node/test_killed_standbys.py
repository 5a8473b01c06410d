"""Real processes and daemons, kill -9 of standbys: alone, and together with the hop that they stand by for."""

from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from node.test_killed_hop import Holders, only_model

from shoal.node.local_swarm import create_invite, local_swarm
from shoal.swarm.home import Home
from shoal.swarm.identifiers import PeerId
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.generation import Route, TokenRequest
from shoal.swarm.sessions.token_stream import DriverStream
from shoal.swarm.thin_client import thin_driver

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]
PROMPT = tuple(range(100, 300))
NEW = 400
FRONT, BACK = "embed+0:4", "4:8+head"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[tuple[Holders, str]]:
    layout = {"front": ["--layers", FRONT], **{f"back{n}": ["--layers", BACK] for n in (1, 2, 3)}}
    with local_swarm(tmp_path, layout) as nodes:
        holders = Holders(tmp_path, nodes)
        try:
            yield holders, create_invite(nodes["front"])
        finally:
            holders.stop()


async def tokens_of(
    driver: Driver, act: Callable[[DriverStream], None] | None = None, at: int = 60
) -> tuple[list[int], Route]:
    """act: called after `at` tokens, and when somebody stands by for the last hop"""
    got: list[int] = []
    request = TokenRequest(await only_model(driver), PROMPT, NEW, exactness="exact" if act else "replay")
    async with driver.generate(request) as stream:
        async for choice in stream:
            got.append(choice.id)
            if act is not None and len(got) >= at and stream.standbys[-1] is not None:
                act(stream)
                act = None
    assert act is None, "nobody stood by"
    return got, stream.route


@pytest.mark.anyio
async def test_a_killed_standby_costs_nothing_and_both_holders_killed_at_once_cost_a_replay(
    swarm: tuple[Holders, str], tmp_path: Path
) -> None:
    holders, invite = swarm
    gone: list[str] = []

    def kill_standby(stream: DriverStream) -> None:
        standby = stream.standbys[-1]
        assert standby is not None
        gone.append(standby)
        holders.kill(standby)

    def kill_both(stream: DriverStream) -> None:
        gone.append(stream.chain[-1])
        kill_standby(stream)
        holders.kill(stream.chain[-1])

    async with anyio.create_task_group() as tasks, thin_driver(Home(tmp_path / "client"), tasks, invite) as driver:
        expected, _ = await tokens_of(driver)

        got, route = await tokens_of(driver, kill_standby)
        assert got == expected
        assert not route.failovers, "the session did not even notice"

        await anyio.to_thread.run_sync(holders.restart, PeerId(gone.pop()), BACK)
        got, route = await tokens_of(driver, kill_both)
        assert got == expected
        lost, third = set(gone), {failover.replaced_by for failover in route.failovers}
        assert {failover.peer for failover in route.failovers} <= lost
        assert gone[0] in {failover.peer for failover in route.failovers}
        assert not any(failover.loaded for failover in route.failovers)
        assert not lost & {peer for peers in third for peer in peers}
        tasks.cancel_scope.cancel()
