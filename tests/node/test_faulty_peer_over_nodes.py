"""A real node that answers NaN, the wrong shape, or nothing at all: another holder takes over, and no token is lost."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
import torch
from node.families.three_nodes import RunningNodes, generate, running_nodes
from node.tiny_models import VOCABULARY, greedy, make_model, save_model

from shoal.node.activation_tensors import bytes_of
from shoal.node.node import Node
from shoal.swarm.errors import ModelNotServable
from shoal.swarm.identifiers import PeerId
from shoal.swarm.sessions.compute import Done, Work
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.sessions.session_hop import Patience

pytestmark = [pytest.mark.network, pytest.mark.timeout(240)]
PROMPT = tuple((7 * i + 1) % VOCABULARY for i in range(17))
NEW, GOOD = 24, 7  # tokens, and those that come before the fault
FRONT, BACK = "embed+0:2", "2:4+head"
Run = Callable[[Work], Awaitable[Done]]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    model = make_model("llama")
    folder = save_model(model, tmp_path_factory.mktemp("reference") / "tiny")
    return folder, greedy(model, list(PROMPT), NEW)


async def nan(done: Done) -> Done:
    return Done(bytes_of(torch.full((1, 64), torch.nan), "float32"), done.choice, done.queue_s, done.compute_s)


async def wrong_shape(done: Done) -> Done:
    return Done(bytes_of(torch.zeros((1, 32)), "float32"), done.choice, done.queue_s, done.compute_s)


async def never(_: Done) -> Done:
    await anyio.sleep_forever()
    raise AssertionError("for ever is over")


class Spoiler:
    """Lets one of the front nodes, the first that is asked for the token after the good ones, spoil its answers."""

    def __init__(self, nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
        self.spoil: Callable[[Done], Awaitable[Done]] | None = None
        self.victim: PeerId | None = None
        for node in nodes:
            (hosted,) = node.hosted
            monkeypatch.setattr(hosted.engine, "run", self._wrapped(node.transport.me, hosted.engine.run))

    def begin(self, fault: Callable[[Done], Awaitable[Done]] | None) -> None:
        self.spoil, self.victim = fault, None

    def _wrapped(self, peer: PeerId, run: Run) -> Run:
        async def spoiled(work: Work) -> Done:
            done = await run(work)
            if self.spoil is None or work.start < len(PROMPT) + GOOD:
                return done
            self.victim = self.victim or peer
            return await self.spoil(done) if self.victim == peer else done

        return spoiled


async def one_back(running: RunningNodes, folder: Path, fronts: int) -> Node:
    back = await running.start(folder, BACK)
    for _ in range(fronts):
        await running.start(folder, FRONT)
    return back


@pytest.mark.anyio
async def test_a_node_that_answers_wrongly_or_never_costs_no_token(
    reference: tuple[Path, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = reference
    async with running_nodes(tmp_path) as running:
        back = await one_back(running, folder, fronts=2)
        (hosted,) = back.hosted
        spoiler = Spoiler(running.nodes[1:], monkeypatch)
        for fault, words in ((nan, "bad_input: "), (wrong_shape, "bad_input: "), (never, "computes nothing")):
            spoiler.begin(fault)
            if fault is never:  # who is honest and slow is not to be left for it
                monkeypatch.setattr(back.driver, "_patience", Patience(step_s=2.0))
            with anyio.fail_after(60):
                tokens, route = await generate(back, TokenRequest(hosted.model, PROMPT, NEW))
            (failover,) = route.failovers
            assert tokens == expected, fault.__name__
            assert failover.peer == spoiler.victim
            assert words in failover.reason


@pytest.mark.anyio
async def test_without_another_holder_the_error_names_the_layers_the_peer_and_its_fault(
    reference: tuple[Path, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = reference
    got: list[int] = []

    async def broken(request: TokenRequest) -> None:
        async with back.driver.generate(request) as stream:
            async for choice in stream:
                got.append(choice.id)  # noqa: PERF401  what came before the error counts

    async with running_nodes(tmp_path) as running:
        back = await one_back(running, folder, fronts=1)
        (hosted,) = back.hosted
        spoiler = Spoiler(running.nodes[1:], monkeypatch)
        spoiler.begin(nan)
        with anyio.fail_after(60), pytest.raises(ModelNotServable) as caught:
            await broken(TokenRequest(hosted.model, PROMPT, NEW))
        assert got == expected[: GOOD + 1]
        assert "embed, layers 0:2" in str(caught.value)
        assert f"{spoiler.victim} failed: bad_input: " in str(caught.value)
        spoiler.begin(None)
        tokens, _ = await generate(back, TokenRequest(hosted.model, PROMPT, NEW))
    assert tokens == expected
