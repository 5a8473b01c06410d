"""When the only holder of some layers fails, one line names the layers, the holder and what was wrong with it."""

import anyio
import pytest
from simulation.session_world import world

from shoal.swarm.errors import ModelNotServable
from shoal.swarm.sessions.session_hop import Patience
from shoal.swarm.simulated.compute import Fault

TWO = (("first", "embed+0:3"), ("last", "3:6+head"))


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


@pytest.mark.anyio
@pytest.mark.parametrize("after", [0, 7])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("answer_nan", "bad_input: "),
        ("wrong_shape", "bad_input: "),
        ("never_answer", "answers probes but computes nothing"),
        ("break_down", "local: "),
    ],
)
async def test_the_error_names_the_layers_the_peer_and_its_fault(fault: Fault, words: str, after: int) -> None:
    async with world(*TWO, patience=Patience(step_s=5.0, prefill_s=10.0)) as swarm:
        swarm.volunteers["first"].compute.fail(fault, after)
        began = anyio.current_time()
        with pytest.raises(ModelNotServable) as caught:
            await swarm.generate(40)
        assert anyio.current_time() - began < 60.0
        message = str(caught.value)
        assert "layers 0:3" in message
        assert f"first failed: {words}" in message
        assert "\n" not in message
        assert caught.value.exit_code == 5
        await swarm.settled()
