"""Trainers that leave, are killed and come back, with real folders and a network in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training.keeper_run import Trainer, run_of
from training.local_exchange import peers
from training.tiny_run import tiny_config

from shoal.node.training import events
from shoal.node.training.run_record import RoundLine, disagreements, problems, read_record
from shoal.swarm.errors import Unavailable, UsageError
from shoal.swarm.rounds import catch_up

THREE = peers(3)
STRATEGIES: list[dict[str, Any]] = [
    {"name": "diloco", "interval": 4},
    {"name": "sparse", "interval": 4},
    {"name": "streaming", "interval": 6, "fragments": 2, "delay": 2},
]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def rounds_of(trainer: Trainer) -> list[int]:
    return [line.round for line in read_record(trainer.keeper.record.path) if isinstance(line, RoundLine)]


@pytest.mark.anyio
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: str(strategy["name"]))
async def test_a_late_joiner_is_in_step_within_two_rounds(tmp_path: Path, strategy: dict[str, Any]) -> None:
    async with run_of(tmp_path, strategy=strategy) as run:
        for name in THREE[:2]:
            await run.start(name)
        await run.train(THREE[:2], 7)
        late = await run.start(THREE[2])
        await run.train(THREE, 12)
        states = {trainer.state for trainer in run.trainers.values()}
        assert len(states) == 1 or strategy["name"] == "streaming"  # there one may have applied a round more
        records = [read_record(trainer.keeper.record.path) for trainer in run.trainers.values()]
        assert [problems(record) for record in records] == [[], [], []]
        assert disagreements(records[0], records[1]) == disagreements(records[0], records[2]) == []
        caught = [event for event in late.told if isinstance(event, events.CaughtUp)]
        assert len(caught) == 1
        assert caught[0].round <= 9
        met = [event for event in late.told if isinstance(event, events.RoundDone)]
        assert THREE[2] in met[0].peers
        assert met[0].round <= caught[0].round + 1
        assert any(event.loss is not None for event in met)


@pytest.mark.anyio
async def test_a_joiner_takes_a_checkpoint_when_the_log_no_longer_goes_back_to_its_beginning(tmp_path: Path) -> None:
    async with run_of(tmp_path) as run:
        for name in THREE[:2]:
            await run.start(name)
        await run.train(THREE[:2], 5)
        for name in THREE[:2]:
            keeper = run.trainers[name].keeper
            assert [offer.round for offer in keeper.checkpoints()] == [2]
            keeper.log._drop(keeper.log.entries[0])  # noqa: SLF001  as an old log does
        late = await run.start(THREE[2])
        await run.train(THREE, 8)
        caught = next(event for event in late.told if isinstance(event, events.CaughtUp))
        assert caught.source.startswith("a checkpoint and 2 rounds")
        assert late.state == run.trainers[THREE[0]].state
        assert rounds_of(late)[:2] == [3, 4]


@pytest.mark.anyio
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: str(strategy["name"]))
async def test_a_group_that_was_killed_goes_on_where_it_stood(tmp_path: Path, strategy: dict[str, Any]) -> None:
    async with run_of(tmp_path, strategy=strategy) as run:
        for name in THREE[:2]:
            await run.start(name)
        await run.train(THREE[:2], 8)
        before = {name: trainer.state for name, trainer in run.trainers.items()}
        windows = run.trainers[THREE[0]].worker.progress.roster
        for name in THREE[:2]:
            run.network.kill(name)
            trainer = await run.start(name, resume=True)
            assert trainer.state == before[name], "the checkpoint is of round 6, the log of all rounds"
            assert trainer.worker.progress.roster.epoch == windows.epoch
        await run.train(THREE[:2], 12)
        first = run.trainers[THREE[0]]
        assert problems(read_record(first.keeper.record.path)) == []
        assert sorted(set(rounds_of(first))) == list(range(max(rounds_of(first)) + 1))


@pytest.mark.anyio
async def test_a_checkpoint_holds_the_inner_optimiser_and_the_place_in_the_data(tmp_path: Path) -> None:
    async with run_of(tmp_path, inner={"kind": "muon", "learning_rate": 0.01}) as run:
        for name in THREE[:2]:
            await run.start(name)
        await run.train(THREE[:2], 4)
        first = run.trainers[THREE[0]]
        await first.keeper.save()
        before = first.keeper.snapshot()
        run.network.kill(THREE[0])
        again = await run.start(THREE[0], resume=True)
        after = again.keeper.snapshot()
        assert after.position == before.position
        assert after.strategy["step"] == before.strategy["step"]
        assert before.inner.keys() == after.inner.keys()
        assert len(before.inner) > 10
        for name, value in before.inner.items():
            np.testing.assert_array_equal(value, after.inner[name])


@pytest.mark.anyio
async def test_checkpoints_of_another_run_are_not_taken_for_ours(tmp_path: Path) -> None:
    async with run_of(tmp_path) as run:
        for name in THREE[:2]:
            await run.start(name)
        await run.train(THREE[:2], 4)
        run.network.kill(THREE[0])
        run.group = None
        run.file = tiny_config(tmp_path, seed=5)
        with pytest.raises(UsageError, match=r"holds another run \(model is .* choose another name or output.folder"):
            await run.start(THREE[0], resume=True)


@pytest.mark.anyio
async def test_a_joiner_whom_nobody_helps_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catch_up, "MAX_FAILURES", 1)
    async with run_of(tmp_path) as run:
        for name in THREE[:2]:
            await run.start(name)
        await run.train(THREE[:2], 4)
        for name in THREE[:2]:
            run.network.kill(name)
        await run.start(THREE[2])
        with pytest.raises(ExceptionGroup) as raised:
            await run.train(THREE[2:], 5)
        assert raised.group_contains(Unavailable, match="the group was not reached")
