"""What participants were worth, from real updates of a real run: liars are last, and the two methods agree."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from training.keeper_run import Run
from training.local_exchange import peers
from training.tiny_run import as_toml, tiny_config, tiny_tables

from shoal.compression.update_codec import Values
from shoal.node.cli.main import main
from shoal.node.training.strategies.strategy import Strategy
from shoal.node.training.valuation import value_participants, value_stretches
from shoal.node.training.valued_run import ValuedRun, open_run
from shoal.swarm.errors import UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.exchange import Offer
from shoal.swarm.transports.memory import MemoryNetwork

FOUR = peers(4)
ROUNDS = 8
CHANGES: dict[str, Any] = {
    "rounds": 0,
    "evaluation": {"every": 0},
    "output": {"checkpoint_every": 0, "updates": True},
    "strategy": {"name": "diloco", "interval": 4, "outer": {"learning_rate": 0.7, "momentum": 0.5}},
    "inner": {"learning_rate": 0.003},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def turn_round(strategy: Strategy) -> None:
    honest = strategy.offer

    def offer(work: Values) -> Offer:
        return honest(2 * strategy.outer.fragment(strategy.fragment) - work)

    strategy.offer = offer  # type: ignore[method-assign]


async def trained(folder: Path, names: Sequence[PeerId], liar: PeerId | None = None) -> None:
    """liar: offers the opposite of what it learned"""
    async with MemoryNetwork() as network:
        run = Run(folder, network, tiny_config(folder, **CHANGES))
        for name in names:
            trainer = await run.start(name)
            if name == liar:
                turn_round(trainer.worker.strategy)
        await run.train(names, ROUNDS)
        for trainer in run.trainers.values():
            trainer.keeper.close()


def opened(folder: Path, names: Sequence[PeerId]) -> ValuedRun:
    first, *others = [folder / name for name in names]
    return open_run(tiny_config(folder, **CHANGES), first, others, folder / "cache", 4)


def test_a_peer_that_turns_its_updates_round_is_worth_least_by_both_methods(tmp_path: Path) -> None:
    anyio.run(trained, tmp_path, FOUR, FOUR[2])
    run = opened(tmp_path, FOUR)
    valued = [each for each in run.replay.rounds if each.offers]
    assert len(valued) == ROUNDS
    found = value_participants(run.judge, run.replay.points(12), 0, 64)
    honest = [peer for peer in FOUR if peer != FOUR[2]]
    assert found.shapley.values[FOUR[2]] < 0 < min(found.shapley.values[peer] for peer in honest)
    assert found.first_order[FOUR[2]] < 0 < min(found.first_order[peer] for peer in honest)
    assert found.shapley.evaluations <= 16


def test_values_share_out_what_the_rounds_gained_and_rounds_start_where_the_run_was(tmp_path: Path) -> None:
    anyio.run(trained, tmp_path, FOUR)
    run = opened(tmp_path, FOUR)
    points = run.replay.points(12)
    assert len(points) == ROUNDS - 1  # the first is a roll call, without work
    for point in points:
        whole = point.after(FOUR)
        assert np.allclose(point.before + sum(point.moves().values()), whole, atol=1e-6)
        assert point.after(()) is point.before
    found = value_participants(run.judge, points, 0, 64)
    gained = sum(run.judge.loss(point.before) - run.judge.loss(point.after(FOUR)) for point in points)
    assert found.total == pytest.approx(gained, rel=0.03)
    assert gained > 0.1


def test_stretches_of_the_data_are_valued_too(tmp_path: Path) -> None:
    anyio.run(trained, tmp_path, FOUR)
    run = opened(tmp_path, FOUR)
    found = value_stretches(run.judge, run.text, run.replay.points(3)[1], 5, 6, 0, 40)
    assert set(found.shapley.values) == set(range(5))
    assert found.total > 0
    with pytest.raises(UsageError, match="stretches"):
        value_stretches(run.judge, run.text, run.replay.points(3)[1], 10**6, 6, 0, 40)


def test_the_command_prints_both_values_and_how_well_they_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anyio.run(trained, tmp_path, FOUR)
    tables = tiny_tables(tmp_path, **{**CHANGES, "output": {**CHANGES["output"], "folder": FOUR[0]}})
    strategy = tables.pop("strategy")
    outer = strategy.pop("outer")
    config = tmp_path / "run.toml"
    config.write_text(as_toml({**tables, "strategy": strategy}) + "[strategy.outer]\n" + as_toml(outer))
    others = [word for name in FOUR[1:] for word in ("--with", str(tmp_path / name))]
    home = ["--home", str(tmp_path / "home"), "--json", "--data", "3", "--sequences", "4"]
    assert main(["ledger", "shapley", str(config), *others, *home]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {e["player"] for e in events if e["event"] == "valued" and e["kind"] == "participant"} == set(FOUR)
    agreements = [e for e in events if e["event"] == "agreement"]
    assert [e["kind"] for e in agreements] == ["participant", "stretch"]
    assert all(-1 <= e["rank_correlation"] <= 1 for e in agreements)


def test_without_the_updates_of_all_peers_the_run_cannot_be_valued(tmp_path: Path) -> None:
    anyio.run(trained, tmp_path, FOUR)
    with pytest.raises(UsageError, match="updates of all its peers"):
        opened(tmp_path, FOUR[:2])
