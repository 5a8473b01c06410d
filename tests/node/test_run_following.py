"""`--follow` over real nodes: a node that serves goes over to the rounds that a trainer of its swarm makes."""

import time
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import msgspec
import numpy as np
import pytest
from node.tiny_models import greedy, make_model, save_model

from shoal.node.node import Node, running_node
from shoal.node.node_events import NodeEvent, Warned
from shoal.node.options import NodeOptions
from shoal.node.run_following import follow_run
from shoal.node.training.checkpoints.replica import OuterReplica
from shoal.node.training.checkpoints.store import CheckpointStore
from shoal.node.training.parameters import ModelParameters
from shoal.node.training.strategies.outer_parameters import OuterParameters
from shoal.node.training.strategies.settings import STRATEGIES
from shoal.node.training.worker_agreement import METHOD, Answer
from shoal.swarm.home import Home
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.catch_up_messages import serve_catch_up
from shoal.swarm.rounds.delta_log import DeltaLog
from shoal.swarm.rounds.exchange import Outcome, RunSpec, seed_of
from shoal.swarm.rounds.run_identity import run_id, run_key
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.transfer.block_transfer_donor import BlockDonor
from shoal.swarm.transports.p2pd import NetworkOptions

pytestmark = pytest.mark.network
LOOPBACK = NetworkOptions(host="127.0.0.1", nat=False)
PROMPT, COUNT = (5, 7, 11), 10


class Trainer:
    """What a trainer shows to others, on a real node; its rounds are drawn from a seed."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.module = make_model("llama", hidden_size=32, num_hidden_layers=2)
        save_model(self.module, model)
        self.parameters = ModelParameters(self.module)
        settings = STRATEGIES["diloco"]
        count = self.parameters.layout.count
        self.spec = RunSpec("tale", "m", "d", settings.canonical(), (count,), settings.preset, shards=2)
        outer = OuterParameters(settings.outer, self.spec, self.parameters.read(), self.parameters.layout.undecayed())
        self.store = CheckpointStore(folder / "checkpoints")
        self.replica = OuterReplica(outer, run_id(self.spec), self.parameters.layout, self.store)
        self.log = DeltaLog(folder / "rounds", run_id(self.spec))

    async def serve(self, node: Node) -> None:
        async def answer(_: PeerId, __: bytes) -> bytes:
            return msgspec.msgpack.encode(Answer(self.spec, "", self.standing()[1]))

        await node.calls.answer(METHOD, answer)
        await BlockDonor((self.store, self.log)).serve(node.calls)
        await serve_catch_up(node.calls, run_id(self.spec), self.standing, lambda: (), self.log)
        node.runs.add(run_key("tale"))
        await node.loops.announce()

    def standing(self) -> tuple[bytes, int]:
        return self.replica.state, self.replica.round + 1

    def advance(self) -> list[int]:
        """One round. returns: what the model then says"""
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
        return greedy(self.module, list(PROMPT), COUNT)


def options(folder: Path, name: str, model: Path | None = None, invite: str | None = None) -> NodeOptions:
    return NodeOptions(
        home=Home(folder / name), name=name, model=str(model) if model else None, layers="all" if model else None,
        dtype="float32", device="cpu", threads=1, network=LOOPBACK, api_port=0, invite=invite,
    )  # fmt: skip


async def said(node: Node) -> list[int]:
    hosted = next(iter(node.hosted))
    async with node.driver.generate(TokenRequest(hosted.model, PROMPT, COUNT)) as stream:
        return [choice.id async for choice in stream]


def test_a_node_goes_over_to_the_rounds_of_a_run(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "run", tmp_path / "model")
    warned: list[NodeEvent] = []

    def report(event: NodeEvent) -> None:
        if isinstance(event, Warned):
            warned.append(event)

    async def scenario() -> None:
        async with anyio.create_task_group() as tasks, AsyncExitStack() as stack:
            owner = await stack.enter_async_context(running_node(options(tmp_path, "owner"), report, tasks))
            await trainer.serve(owner)
            assert owner.invites is not None
            invite = owner.invites.create(owner.full_addresses, time.time())  # noqa: TID251  by the real clock
            wanted = options(tmp_path, "server", tmp_path / "model", invite)
            server = await stack.enter_async_context(running_node(wanted, report, tasks))
            begun = await said(server)
            tasks.start_soon(follow_run, server, "tale", report, 0.2)
            for _ in range(2):
                expected = trainer.advance()
                assert expected != begun
                with anyio.fail_after(60):
                    while await said(server) != expected:  # noqa: ASYNC110  only answers tell
                        await anyio.sleep(0.1)
            assert not warned
            hosted = next(iter(server.hosted))
            assert hosted.model == next(iter(server.record().hosted)).model
            tasks.cancel_scope.cancel()

    anyio.run(scenario)


def test_a_run_of_another_model_is_told_and_what_is_served_stays(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "run", tmp_path / "model")
    other = save_model(make_model("llama", hidden_size=64, num_hidden_layers=2), tmp_path / "other")
    warned: list[str] = []

    def report(event: NodeEvent) -> None:
        if isinstance(event, Warned):
            warned.append(event.text)

    async def scenario() -> None:
        async with anyio.create_task_group() as tasks, AsyncExitStack() as stack:
            owner = await stack.enter_async_context(running_node(options(tmp_path, "owner"), report, tasks))
            await trainer.serve(owner)
            assert owner.invites is not None
            invite = owner.invites.create(owner.full_addresses, time.time())  # noqa: TID251
            server = await stack.enter_async_context(
                running_node(options(tmp_path, "server", other, invite), report, tasks)
            )
            before = await said(server)
            with anyio.fail_after(60):
                await follow_run(server, "tale", report, 0.2)
            assert "the run tale cannot be followed: it trains" in warned[0]
            assert await said(server) == before
            tasks.cancel_scope.cancel()

    anyio.run(scenario)
