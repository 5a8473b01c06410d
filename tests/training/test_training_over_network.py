"""Three real trainers over real daemons: one is killed, another joins, all hold the same bits after every round."""

import signal
from pathlib import Path

import pytest
from training.tiny_run import as_toml, tiny_tables
from training.train_process import Trainers, said, start_trainer, trainers, wait_until

from shoal.node.cli.main import main
from shoal.node.local_swarm import LocalNode, local_swarm

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]


def written(folder: Path, **changes: object) -> Path:
    quick = {"rounds": 0, "strategy": {"name": "diloco", "interval": 20}, "group": {"grace_s": 3.0, "deadline_s": 30.0}}
    path = folder / "train.toml"
    path.write_text(as_toml(tiny_tables(folder, **{**quick, **changes})))
    return path


def met(node: LocalNode, peers: int, since: int = -1) -> list[int]:
    """Rounds after `since` that this trainer had with so many peers, own work in them."""
    rounds = said(node, "round_done")
    return [r["round"] for r in rounds if len(r["peers"]) == peers and r["round"] > since and r["loss"] is not None]


def states(node: LocalNode) -> dict[int, str]:
    return {event["round"]: event["state"] for event in said(node, "round_done")}


def reached_before_its_first_round(node: LocalNode) -> int:
    """The round for which a newcomer had caught up at last. Rounds of a fraction of a second run away from one that
    the machine does not let run meanwhile: it catches up again then, and no clock is part of what it has to do next.
    """
    told = [event for event in node.events if event["event"] in ("caught_up", "round_done")]
    first = next(place for place, event in enumerate(told) if event["event"] == "round_done")
    assert first, "a newcomer catches up before its first round"
    return int(told[first - 1]["round"])


def started_three(run: Trainers) -> list[LocalNode]:
    first = run.start("ana")
    first.wait_for("ready")
    three = [first, run.start("ben"), run.start("cleo")]
    wait_until(lambda: all(len(met(node, 3)) >= 2 for node in three), *three)
    return three


def test_one_is_killed_and_another_joins_and_all_replicas_stay_equal(tmp_path: Path) -> None:
    with trainers(written(tmp_path), tmp_path) as run:
        ana, ben, cleo = started_three(run)
        cleo.kill()
        killed_at = max(states(ana))
        wait_until(lambda: len(met(ana, 2, killed_at)) >= 2 and len(met(ben, 2, killed_at)) >= 2, ana, ben)
        dan = run.start("dan")
        wait_until(lambda: all(len(met(node, 3, killed_at)) >= 2 for node in (ana, ben, dan)), ana, ben, dan)
        for node in (ana, ben, dan):
            node.stop()
            assert node.process.returncode == 0, node.errors
        everyone = [states(node) for node in (ana, ben, cleo, dan)]
        for round_ in set.union(*(set(known) for known in everyone)):
            assert len({known[round_] for known in everyone if round_ in known}) == 1, f"round {round_}"
        assert min(states(dan)) <= reached_before_its_first_round(dan) + 1, "in step at once"
        losses = [event["loss"] for event in said(ana, "round_done") if event["loss"] is not None]
        assert losses[-1] < losses[0] - 0.5
        records = [node.home.root / "runs" / "tiny" / "record.jsonl" for node in (ana, ben, dan)]
        checks = [argument for path in records for argument in ("--check", str(path))]
        assert main(["train", *checks]) == 0
        again = [argument for path in records for argument in ("--check", str(path.parent))]
        assert main(["train", *again]) == 0
        assert main(["train", str(tmp_path / "train.toml"), "--check", str(records[0].parent)]) == 0


def test_a_stopped_group_goes_on_where_it_stood(tmp_path: Path) -> None:
    with trainers(written(tmp_path), tmp_path) as run:
        ana = run.start("ana")
        ana.wait_for("ready")
        ben = run.start("ben")
        wait_until(lambda: len(met(ana, 2)) >= 2 and len(met(ben, 2)) >= 2, ana, ben)
        ana.process.send_signal(signal.SIGINT)
        ben.process.send_signal(signal.SIGINT)
        assert ana.process.wait(30) == ben.process.wait(30) == 130
        before = max(states(ana))
        run.start("ana", "--resume").wait_for("ready")
        again = [run.all["ana"], run.start("ben", "--resume")]
        wait_until(lambda: all(met(node, 2, before) for node in again), *again)
        assert min(states(again[0])) <= before + 2


def test_peers_with_another_config_are_told_apart(tmp_path: Path) -> None:
    with trainers(written(tmp_path), tmp_path) as run:
        ana = run.start("ana")
        ana.wait_for("planned")
        other = tmp_path / "other"
        other.mkdir()
        run._config = written(other, data={"sequence": 16})  # noqa: SLF001
        ben = run.start("ben")
        assert ben.process.wait(60) == 7
        error = said(ben, "error")[0]
        assert error["exit_code"] == 7
        assert "trains another run by the name 'tiny': data is" in error["message"]


def test_a_lonely_trainer_says_what_it_waits_for_and_stops_cleanly(tmp_path: Path) -> None:
    with trainers(written(tmp_path), tmp_path) as run:
        ana = run.start("ana")
        wait_until(lambda: bool(said(ana, "waiting")), ana)
        assert "1 of at least 2" in said(ana, "waiting")[0]["reason"] or "2" in said(ana, "waiting")[0]["reason"]
        ana.process.send_signal(signal.SIGINT)
        assert ana.process.wait(30) == 130


def test_running_nodes_train_beside_serving_pause_and_end_with_whoever_asked(tmp_path: Path) -> None:
    config = written(tmp_path)
    nodes = {name: ["--api-port", "0", "--gateway-only"] for name in ("ana", "ben")}
    with local_swarm(tmp_path, nodes) as swarm:
        asked = [start_trainer(config, tmp_path, name) for name in swarm]
        try:
            wait_until(lambda: all(len(met(node, 2)) >= 2 for node in asked), *asked)
            assert main(["train", "--pause", "--home", str(tmp_path / "ana")]) == 0
            wait_until(lambda: any("paused" in event["reason"] for event in said(asked[0], "waiting")), *asked)
            assert main(["train", "--continue", "--home", str(tmp_path / "ana")]) == 0
            rounds = len(said(asked[0], "round_done"))
            wait_until(lambda: len(said(asked[0], "round_done")) > rounds + 1, *asked)
            second = start_trainer(config, tmp_path, "ana")
            assert second.process.wait(60) == 2
            assert "a training is running here already" in said(second, "error")[0]["message"]
            second.stop()
        finally:
            for node in asked:
                node.process.send_signal(signal.SIGINT)
        assert [node.process.wait(30) for node in asked] == [130, 130]
        for node in asked:
            node.stop()
        saved = tmp_path / "ana" / "runs" / "tiny" / "checkpoints"
        wait_until(lambda: any(saved.iterdir()), *swarm.values())
        again = start_trainer(config, tmp_path, "ana", "--resume")
        wait_until(lambda: bool(said(again, "planned")), again)
        again.stop()
        assert states(asked[0])
        shared = states(asked[0]).keys() & states(asked[1]).keys()
        assert all(states(asked[0])[round_] == states(asked[1])[round_] for round_ in shared)
