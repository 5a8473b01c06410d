"""Three real nodes again, with a driver that keeps layers for itself, with sampling, and with layers chosen by need."""

from pathlib import Path

import anyio
import pytest
from node.engine_chain import EngineChain, local_model
from node.families.three_nodes import generate, running_nodes, three_nodes
from node.tiny_models import VOCABULARY, greedy, make_model, save_model

from shoal.node.memory_budget import kv_bytes_per_token, unit_sizes
from shoal.node.model_loading import KV_CONTEXTS
from shoal.node.model_source import LocalModel
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.feeder import PREFILL_POSITIONS
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.units import missing, whole

pytestmark = [pytest.mark.network, pytest.mark.timeout(240)]
CONTEXT = 512
SHORT = tuple((7 * i + 1) % VOCABULARY for i in range(17))
LONG = tuple((5 * i + 2) % VOCABULARY for i in range(PREFILL_POSITIONS + 20))
NEW = 16


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.mark.anyio
async def test_a_driver_that_keeps_two_layers_gives_the_same_tokens(tmp_path: Path) -> None:
    model = make_model("gemma2", max_position_embeddings=CONTEXT)
    expected = [greedy(model, list(prompt), NEW) for prompt in (SHORT, LONG)]
    folder = save_model(model, tmp_path / "model")
    got: dict[int, list[int]] = {}
    async with three_nodes(tmp_path, folder) as nodes:
        (hosted,) = nodes[0].hosted
        requests = [TokenRequest(hosted.model, prompt, NEW, local_layers=2) for prompt in (SHORT, LONG)]
        alone, route = await generate(nodes[0], requests[0])

        async def one(number: int) -> None:
            got[number], _ = await generate(nodes[0], requests[number])

        async with anyio.create_task_group() as sessions:
            sessions.start_soon(one, 0)
            sessions.start_soon(one, 1)
    assert [hop.layers for hop in route.hops] == ["2:3", "3:4"]
    assert alone == expected[0]
    assert [got[0], got[1]] == expected


@pytest.mark.anyio
async def test_the_same_seed_gives_the_same_text_over_three_nodes_as_over_one_engine(tmp_path: Path) -> None:
    folder = save_model(make_model("qwen3", max_position_embeddings=CONTEXT), tmp_path / "model")
    sampling = Sampling(temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.1, seed=5)
    other = Sampling(temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.1, seed=6)
    with EngineChain(local_model(folder, tmp_path / "cache"), cuts=()) as engine:
        expected = [choice.id for choice in await engine.generate("alone", SHORT, 4 * NEW, sampling)]
    got: dict[int, list[int]] = {}
    async with three_nodes(tmp_path, folder) as nodes:
        (hosted,) = nodes[0].hosted

        async def one(number: int, chosen: Sampling) -> None:
            got[number], _ = await generate(nodes[number], TokenRequest(hosted.model, SHORT, 4 * NEW, chosen))

        async with anyio.create_task_group() as sessions:
            for number, chosen in enumerate((sampling, sampling, other)):
                sessions.start_soon(one, number, chosen)
    assert got[0] == got[1] == expected
    assert got[2] != expected


def memory_for(model: LocalModel, layers: int) -> str:
    """A --max-memory that holds so many layers with an end of the model, and not one layer more."""
    sizes = unit_sizes(model.manifest, "float32")
    kv_bytes = KV_CONTEXTS * model.manifest.max_context * kv_bytes_per_token(model, "float32")
    return str(max(sizes[0], sizes[-1]) + layers * (sizes[1] + kv_bytes) + sizes[1] // 2)


@pytest.mark.anyio
async def test_nodes_that_choose_by_need_end_with_every_layer_covered(tmp_path: Path) -> None:
    model = make_model("mistral", max_position_embeddings=CONTEXT)
    expected = greedy(model, list(LONG), NEW)
    folder = save_model(model, tmp_path / "model")
    room = memory_for(local_model(folder, tmp_path / "cache"), layers=2)
    async with running_nodes(tmp_path) as running:
        for _ in range(3):
            await running.start(folder, max_memory=room)
        held = [hosted for node in running.nodes for hosted in node.hosted]
        tokens, route = await generate(running.nodes[1], TokenRequest(held[0].model, LONG, NEW))
        served = await running.nodes[2].driver.models()
    assert all(len(hosted.span) <= 3 for hosted in held)
    assert missing(whole(4), [hosted.span for hosted in held]) == []
    assert [model.missing for model in served] == [""]
    assert len({hop.peer for hop in route.hops}) >= 2
    assert tokens == expected
