"""Real nodes whose KV cache is full: a refusal with the right words and code, nothing lost by those who are served."""

from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import pytest
from node.cli.shoal_process import run
from node.families.three_nodes import generate, three_nodes

from shoal.node.engine import Engine
from shoal.node.model_source import embedded_folder
from shoal.node.node import Node
from shoal.swarm.errors import OutOfMemory
from shoal.swarm.identifiers import SessionId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.generation import TokenRequest

pytestmark = [pytest.mark.network, pytest.mark.timeout(240)]
SPLIT = ("embed+0:3", "3:6", "6:8+head")
PROMPT = tuple(range(100, 140))
NEW = 100
ANNOUNCE_S = 0.5  # instead of the usual seconds: until then the others plan with what a node said last


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


async def fill(engine: Engine, others: list[SessionId]) -> None:
    """Sessions of somebody else reserve all the room there is; their names are added to `others`."""
    while engine.free_tokens:
        name = SessionId(f"other {len(others)}")
        room = min(engine.free_tokens, engine.shard.manifest.max_context)
        await engine.open(name, engine.shard.span, room, Sampling(), ())
        others.append(name)


async def admitted(node: Node, request: TokenRequest) -> list[int]:
    """The tokens as soon as the other nodes' records say that there is room again."""
    with anyio.fail_after(60):
        while True:
            try:
                tokens, _ = await generate(node, request)
            except OutOfMemory:
                await anyio.sleep(0.2)
            else:
                return tokens


@pytest.mark.anyio
async def test_a_full_cache_refuses_the_next_session_and_harms_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.node.node_loops.ANNOUNCE_PERIOD_S", ANNOUNCE_S)
    async with three_nodes(tmp_path, embedded_folder(), SPLIT) as nodes:
        first, middle, _ = nodes
        (hosted,) = middle.hosted
        request = TokenRequest(hosted.model, PROMPT, NEW)
        expected, _ = await generate(first, request)
        others: list[SessionId] = []
        got: list[int] = []
        async with first.driver.generate(request) as stream:
            async for choice in stream:
                got.append(choice.id)
                if len(got) == 10:
                    await fill(hosted.engine, others)
                    with pytest.raises(OutOfMemory, match=r"\d+ tokens"):
                        await generate(first, request)
        assert got == expected
        assert not stream.route.failovers
        with anyio.fail_after(60):
            while hosted.engine.sessions > len(others):  # noqa: ASYNC110  the session's room comes back a moment later
                await anyio.sleep(0.01)
        await fill(hosted.engine, others)

        home = first.options.home
        asked = partial(run, "generate", "It is a truth", "-n", "8", "--json", "--home", str(home.root))
        ran = await anyio.to_thread.run_sync(asked)
        assert ran.code == 6
        assert ran.complaint == ran.events[-1]["message"]
        facts = home.read_facts()
        assert facts is not None
        async with httpx.AsyncClient(base_url=facts.api, headers={"authorization": f"Bearer {home.api_key()}"}) as api:
            answer = await api.post("/v1/completions", json={"prompt": "It is a truth", "max_tokens": 8}, timeout=30)
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == ran.complaint

        for name in others:
            hosted.engine.close(name)
        assert await admitted(first, request) == expected
