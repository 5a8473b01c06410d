"""Sessions of real engines that lose a hop or are left by one: the tokens are those of the undisturbed run."""

from collections.abc import Iterator

import anyio
import pytest
from node.engine_chain import local_model
from node.tiny_models import VOCABULARY, make_model, save_model

from shoal.node.paced_swarm import PacedSwarm
from shoal.swarm.sampling import Sampling

PROMPT = tuple((11 * i + 5) % VOCABULARY for i in range(140))
NEW = 110
SAMPLINGS = [Sampling(), Sampling(temperature=0.9, seed=3), Sampling(repetition_penalty=1.3)]


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def swarm(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[PacedSwarm]:
    folder = tmp_path_factory.mktemp("moving")
    save_model(make_model(request.param), folder / "model")
    with PacedSwarm(local_model(folder / "model", folder / "cache"), rtt_ms=5.0, kv_tokens=1024) as made:
        yield made


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_hop_comes_back_from_its_snapshot(swarm: PacedSwarm, sampling: Sampling, victim: int) -> None:
    async def check() -> None:
        with anyio.fail_after(60.0):
            whole, _ = await swarm.generate(PROMPT, NEW, sampling=sampling)
            got, route = await swarm.generate(PROMPT, NEW, "exact", kill_at=5, victim=victim, sampling=sampling)
        assert got == whole
        assert [failover.loaded for failover in route.failovers] == [128]

    anyio.run(swarm.running, check)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_leaving_hop_hands_all_of_it_over(swarm: PacedSwarm, sampling: Sampling, victim: int) -> None:
    async def check() -> None:
        with anyio.fail_after(60.0):
            whole, _ = await swarm.generate(PROMPT, NEW, sampling=sampling)
            got, route = await swarm.generate(PROMPT, NEW, drain_at=5, victim=victim, sampling=sampling)
        assert got == whole
        (move,) = route.failovers
        assert move.planned
        assert move.loaded > len(PROMPT)

    anyio.run(swarm.running, check)
