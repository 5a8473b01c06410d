"""Real trainers with ledgers: the owner's judges, the others earn, and everybody's ledger comes to the same amounts."""

from pathlib import Path

import msgspec
import pytest
from training.test_training_over_network import written
from training.train_process import said, trainers, wait_until

from shoal.incentives.account import Account
from shoal.incentives.store import Store
from shoal.node.books import judges_of
from shoal.node.training.credit.evidence import Judgement
from shoal.swarm.home import Home
from shoal.swarm.identity import Identity

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]


def judged(folder: Path) -> list[Judgement]:
    path = folder / "ana" / "runs" / "tiny" / "judgements.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [msgspec.json.decode(line, type=Judgement) for line in lines]


def identity(folder: Path, name: str) -> Identity:
    return Identity.load_or_create(Home(folder / name).identity)


def account(folder: Path, at: str, whose: str) -> Account:
    """What one node's ledger says of another's account."""
    owner = identity(folder, "ana").peer_id
    store = Store(Home(folder / at).ledger, read_only=True, judges=judges_of(owner))
    try:
        assert store.balances.imbalance() == 0
        return store.balances.account(identity(folder, whose).public_key)
    finally:
        store.close()


def test_trainers_are_paid_for_what_the_owner_found_sound(tmp_path: Path) -> None:
    config = written(tmp_path, strategy={"name": "diloco", "interval": 40})
    with trainers(config, tmp_path) as run:
        ana = run.start("ana", "--ledger")
        ana.wait_for("ready")
        three = [ana, run.start("ben", "--ledger"), run.start("cleo", "--ledger")]

        def paid(name: str) -> bool:
            who = identity(tmp_path, name).peer_id
            own = [j for j in judged(tmp_path) if j.trainer == who and j.credits]
            return len(own) >= 2 and account(tmp_path, name, name).waiting >= sum(j.credits for j in own[:2])

        ready = [Home(tmp_path / name) for name in ("ben", "cleo")]
        wait_until(lambda: all(home.ledger.exists() for home in ready) and len(said(ana, "round_done")) > 2, *three)
        wait_until(lambda: paid("ben") and paid("cleo"), *three)
        assert {j.outcome for j in judged(tmp_path)} <= {"sound", "undecided"}, judged(tmp_path)
        for node in three:
            node.stop()
            assert node.process.returncode == 0, node.errors
        for name in ("ben", "cleo"):
            who = identity(tmp_path, name).peer_id
            owed = sum(j.credits for j in judged(tmp_path) if j.trainer == who)
            assert account(tmp_path, "ana", name).waiting == owed
            assert not (tmp_path / name / "runs" / "tiny" / "steps").exists()
        assert account(tmp_path, "ana", "ana").waiting == 0
