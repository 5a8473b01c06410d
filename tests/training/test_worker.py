from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from training.local_exchange import peers
from training.tiny_run import tiny_config

from shoal.node.training import events
from shoal.node.training.config import ConfigFile
from shoal.node.training.data.assignment import Share
from shoal.node.training.evaluation import HeldOut
from shoal.node.training.limits import LimitSettings
from shoal.node.training.limits_watch import LimitWatch
from shoal.node.training.local_exchange import LocalGroup
from shoal.node.training.strategies.outer_loop import OuterLoop
from shoal.node.training.worker import Applied, Worker
from shoal.node.training.worker_parts import Prepared, parts_of, run_spec
from shoal.node.training.worker_start import prepared as prepared_run
from shoal.node.training.worker_steps import LossNotFinite
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.exchange import OutOfStep, RunSpec

THREE = peers(3)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass
class Remembered:
    """A `worker.Keeper` in memory."""

    rounds: list[Applied] = field(default_factory=list)
    found: list[tuple[int, float]] = field(default_factory=list)

    def applied(self, worker: Worker, applied: Applied) -> None:
        self.rounds.append(applied)

    def lost(self, round_: int) -> None:
        return

    def evaluated(self, worker: Worker, round_: int, found: HeldOut) -> None:
        self.found.append((round_, found.loss))

    async def rounds_done(self, worker: Worker) -> None:
        return

    async def catch_up(self, worker: Worker, loop: OuterLoop, missed: OutOfStep) -> str:
        raise missed


@dataclass
class Peer:
    worker: Worker
    keeper: Remembered
    prepared: Prepared
    told: list[Any]
    windows: list[list[int]]  # trained on, step by step


class Training:
    """Peers over one local group, with their own copies of everything."""

    def __init__(self, file: ConfigFile, cache: Path, names: Sequence[PeerId] = THREE) -> None:
        self.file, self.cache = file, cache
        self.spec: RunSpec | None = None
        self.peers = {name: self._peer(name, names) for name in names}

    def _peer(self, name: PeerId, names: Sequence[PeerId]) -> Peer:
        prepared = prepared_run(self.file, self.cache)
        spec = run_spec(prepared, self.file.config)
        if self.spec is None:
            self.spec, self.group = spec, LocalGroup(spec, names)
        assert spec == self.spec
        keeper, told, windows = Remembered(), [], []
        parts = parts_of(prepared, self.file.config, spec, name)
        take = parts.progress.take

        def watched(share: Share, round_: int, count: int) -> list[int]:
            windows.append(take(share, round_, count))
            return windows[-1]

        parts.progress.take = watched  # type: ignore[method-assign]
        watch = LimitWatch(LimitSettings())
        worker = Worker(parts, self.group.exchange_of(name), keeper, told.append, watch)
        return Peer(worker, keeper, prepared, told, windows)

    async def run(self) -> None:
        async def one(name: PeerId, peer: Peer) -> None:
            await peer.worker.run()
            self.group.leave(name)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for name, peer in self.peers.items():
                    tasks.start_soon(one, name, peer)

    def outer(self, name: PeerId) -> bytes:
        return self.peers[name].worker.strategy.outer.hash()


def of_kind(told: Sequence[Any], kind: type) -> list[Any]:
    return [event for event in told if isinstance(event, kind)]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "diloco", "interval": 5},
        {"name": "streaming", "interval": 6, "fragments": 2, "delay": 2},
        {"name": "sparse", "interval": 5},
        {"name": "sync", "outer": {"learning_rate": 0.01}},
        {"name": "cocktail", "outer": {"learning_rate": 0.01}},
    ],
    ids=lambda strategy: str(strategy["name"]),
)
async def test_three_peers_train_one_model_with_every_strategy(tmp_path: Path, strategy: dict[str, Any]) -> None:
    rounds = 8 if strategy["name"] in ("diloco", "sparse", "streaming") else 25
    changes = {"strategy": strategy, "rounds": rounds, "evaluation": {"every": rounds}}
    training = Training(tiny_config(tmp_path, **changes), tmp_path / "cache")
    await training.run()
    states = [[applied.after for applied in peer.keeper.rounds] for peer in training.peers.values()]
    assert len(states[0]) == rounds
    assert states[0] == states[1] == states[2]
    assert len(set(states[0])) >= rounds - 2  # an arrival changes nothing but a count
    for peer in training.peers.values():
        losses = [event.loss for event in of_kind(peer.told, events.RoundDone) if event.loss is not None]
        assert losses[0] > 4
        assert losses[-1] < losses[0] - 0.5


@pytest.mark.anyio
async def test_no_sequence_is_trained_on_twice_in_an_epoch(tmp_path: Path) -> None:
    training = Training(tiny_config(tmp_path, rounds=5), tmp_path / "cache")
    await training.run()
    used = [window for peer in training.peers.values() for step in peer.windows for window in step]
    order = training.peers[THREE[0]].prepared.data.order
    assert len(used) == 4 * 5 * 4 * 3 < order.windows  # four rounds after the arrival, five steps of four each
    assert len(set(used)) == len(used)


@pytest.mark.anyio
async def test_held_out_perplexity_is_of_the_outer_parameters(tmp_path: Path) -> None:
    changes = {"strategy": {"name": "streaming", "interval": 6, "fragments": 2, "delay": 2}, "rounds": 6}
    training = Training(tiny_config(tmp_path, **changes), tmp_path / "cache")
    await training.run()
    found = [peer.keeper.found for peer in training.peers.values()]
    assert [round_ for round_, _ in found[0]] == [2, 5]
    assert found[0] == found[1] == found[2]
    assert found[0][1][1] < found[0][0][1]
    told = of_kind(training.peers[THREE[0]].told, events.Evaluated)
    assert told[0].perplexity == pytest.approx(np.exp(found[0][0][1]))


@pytest.mark.anyio
async def test_a_skipped_round_costs_nothing_but_time(tmp_path: Path) -> None:
    training = Training(tiny_config(tmp_path), tmp_path / "cache")
    training.group.skipped = {2}
    await training.run()
    peer = training.peers[THREE[0]]
    assert [event.round for event in of_kind(peer.told, events.RoundLost)] == [2]
    assert [applied.outcome.round for applied in peer.keeper.rounds] == [0, 1, 3, 4, 5, 6]
    assert training.outer(THREE[0]) == training.outer(THREE[2])
    twice = next(event for event in of_kind(peer.told, events.RoundDone) if event.round == 3)
    assert twice.tokens == 3 * 2 * 5 * 4 * 32  # the work of both rounds


@pytest.mark.anyio
async def test_a_peer_that_comes_later_is_out_of_step_until_it_has_caught_up(tmp_path: Path) -> None:
    training = Training(tiny_config(tmp_path), tmp_path / "cache", THREE[:2])
    await training.run()
    late = training._peer(THREE[2], THREE)  # noqa: SLF001
    training.group.join(THREE[2])
    with pytest.raises(ExceptionGroup) as raised:
        await late.worker.run()
    assert raised.group_contains(OutOfStep)


@pytest.mark.anyio
async def test_a_loss_that_is_no_number_ends_the_training_in_one_line(tmp_path: Path) -> None:
    training = Training(tiny_config(tmp_path, inner={"learning_rate": 1e30, "clip": 0.0}), tmp_path / "cache")
    with pytest.raises(ExceptionGroup) as raised:
        await training.run()
    assert raised.group_contains(LossNotFinite, match="lower inner.learning_rate, which is 1e\\+30")
