"""Real processes and daemons: one node with all layers computes prompts for two that answer; then it is killed."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from shoal.node.local_swarm import LocalNode, create_invite, local_swarm
from shoal.swarm.home import Home
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.generation import Route, TokenRequest
from shoal.swarm.thin_client import thin_driver

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]
EMBEDDED = Path(__file__).parents[2] / "node" / "embedded" / "novels-6m"
PROMPT = tuple((7 + 13 * i + i * i // 7) % 4000 + 5 for i in range(900))
NEW = 24
FRONT, BACK = "embed+0:4", "4:8+head"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[dict[str, LocalNode]]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "random"
    torch.manual_seed(0)
    sizes = {"vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 2048}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, folder / name)
    layout = {name: [str(folder), "--layers", layers] for name, layers in
              (("strong", "all"), ("front", FRONT), ("back", BACK))}  # fmt: skip
    with local_swarm(tmp_path, layout) as nodes:
        yield nodes


def status(node: LocalNode) -> dict[str, Any]:
    answer = httpx.get(f"{node.api}/shoal/v1/status", headers={"authorization": f"Bearer {node.key}"}, timeout=30)
    return dict(answer.json())


async def generate(
    driver: Driver, model: ModelId, prefill: str, meanwhile: Callable[[Any], Any] | None = None
) -> tuple[list[int], Route]:
    """meanwhile: is given the stream, and runs beside it"""
    request = replace(TokenRequest(model, PROMPT, NEW), prefill=prefill, exactness="exact")
    async with anyio.create_task_group() as tasks, driver.generate(request) as stream:
        if meanwhile is not None:
            tasks.start_soon(meanwhile, stream)
        got = [choice.id async for choice in stream]
        tasks.cancel_scope.cancel()
    return got, stream.route


@pytest.mark.anyio
async def test_a_node_prefills_for_two_others_and_may_be_killed_in_the_middle(
    swarm: dict[str, LocalNode], tmp_path: Path
) -> None:
    strong = PeerId(status(swarm["strong"])["peer"])
    decoding = [PeerId(status(swarm[name])["peer"]) for name in ("front", "back")]
    killed_at: list[int] = []

    async def kill(stream: Any) -> None:  # noqa: ANN401  its inside is looked at
        while not killed_at:
            apart = stream._prefill  # noqa: SLF001
            if apart is not None and 0 < apart.reached < apart.asked:
                swarm["strong"].process.kill()
                killed_at.append(apart.reached)
            await anyio.sleep(0.0005)

    invite = create_invite(swarm["strong"])
    async with anyio.create_task_group() as tasks, thin_driver(Home(tmp_path / "client"), tasks, invite) as driver:
        model = (await driver.models())[0].id
        excluded = replace(TokenRequest(model, PROMPT, NEW), prefill="never", exclude=frozenset({strong}))
        async with driver.generate(excluded) as stream:
            expected = [choice.id async for choice in stream]
        assert [hop.peer for hop in stream.route.hops] == decoding

        tokens, route = await generate(driver, model, strong)
        assert tokens == expected
        assert [hop.peer for hop in route.hops] == decoding
        (prefill,) = route.prefills
        assert (prefill.peers, prefill.trouble) == ((strong,), "")
        # what comes later than these, as fast as it, have it themselves is computed; how much is left to the simulation
        assert 0 < prefill.positions <= len(PROMPT) - 1
        assert [hop.fetched for hop in route.hops] == [prefill.positions] * 2

        tokens, route = await generate(driver, model, strong, kill)
        assert killed_at, "it was over before it could be killed"
        swarm["strong"].process.wait(10)
        assert tokens == expected
        (prefill,) = route.prefills
        assert prefill.positions < len(PROMPT) - 1
        assert prefill.trouble
        assert not route.failovers
        tasks.cancel_scope.cancel()
