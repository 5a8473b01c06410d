"""Every family over three real nodes that hold different layers: the tokens that transformers gives in one process.

Between the nodes are p2pd, the DHT and the network's own message formats, as between volunteers.
"""

from pathlib import Path

import anyio
import pytest
from node.families.three_nodes import SPLIT, generate, three_nodes
from node.tiny_models import VOCABULARY, greedy, make_model, save_model

from shoal.node.engine import Engine
from shoal.swarm.sessions.compute import Done, Work
from shoal.swarm.sessions.feeder import PREFILL_POSITIONS
from shoal.swarm.sessions.generation import TokenRequest

pytestmark = [pytest.mark.network, pytest.mark.timeout(240)]
PROVEN = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "phi3", "gpt-neox", "olmo2", "mixtral", "qwen3-moe"]
UNITS_APART = ("embed", "0:4", "head")
LENGTHS = (17, 1, PREFILL_POSITIONS + 20, 40)  # the third needs two feeds
PROMPTS = [tuple((7 * i + 3 * n + 1) % VOCABULARY for i in range(length)) for n, length in enumerate(LENGTHS)]
NEW = 16


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


def hold_until_open(engine: Engine, sessions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is computed before so many sessions are open: else the first may be over before the last begins."""
    run, open_all = engine.run, anyio.Event()

    async def held(work: Work) -> Done:
        if engine.sessions == sessions:
            open_all.set()
        await open_all.wait()
        return await run(work)

    monkeypatch.setattr(engine, "run", held)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("family", "split"),
    [*((family, SPLIT) for family in PROVEN), ("llama-tied", UNITS_APART)],
    ids=[*PROVEN, "units-apart"],
)
async def test_three_nodes_give_the_tokens_of_transformers(
    family: str, split: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(family, max_position_embeddings=512)
    expected = [greedy(model, list(prompt), NEW) for prompt in PROMPTS]
    assert len({token for tokens in expected for token in tokens}) > 10, "the model repeats itself: nothing is tested"
    folder = save_model(model, tmp_path / "model")
    together: list[list[int]] = [[] for _ in PROMPTS]
    async with three_nodes(tmp_path, folder, split) as nodes:
        (hosted,) = nodes[0].hosted
        requests = [TokenRequest(hosted.model, prompt, NEW) for prompt in PROMPTS]
        alone, route = await generate(nodes[0], requests[0])

        async def one(number: int) -> None:
            together[number], _ = await generate(nodes[number % 3], requests[number])

        hold_until_open(hosted.engine, len(PROMPTS), monkeypatch)
        async with anyio.create_task_group() as sessions:
            for number in range(len(PROMPTS)):
                sessions.start_soon(one, number)
    assert tuple(hop.layers for hop in route.hops) == split
    assert not route.failovers
    assert alone == expected[0]
    assert together == expected
