"""An inference node that follows a run: new sessions get the newest parameters, open ones finish on theirs."""

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from node.engine_chain import CPU
from node.tiny_models import greedy, make_model, save_model
from swarm.bundles import AtOnce, member

from shoal.node.attention_plan import Piece
from shoal.node.engine import Engine
from shoal.node.following import FollowedModel
from shoal.node.hosted_models import HostedModel, HostedModels
from shoal.node.model_source import LocalModel, from_folder
from shoal.node.shard import Shard
from shoal.node.training.checkpoints.replica import OuterReplica
from shoal.node.training.checkpoints.store import CheckpointStore
from shoal.node.training.checkpoints.tensor_file import Array
from shoal.node.training.optimizers.outer import OuterSettings
from shoal.node.training.parameters import ModelParameters
from shoal.node.training.strategies.outer_parameters import OuterParameters
from shoal.swarm.errors import UsageError
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.rounds.catch_up import CatchUp
from shoal.swarm.rounds.catch_up_fetch import CatchUpLimits
from shoal.swarm.rounds.catch_up_messages import serve_catch_up
from shoal.swarm.rounds.delta_log import DeltaLog
from shoal.swarm.rounds.exchange import Outcome, RunSpec, seed_of
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Compute, Work
from shoal.swarm.transfer.block_transfer_donor import BlockDonor
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.units import Span, whole

pytestmark = pytest.mark.anyio
PROMPT = [3, 1, 4, 1, 5, 9]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Run:
    """A run in one process: a model whose outer parameters are moved by drawn outcomes."""

    def __init__(self, folder: Path, name: str = "llama") -> None:
        self.model: Any = make_model(name, **SMALL)
        self.folder = save_model(self.model, folder / "model")
        self.parameters = ModelParameters(self.model)
        count = self.parameters.layout.count
        self.spec = RunSpec("test", "m", "d", "s", (count,), "none", shards=2)
        self.store = CheckpointStore(folder / "checkpoints")
        self.replica = self.new_replica(self.parameters.read())
        self.log = DeltaLog(folder / "rounds", "run")

    def new_replica(self, initial: Array) -> OuterReplica:
        outer = OuterParameters(OuterSettings(kind="sgd", learning_rate=1.0), self.spec, initial)
        return OuterReplica(outer, "run", self.parameters.layout, self.store)

    def advance(self) -> None:
        """One round, and the model with it."""
        round_, before = self.replica.round + 1, self.replica.state
        draw = np.random.default_rng(round_)
        payloads = [
            self.spec.codec().encode(draw.normal(scale=0.1, size=b - a).astype(np.float32), seed_of(round_, 0, i))
            for i, (a, b) in enumerate(self.spec.sharding(0).bounds())
        ]
        outcome = Outcome(round_, 0, tuple(payloads), ((PeerId("alice"), 5),))
        self.replica.apply(outcome)
        self.log.append(outcome, before, self.replica.state)
        self.parameters.write(0, self.replica.outer.values)

    def expected(self, count: int) -> list[int]:
        return greedy(self.model, PROMPT, count)


class Hosted:
    """A model hosted whole, or in part, on the CPU."""

    def __init__(self, folder: Path, cache: Path, span: Span = whole(2)) -> None:  # noqa: B008  frozen
        self.local: LocalModel = from_folder(folder, cache, "followed")
        self.span = span
        self.models = HostedModels()
        engine = Engine(Shard.load(self.local, span, "float32", CPU), 512)
        self.entry = HostedModel(
            self.local.model_id, self.local.manifest, {}, span, "float32", "cpu", engine, self.local
        )
        self.models.add(self.entry)

    def find(self) -> Compute:
        return self.models.find(self.local.model_id, "float32", self.span)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def hosted(run: Run, tmp_path: Path) -> Iterator[Hosted]:
    made = Hosted(run.folder, tmp_path / "cache")
    yield made
    for entry in made.models:
        entry.engine.stop()


class Session:
    def __init__(self, compute: Compute, name: str) -> None:
        self.compute, self.name, self.ids, self.at = compute, SessionId(name), list(PROMPT), 0

    async def generate(self, count: int) -> list[int]:
        made: list[int] = []
        while len(made) < count:
            fed = tuple(self.ids[self.at :])
            done = await self.compute.run(Work(self.name, self.at, len(fed), fed, wants_token=True))
            assert done.choice is not None
            self.at += len(fed)
            self.ids.append(done.choice.id)
            made.append(done.choice.id)
        return made


@asynccontextmanager
async def session(compute: Compute, name: str) -> AsyncIterator[Session]:
    await compute.open(SessionId(name), whole(2), 64, Sampling(), ())
    try:
        yield Session(compute, name)
    finally:
        compute.close(SessionId(name))


async def test_new_sessions_get_the_newest_round_and_open_ones_finish_on_theirs(run: Run, hosted: Hosted) -> None:
    followed = FollowedModel(hosted.models, hosted.entry, run.replica, grace_s=0.02)
    before = run.expected(12)
    async with session(hosted.find(), "old") as old:
        begun = await old.generate(5)
        run.advance()
        after = run.expected(12)
        assert after != before, "else this test shows nothing"
        assert await followed.move()
        assert followed.round == 0
        async with session(hosted.find(), "new") as new:
            assert await new.generate(12) == after
        run.advance()
        assert not await followed.move(), "a third version is not loaded while the first is in use"
        assert begun + await old.generate(7) == before
    with anyio.fail_after(60):
        while not await followed.move():  # noqa: ASYNC110  a device thread tells nobody
            await anyio.sleep(0.01)
    async with session(hosted.find(), "newest") as newest:
        assert await newest.generate(12) == run.expected(12)
    assert hosted.entry.engine._thread._thread.is_alive() is False  # noqa: SLF001  the first engine has ended
    assert not await followed.move()
    followed.stop()


async def test_a_node_with_some_of_the_layers_loads_those_alone(run: Run, tmp_path: Path) -> None:
    part = Hosted(run.folder, tmp_path / "cache", Span(1, 2))
    followed = FollowedModel(part.models, part.entry, run.replica, tmp_path)
    run.advance()
    assert await followed.move()
    moved = next(iter(part.models)).engine.shard
    reference = Shard.load(from_folder(exported(run, tmp_path), tmp_path / "cache", "x"), Span(1, 2), "float32", CPU)
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    outs = []
    for shard in (moved, reference):
        cache = shard.new_cache(64)
        outs.append(shard.run(Span(1, 2), x, shard.plan(cache, (Piece(cache.reserve(4), 0, 4),)), ()))
    assert torch.equal(*outs)
    assert not any(name.startswith("shoal-round-") for name in os.listdir(tmp_path))  # noqa: PTH208
    followed.stop()


def exported(run: Run, folder: Path) -> Path:
    return save_model(run.model, folder / "exported")


async def test_a_tied_head_follows_its_embedding(tmp_path: Path) -> None:
    run = Run(tmp_path, "llama-tied")
    hosted = Hosted(run.folder, tmp_path / "cache")
    followed = FollowedModel(hosted.models, hosted.entry, run.replica, grace_s=0.02)
    run.advance()
    await followed.move()
    async with session(hosted.find(), "new") as new:
        assert await new.generate(8) == run.expected(8)
    followed.stop()


class Other:
    """A run of another model."""

    round = 3

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self._tensors = tensors

    def tensors(self) -> Mapping[str, Array]:
        return self._tensors


async def test_a_run_of_another_model_cannot_be_followed(run: Run, hosted: Hosted) -> None:
    tensors = run.replica.tensors()
    lacking = {name: array for name, array in tensors.items() if name != "lm_head.weight"}
    with pytest.raises(UsageError, match=r"does not train lm_head\.weight"):
        FollowedModel(hosted.models, hosted.entry, Other(lacking))
    with pytest.raises(UsageError, match=r"model\.norm\.weight has another shape"):
        FollowedModel(hosted.models, hosted.entry, Other({**tensors, "model.norm.weight": np.zeros(3, np.float32)}))


async def test_a_node_follows_rounds_that_others_make(run: Run, hosted: Hosted, tmp_path: Path) -> None:
    alice, me = PeerId("alice"), PeerId("me")
    async with MemoryNetwork() as network, anyio.create_task_group() as tasks:
        calls = member(network.join(alice))
        await BlockDonor((run.store, run.log), 1e9).serve(calls)
        standing = lambda: (run.replica.state, run.replica.round + 1)  # noqa: E731
        await serve_catch_up(calls, "run", standing, lambda: (), run.log)
        mine = run.new_replica(run.parameters.read())
        ours, my_log = member(network.join(me)), DeltaLog(tmp_path / "mine", "run")
        followed = FollowedModel(hosted.models, hosted.entry, mine, grace_s=0.02)

        def catch_up() -> CatchUp:
            limits = CatchUpLimits.of(run.spec)
            return CatchUp(ours, "run", mine, my_log, tmp_path / "incoming", limits, threads=AtOnce())

        async def peers() -> list[PeerId]:
            return [alice]

        tasks.start_soon(followed.follow, catch_up, peers, 0.05)
        for _ in range(3):
            run.advance()
            with anyio.fail_after(60):
                while followed.round != run.replica.round:  # noqa: ASYNC110  as above
                    await anyio.sleep(0.02)
            async with session(hosted.find(), f"round {followed.round}") as new:
                assert await new.generate(8) == run.expected(8)
        tasks.cancel_scope.cancel()
    followed.stop()
