"""When the reason lies with the asking node itself, it says so, and not that nobody holds the layers."""

from collections.abc import Callable
from dataclasses import dataclass

import anyio
import pytest
from simulation.session_world import DRIVER, PROMPT, OpenGate, World, world

from shoal.swarm.errors import DaemonDied, Refused, ShoalError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.sessions.driver import Driver

SPARE = [("front", "embed+0:3"), ("back 1", "3:6+head"), ("back 2", "3:6+head")]
FRONT, BACK = (PeerId(name) for name, _ in SPARE[:2])


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


@dataclass
class NoMember(OpenGate):
    """Of a node that the owner has thrown out."""

    me: PeerId
    thrown_out: bool = False

    def admit(self, peer: PeerId, certificate: bytes) -> None:
        if self.thrown_out and peer == self.me:
            raise Refused(f"peer {peer} was revoked by the owner of the swarm")


async def broken(swarm: World, kind: type[ShoalError], disturb: Callable[[list[PeerId]], None]) -> str:
    """What a session of which this becomes after five tokens ends with."""
    got: list[int] = []
    with anyio.fail_after(60.0), pytest.raises(kind) as caught:
        await swarm.generate(24, PROMPT, disturb=(5, disturb), tokens=got)
    assert 5 <= len(got) < 24
    return str(caught.value)


@pytest.mark.anyio
@pytest.mark.parametrize("within", ["", "front", "back 1"])
async def test_an_own_daemon_that_dies_in_mid_answer_is_named_and_no_peer_is_blamed(within: str) -> None:
    async with world(*SPARE) as swarm:
        if within:
            swarm.start_driver(within=within)
        me = PeerId(within) if within else DRIVER
        told = await broken(swarm, DaemonDied, lambda _: swarm.network.kill(me))
        assert "holds" not in told
        assert swarm.blamed == []


@pytest.mark.anyio
@pytest.mark.parametrize("later_s", [0.0, 0.01, 0.1, 0.9, 1.5])
async def test_a_death_that_is_seen_after_the_streams_broke_is_named_too(later_s: float) -> None:
    async with world(*SPARE[:2]) as swarm, anyio.create_task_group() as tasks:

        async def die() -> None:
            await anyio.sleep(later_s)
            swarm.network.kill(DRIVER)

        def disturb(_: list[PeerId]) -> None:
            swarm.network.kill(BACK)  # its stream breaks, and nobody else holds its layers
            tasks.start_soon(die)

        await broken(swarm, DaemonDied, disturb)


@pytest.mark.anyio
async def test_a_node_that_was_revoked_meanwhile_is_told_so() -> None:
    async with world(*SPARE[:2]) as swarm:
        transport = swarm.transports[FRONT]
        gate = NoMember(FRONT)
        swarm.driver = Driver(transport, gate, swarm, swarm.tasks, seed=1)

        def disturb(_: list[PeerId]) -> None:
            gate.thrown_out = True
            swarm.network.kill(BACK)  # as members do not talk to it any more

        assert "was revoked by the owner" in await broken(swarm, Refused, disturb)
        with pytest.raises(Refused, match="was revoked by the owner"):
            await swarm.driver.models()
