"""Peers that open a stream and then say nothing, or not enough."""

import anyio
import pytest
from simulation.session_world import PROMPT, SWARM, world

from shoal.swarm.errors import StreamBroken
from shoal.swarm.identifiers import PROTOCOL_VERSION, PeerId
from shoal.swarm.members.handshake import SILENCE_S
from shoal.swarm.sessions import messages
from shoal.swarm.sessions.messages import CONTROL_PROTOCOL, PUSH_PROTOCOL, Hello, Welcome

HELLO = messages.encode(Hello(PROTOCOL_VERSION, SWARM, b""))


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


@pytest.mark.anyio
@pytest.mark.parametrize("protocol", [CONTROL_PROTOCOL, PUSH_PROTOCOL])
@pytest.mark.parametrize("said", [[], [HELLO]], ids=["nothing", "Hello alone"])
async def test_a_stream_on_which_nothing_comes_is_dropped_in_time(protocol: str, said: list[bytes]) -> None:
    async with world(("one", "all")) as swarm:
        stranger = swarm.network.join(PeerId("stranger"))
        one = swarm.transports[PeerId("one")]
        streams = [await stranger.open(PeerId("one"), protocol) for _ in range(20)]
        for stream in streams:
            for frame in said:
                await stream.send(frame)
        await anyio.sleep(1.0)
        assert one.handlers_running == 20
        with anyio.fail_after(2 * SILENCE_S):
            await swarm.streams_ended()
            for stream in streams:
                if said:
                    assert isinstance(messages.decode(await stream.receive() or b""), Welcome)
                with pytest.raises(StreamBroken):
                    await stream.receive()
        assert len((await swarm.generate(3, PROMPT))[0]) == 3
