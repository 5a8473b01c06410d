"""A node that takes other layers hands over what runs on the old ones, and goes on with what runs on the new ones."""

import anyio
import pytest
from simulation.session_world import MODEL, MODEL_ID, OpenGate, World, world

from shoal.swarm.errors import StreamBroken
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.members.handshake import greet, next_message, read_welcome
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.generation import Exactness
from shoal.swarm.sessions.hop_server import Drained  # noqa: TC001  used at run time by nothing else
from shoal.swarm.sessions.messages import CONTROL_PROTOCOL, Hold, Open, Opened, encode
from shoal.swarm.simulated.compute import SimulatedCompute
from shoal.swarm.units import parse

FRONT, BACK = "embed+0:3", "3:6+head"
LAYOUT = [("front 0", FRONT), ("back 0", BACK), ("back 1", BACK)]
PROMPT = tuple((7 * i + 3) % MODEL.vocabulary for i in range(150))
COUNT = 40
EXPECTED = MODEL.expected_tokens(PROMPT, COUNT)


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


class Exchange:
    """Has the last hop of a chain take the front layers. drained: what became of its sessions"""

    def __init__(self, swarm: World, tasks: anyio.abc.TaskGroup, limit_s: float = 60.0) -> None:
        self._swarm, self._tasks, self._limit_s = swarm, tasks, limit_s
        self.mover = PeerId("")
        self.drained: Drained | None = None

    def __call__(self, busy: list[PeerId]) -> None:
        self.mover = busy[-1]
        self._tasks.start_soon(self._exchange)

    async def _exchange(self) -> None:
        volunteer, server = self._swarm.volunteers[self.mover], self._swarm.servers[self.mover]
        old, span = volunteer.compute, parse(FRONT, MODEL.layers)
        volunteer.compute, volunteer.span = SimulatedCompute(MODEL, (span,), 1 << 16, 0.0005), span
        self.drained = await server.drain(self._limit_s, lambda _: None, of=old)
        server.end(old)


@pytest.mark.anyio
@pytest.mark.parametrize("exactness", ["exact", "fast", "replay"])
async def test_a_session_on_the_old_layers_moves_and_one_on_the_new_ones_stays(exactness: Exactness) -> None:
    async with world(*LAYOUT) as swarm, anyio.create_task_group() as tasks:
        exchange = Exchange(swarm, tasks)
        with anyio.fail_after(60.0):
            tokens, route = await swarm.generate(COUNT, PROMPT, disturb=(10, exchange), exactness=exactness)
        assert tokens == EXPECTED
        (move,) = route.failovers
        assert move.planned
        assert move.peer == exchange.mover
        assert not swarm.blamed
        assert exchange.drained is not None
        assert (exchange.drained.sessions, exchange.drained.moved, exchange.drained.waiting) == (1, 1, 0)

        await swarm.servers["front 0"].drain(60.0, lambda _: None)  # so that the mover is the only front
        swarm.departed.add("front 0")
        with anyio.fail_after(60.0):
            tokens, route = await swarm.generate(COUNT, PROMPT)
        assert tokens == EXPECTED
        assert route.hops[0].peer == exchange.mover
        await swarm.settled()


@pytest.mark.anyio
async def test_a_session_that_no_single_peer_can_take_goes_on_at_several_when_its_layers_end() -> None:
    """There is no successor for a whole hop; when the time is up it is replaced as a lost one is, by two."""
    layout = [("front 0", FRONT), ("back 0", BACK)]
    async with world(*layout) as swarm, anyio.create_task_group() as tasks:
        exchange = Exchange(swarm, tasks, limit_s=1.0)

        def disturb(busy: list[PeerId]) -> None:
            tasks.start_soon(split_back, busy)

        async def split_back(busy: list[PeerId]) -> None:
            await swarm.join("middle", "3:5")
            await swarm.join("end", "5:6+head")
            exchange(busy)

        with anyio.fail_after(60.0):
            tokens, route = await swarm.generate(400, PROMPT, disturb=(10, disturb), exactness="exact")
        assert tokens == MODEL.expected_tokens(PROMPT, 400)
        (loss,) = route.failovers
        assert loss.peer == "back 0"
        assert set(loss.replaced_by) == {"middle", "end"}
        assert exchange.drained is not None
        assert exchange.drained.stranded
        await swarm.settled()


@pytest.mark.anyio
async def test_a_standby_whose_layers_end_is_replaced_by_another() -> None:
    layout = [*LAYOUT, ("back 2", BACK)]
    async with world(*layout) as swarm, anyio.create_task_group() as tasks:
        ended: list[str] = []

        def disturb(busy: list[PeerId]) -> None:
            tasks.start_soon(end_standby, busy)

        async def end_standby(busy: list[PeerId]) -> None:
            standby = next(
                n for n, s in swarm.servers.items() if n not in busy and len(s.receiver.keeper) and n != "front 0"
            )
            volunteer, old = swarm.volunteers[standby], swarm.volunteers[standby].compute
            span = parse(FRONT, MODEL.layers)
            volunteer.compute, volunteer.span = SimulatedCompute(MODEL, (span,), 1 << 16, 0.0005), span
            swarm.servers[standby].end(old)
            ended.append(standby)
            with anyio.fail_after(60.0):
                while len(swarm.servers[standby].receiver.keeper):  # noqa: ASYNC110  no hook to wait for
                    await anyio.sleep(0.05)

        with anyio.fail_after(300.0):
            tokens, route = await swarm.generate(400, PROMPT, disturb=(20, disturb), exactness="exact")
        assert tokens == MODEL.expected_tokens(PROMPT, 400)
        assert ended
        assert not route.failovers
        await swarm.settled()


@pytest.mark.anyio
async def test_a_session_and_a_cache_of_one_name_both_end_with_their_layers() -> None:
    """Whatever a driver calls them: what is not ended keeps layers in memory that were let go."""
    async with world(("all", "all")) as swarm:
        stranger, name = swarm.network.join(PeerId("stranger")), SessionId("s")
        span, hidden = parse(BACK, MODEL.layers), parse(FRONT, MODEL.layers)
        requests = (
            Open(name, MODEL_ID, "float32", span, 100, stranger.me, None, None, (), Sampling(), ()),
            Hold(name, MODEL_ID, "float32", hidden, stranger.me),
        )
        streams = []
        for request in requests:
            stream = await stranger.open(PeerId("all"), CONTROL_PROTOCOL)
            await greet(stream, OpenGate())
            await stream.send(encode(request))
            await read_welcome(stream, OpenGate())
            assert isinstance(await next_message(stream), Opened)
            streams.append(stream)
        swarm.servers["all"].end(swarm.volunteers["all"].compute)
        for stream in streams:
            with anyio.fail_after(5.0), pytest.raises(StreamBroken):
                await next_message(stream)
        assert not swarm.servers["all"].sessions()
